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

from keibi.contract.events import Event, EventAction, EventBatch, EventReceipt
from keibi.contract.names import ModuleId, Severity, new_id
from tests.manager_running import SimulatedAgent

MARK = "zq-foreign-zq"
"""Part of every name in the foreign tenant: an answer that contains it has leaked."""

OWN_RULE = """\
id: im-MARK
version: 1
title: {en: MARK}
description: {en: MARK}
severity: high
entities:
  - {type: file, base: /etc/MARK, include: ["*"], attributes: [standard]}
"""


@dataclass
class TenantWithObjects:
    """A tenant whose objects are made as they are needed; `headers` are those of its administrator."""

    client: TestClient
    tenant_id: str
    headers: dict[str, str]
    mark: str
    """Part of every name in this tenant."""
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


def make_tenant(tenant: TenantWithObjects) -> str:
    return tenant.tenant_id


def make_user(tenant: TenantWithObjects) -> str:
    body = {"name": f"user.{tenant.mark}", "password": "correct horse battery staple", "must_change_password": False}
    return tenant.call("POST", "/users", body)["user_id"]


def make_role(tenant: TenantWithObjects) -> str:
    return tenant.call("POST", "/roles", {"name": f"role {tenant.mark}", "permissions": ["computers.view"]})["role_id"]


def make_grant(tenant: TenantWithObjects) -> str:
    body = {"role_id": tenant.id_of("role"), "tenant_id": tenant.tenant_id}
    return tenant.call("POST", f"/users/{tenant.id_of('user')}/grants", body)["grants"][0]["grant_id"]


def make_api_key(tenant: TenantWithObjects) -> str:
    body = {"name": f"key {tenant.mark}", "role_id": "auditor", "tenant_id": tenant.tenant_id}
    return tenant.call("POST", "/api-keys", body)["key"]["key_id"]


def make_session(tenant: TenantWithObjects) -> str:
    return tenant.call("GET", "/auth/sessions")[0]["session_id"]


def make_group(tenant: TenantWithObjects) -> str:
    return tenant.call("POST", "/groups", {"name": f"group {tenant.mark}"})["group_id"]


def make_enrolment_token(tenant: TenantWithObjects) -> str:
    return tenant.call("POST", "/enrolment-tokens", {"name": f"token {tenant.mark}"})["token"]["token_id"]


def make_computer(tenant: TenantWithObjects) -> str:
    secret = tenant.call("POST", "/enrolment-tokens", {"name": f"token {tenant.mark}"})["secret"]
    agent = SimulatedAgent(tenant.client, tenant.mark).enrol(secret).get_access()
    tenant.made["access_token"] = agent.access_token
    return agent.computer_id


def make_alarm(tenant: TenantWithObjects) -> str:
    machine = tenant.call("GET", f"/computers/{tenant.id_of('computer')}")["machine_id"]
    secret = tenant.call("POST", "/enrolment-tokens", {"name": f"token {tenant.mark}"})["secret"]
    SimulatedAgent(tenant.client, tenant.mark, machine).enrol(secret)
    return tenant.call("GET", "/identity-alarms")["items"][0]["alarm_id"]


def make_command(tenant: TenantWithObjects) -> str:
    return tenant.call("POST", f"/computers/{tenant.id_of('computer')}/commands", {"kind": "scan"})["command_id"]


def make_event(tenant: TenantWithObjects) -> str:
    tenant.id_of("computer")
    agent = SimulatedAgent(tenant.client)
    agent.access_token = tenant.made["access_token"]
    event = Event(
        event_id=new_id(),
        module=ModuleId.INTEGRITY_MONITORING,
        kind="file.updated",
        severity=Severity.HIGH,
        detected_at=time.time(),
        subject=f"/etc/{tenant.mark}",
        rule_id=f"im-{tenant.mark}",
    )
    agent.post("events", EventBatch(new_id(), [event]), EventReceipt)
    tenant.call("POST", "/events/tags", {"event_ids": [event.event_id], "tag": tenant.mark})
    return event.event_id


