"""What the test of foreign ids needs to know about each endpoint: how to make an object of each kind in a tenant.

A new endpoint is tested as soon as it is in the OpenAPI document, if its path and query parameters that hold ids are in
`ID_PARAMETERS`. A parameter that is not there (and not in `PLAIN_PARAMETERS`) fails the test with its name: add a line.
Bodies come from the document's schema; fields that hold ids take foreign ids too, by the same names.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.testclient import TestClient

from keibi.contract.events import Event, EventBatch, EventReceipt
from keibi.contract.names import ModuleId, Severity, new_id
from tests.manager_running import SimulatedAgent

MARK = "zq-foreign-zq"
"""Part of every name in the foreign tenant: an answer that contains it has leaked."""

OWN_RULE = """\
id: own-zq-foreign-zq
version: 1
title: {en: zq-foreign-zq}
description: {en: zq-foreign-zq}
severity: high
entity: files
base: /etc/zq-foreign-zq
"""


@dataclass
class ForeignTenant:
    """A tenant full of objects that nobody else may see, change or remove."""

    client: TestClient
    """Signed in as somebody who may do everything in it."""
    tenant_id: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        response = self.client.request(method, f"/api/v1{path}", json=body, params=query, headers=self.headers)
        assert response.status_code < 300, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def id_of(self, kind: str) -> str:
        """Return the id of an object of that kind, made at the first call."""
        if kind not in self.made:
            self.made[kind] = FACTORIES[kind](self)
        return self.made[kind]


def make_tenant(foreign: ForeignTenant) -> str:
    return foreign.tenant_id


def make_user(foreign: ForeignTenant) -> str:
    body = {"name": f"user.{MARK}", "password": "correct horse battery staple", "must_change_password": False}
    return foreign.call("POST", "/users", body)["user_id"]


def make_role(foreign: ForeignTenant) -> str:
    return foreign.call("POST", "/roles", {"name": f"role {MARK}", "permissions": ["computers.view"]})["role_id"]


def make_grant(foreign: ForeignTenant) -> str:
    body = {"role_id": foreign.id_of("role"), "tenant_id": foreign.tenant_id}
    return foreign.call("POST", f"/users/{foreign.id_of('user')}/grants", body)["grants"][0]["grant_id"]


def make_api_key(foreign: ForeignTenant) -> str:
    body = {"name": f"key {MARK}", "role_id": "auditor", "tenant_id": foreign.tenant_id}
    return foreign.call("POST", "/api-keys", body)["key"]["key_id"]


def make_session(foreign: ForeignTenant) -> str:
    return foreign.call("GET", "/auth/sessions")[0]["session_id"]


def make_group(foreign: ForeignTenant) -> str:
    return foreign.call("POST", "/groups", {"name": f"group {MARK}"})["group_id"]


def make_enrolment_token(foreign: ForeignTenant) -> str:
    return foreign.call("POST", "/enrolment-tokens", {"name": f"token {MARK}"})["token"]["token_id"]


def make_computer(foreign: ForeignTenant) -> str:
    secret = foreign.call("POST", "/enrolment-tokens", {"name": f"token {MARK}"})["secret"]
    agent = SimulatedAgent(foreign.client, MARK).enrol(secret).get_access()
    foreign.made["access_token"] = agent.access_token
    return agent.computer_id


def make_alarm(foreign: ForeignTenant) -> str:
    machine = foreign.call("GET", f"/computers/{foreign.id_of('computer')}")["machine_id"]
    secret = foreign.call("POST", "/enrolment-tokens", {"name": f"token {MARK}"})["secret"]
    SimulatedAgent(foreign.client, MARK, machine).enrol(secret)
    return foreign.call("GET", "/identity-alarms")["items"][0]["alarm_id"]


def make_command(foreign: ForeignTenant) -> str:
    return foreign.call("POST", f"/computers/{foreign.id_of('computer')}/commands", {"kind": "scan"})["command_id"]


def make_event(foreign: ForeignTenant) -> str:
    foreign.id_of("computer")
    agent = SimulatedAgent(foreign.client)
    agent.access_token = foreign.made["access_token"]
    event = Event(
        event_id=new_id(),
        module=ModuleId.INTEGRITY_MONITORING,
        kind="file.updated",
        severity=Severity.HIGH,
        detected_at=time.time(),
        subject=f"/etc/{MARK}",
        rule_id=f"own-{MARK}",
    )
    agent.post("events", EventBatch(new_id(), [event]), EventReceipt)
    foreign.call("POST", "/events/tags", {"event_ids": [event.event_id], "tag": MARK})
    return event.event_id


def make_policy(foreign: ForeignTenant) -> str:
    parent = foreign.call("GET", "/policies")[0]["policy_id"]
    return foreign.call("POST", "/policies", {"name": f"policy {MARK}", "parent_id": parent})["policy_id"]


def make_rule(foreign: ForeignTenant) -> str:
    return foreign.call("POST", "/rules", {"module": "integrity_monitoring", "text": OWN_RULE})["rule_id"]


FACTORIES: dict[str, Callable[[ForeignTenant], str]] = {
    "tenant": make_tenant,
    "user": make_user,
    "role": make_role,
    "grant": make_grant,
    "api_key": make_api_key,
    "session": make_session,
    "group": make_group,
    "enrolment_token": make_enrolment_token,
    "computer": make_computer,
    "alarm": make_alarm,
    "command": make_command,
    "event": make_event,
    "policy": make_policy,
    "rule": make_rule,
}

ID_PARAMETERS: dict[str, str] = {
    "tenant_id": "tenant",
    "user_id": "user",
    "role_id": "role",
    "grant_id": "grant",
    "key_id": "api_key",
    "session_id": "session",
    "group_id": "group",
    "group_ids": "group",
    "group": "group",
    "token_id": "enrolment_token",
    "computer_id": "computer",
    "computer_ids": "computer",
    "computer": "computer",
    "alarm_id": "alarm",
    "command_id": "command",
    "event_id": "event",
    "event_ids": "event",
    "policy_id": "policy",
    "policy": "policy",
    "rule_id": "rule",
    "rule": "rule",
    "parent_id": "group",  # overridden below where a policy's parent is meant
    "target_id": "computer",
}
"""Names of parameters and body fields that hold an id, and of what."""

SPECIAL: dict[tuple[str, str], str] = {
    ("/api/v1/policies", "parent_id"): "policy",
    ("/api/v1/policies/{policy_id}", "parent_id"): "policy",
    ("/api/v1/policies/{policy_id}/move", "parent_id"): "policy",
    ("/api/v1/policies/{policy_id}/move/preview", "parent_id"): "policy",
}

NOT_ABOUT_TENANTS = frozenset({"/api/v1/auth/sign-in"})
"""Endpoints that take no id and answer about nobody's rows."""
