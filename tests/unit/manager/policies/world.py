"""A manager's core for tests of rules and policies: real database, real content, one tenant or more."""

import functools
import pathlib
import time
from dataclasses import dataclass

import msgspec

from keibi.contract.names import new_id
from keibi.contract.policy import EffectivePolicy
from keibi.manager.access.model import ALL_PERMISSIONS, GrantedRole, Principal
from keibi.manager.audit.model import AuditFilter
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.tables import ComputerRecord, GroupRecord, ReportRecord
from keibi.manager.database import Database, Scope
from keibi.manager.policies.overrides import PolicyChange
from keibi.manager.policies.service import PolicyService
from keibi.manager.rules.catalog import ShippedRules, read_content
from keibi.manager.rules.service import RuleService
from keibi.manager.tenants.service import TenantService

CONTENT = str(pathlib.Path(__file__).resolve().parents[4] / "content")


def principal(*tenant_ids: str, permissions: frozenset[str] = ALL_PERMISSIONS, name: str = "alice", group: str = "") -> Principal:
    groups = frozenset({group}) if group else None
    grants = tuple(GrantedRole(permissions, tenant_id, groups) for tenant_id in tenant_ids)
    return Principal(user_id="u", name=name, kind="session", tenant_ids=frozenset(tenant_ids), grants=grants)


@dataclass
class World:
    database: Database
    audit: AuditService
    rules: RuleService
    policies: PolicyService
    tenant_id: str
    other_tenant_id: str

    @property
    def alice(self) -> Principal:
        return principal(self.tenant_id)

    @property
    def eve(self) -> Principal:
        """Everything, in the other tenant."""
        return principal(self.other_tenant_id, name="eve")

    def policy_id(self, path: str, tenant_id: str = "") -> str:
        who = principal(tenant_id or self.tenant_id)
        return next(node.policy_id for node in self.policies.tree(who) if node.path == path)

    def version(self, path: str) -> int:
        return self.policies.get(self.alice, self.policy_id(path)).version

    def change(self, path: str, **module):
        return self.policies.change(self.alice, self.policy_id(path), im(**module), self.version(path))

    def computer(
        self, name: str, os_name: str = "debian", policy: str = "", group_id: str | None = None, tenant_id: str = ""
    ) -> str:
        tenant_id = tenant_id or self.tenant_id
        computer_id = new_id()
        with self.database.session(Scope.system("test")) as session:
            session.add(
                ComputerRecord(
                    id=computer_id,
                    tenant_id=tenant_id,
                    display_name=name,
                    group_id=group_id,
                    policy_id=self.policy_id(policy, tenant_id) if policy else None,
                    public_key=new_id().encode(),
                    machine_id=new_id(),
                    enrolled_at=time.time(),
                )
            )
            session.flush()
            session.add(ReportRecord(id=computer_id, tenant_id=tenant_id, hostname=name, os_name=os_name))
        return computer_id

    def group(self, name: str, parent_id: str | None = None) -> str:
        group_id = new_id()
        with self.database.session(Scope.system("test")) as session:
            session.add(
                GroupRecord(
                    id=group_id,
                    tenant_id=self.tenant_id,
                    parent_id=parent_id,
                    parent_key=parent_id or "",
                    name=name,
                    name_key=name.casefold(),
                )
            )
        return group_id

    def effective(self, computer_id: str, declared: dict[str, int] | None = None) -> EffectivePolicy:
        with self.database.session(Scope(frozenset({self.tenant_id}), "agent:x")) as session:
            return self.policies.effective(session, computer_id, declared)

    def actions(self) -> list[str]:
        return [entry.action for entry in self.audit.list(self.alice, AuditFilter(), limit=200).items]


@functools.cache
def content() -> ShippedRules:
    """The shipped rules, read once for all tests: reading checks every sample."""
    return read_content(CONTENT)


def make_world(database: Database) -> World:
    audit = AuditService(database)
    rules = RuleService(database, audit, CONTENT)
    assert list(rules.load_shipped(content())) == []
    policies = PolicyService(database, audit, rules)
    tenants = TenantService(database, audit, [policies.provision])
    with database.session(Scope.system("test")) as session:
        ids = [tenants.create_in(session, name, Scope.system("test")).tenant_id for name in ("Acme", "Other")]
    return World(database, audit, rules, policies, *ids)


def im(**module) -> PolicyChange:
    """A change of integrity monitoring."""
    return msgspec.convert({"modules": {"integrity_monitoring": module}}, PolicyChange)


def settings_of(policy: EffectivePolicy) -> dict:
    return msgspec.json.decode(policy.modules[0].settings)


def rule_ids(policy: EffectivePolicy) -> set[str]:
    return {rule.rule_id for rule in policy.modules[0].rules}


OWN_RULE = """\
# Ours: what the shop runs.
id: im-own-shop
version: 1
title: {en: Shop settings}
description: {en: Settings of the shop.}
severity: medium
entities:
  - type: file
    base: /srv/shop
    include: ["**/*.conf"]
    exclude: ["**/*.swp"]
"""