def make_policy(tenant: TenantWithObjects) -> str:
    parent = tenant.call("GET", "/policies")[0]["policy_id"]
    return tenant.call("POST", "/policies", {"name": f"policy {tenant.mark}", "parent_id": parent})["policy_id"]


def make_rule(tenant: TenantWithObjects) -> str:
    return tenant.call("POST", "/rules", {"module": "integrity_monitoring", "text": OWN_RULE.replace("MARK", tenant.mark)})[
        "rule_id"
    ]


def make_pattern_set(tenant: TenantWithObjects) -> str:
    rule = f'rule {tenant.mark.replace("-", "_")} {{ strings: $a = "{tenant.mark}" condition: $a }}'
    query = {"file_name": f"{tenant.mark}.yar", "description": tenant.mark}
    response = tenant.client.post("/api/v1/patterns/import", content=rule, params=query, headers=tenant.headers)
    assert response.status_code == 201, response.text
    return response.json()["pattern_set"]["set_id"]


def make_decision(tenant: TenantWithObjects) -> str:
    body = {"action": "block", "sha256": ["a" * 64], "note": tenant.mark}
    return tenant.call("POST", "/software/decisions", body)["decision_id"]


def make_quarantined(tenant: TenantWithObjects) -> str:
    tenant.id_of("computer")
    agent = SimulatedAgent(tenant.client)
    agent.access_token = tenant.made["access_token"]
    quarantine_id = new_id()
    event = Event(
        event_id=new_id(),
        module=ModuleId.ANTI_MALWARE,
        kind="malware.found",
        severity=Severity.HIGH,
        action=EventAction.QUARANTINED,
        detected_at=time.time(),
        subject=f"/srv/{tenant.mark}",
        details={"quarantine_id": quarantine_id, "threat": tenant.mark, "sha256": "0" * 64},
    )
    agent.post("events", EventBatch(new_id(), [event]), EventReceipt)
    return quarantine_id


FACTORIES: dict[str, Callable[[TenantWithObjects], str]] = {
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
    "quarantined": make_quarantined,
    "decision": make_decision,
    "pattern_set": make_pattern_set,
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
    "policy_ids": "policy",
    "decision_id": "decision",
    "policy": "policy",
    "rule_id": "rule",
    "set_id": "pattern_set",
    "rule": "rule",
    "parent_id": "group",  # overridden below where a policy's parent is meant
    "target_id": "computer",
    "quarantine_id": "quarantined",
}
"""Names of parameters and body fields that hold an id, and of what."""

PLAIN_PARAMETERS = frozenset({"new_rule_id"})
"""Names that look like ids of something there is, and are not."""

SPECIAL: dict[tuple[str, str], str] = {
    ("/api/v1/policies", "parent_id"): "policy",
    ("/api/v1/policies/{policy_id}", "parent_id"): "policy",
    ("/api/v1/policies/{policy_id}/move", "parent_id"): "policy",
    ("/api/v1/policies/{policy_id}/move/preview", "parent_id"): "policy",
}

NOT_ABOUT_TENANTS = frozenset({"/api/v1/auth/sign-in"})
"""Endpoints that take no id and answer about nobody's rows."""

STREAMS = frozenset({"/api/v1/events/tail"})
"""Answers that do not end; the events' own tests look at them."""

IGNORES_UNKNOWN_IDS = frozenset({"/api/v1/events/tags", "/api/v1/events/tags/remove"})
"""Bulk endpoints that say how many of the ids they found; that foreign rows stay as they were is seen afterwards."""

SAMPLE_VALUES: dict[str, object] = {
    "name": "zz sample",
    "password": "correct horse battery staple",
    "kind": "scan",
    "permissions": ["computers.view"],
    "expected_version": 1,
    "lasts_seconds": 3600,
    "max_uses": 1,
    "old": "wrong",
    "tag": "zz",
    "days": 30,
    "version": 1,
    "before": 1,
    "after": 1,
    "code": "000000",
    "limit": 10,
    "role_id": "auditor",
    "new_rule_id": "im-zz-sample",
}
"""Values for parameters and body fields whose simplest value would not be valid."""
