"""Computers as the last level: which policy they use, and what they say themselves."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.tables import ComputerRecord, GroupRecord, ReportRecord
from keibi.manager.database import Database
from keibi.manager.policies import forest as forests
from keibi.manager.policies.editing import check_version, found_policy
from keibi.manager.policies.effective import lock_tree, touch
from keibi.manager.policies.forest import NO_OVERRIDES, write_overrides
from keibi.manager.policies.model import Applied, ComputerPolicy, DifferenceLine, EffectiveSettings, Preview
from keibi.manager.policies.overrides import Overrides, PolicyChange, applied
from keibi.manager.policies.pages import modules_of
from keibi.manager.policies.pattern_names import PatternSource, check_pattern_names
from keibi.manager.policies.proposals import ComputerUse, Proposals, computers_of
from keibi.manager.policies.resolution import resolve
from keibi.manager.policies.tables import ComputerOverridesRecord, GenerationRecord
from keibi.manager.rules.model import Words
from keibi.manager.rules.service import RuleService
from keibi.protection.base import Module

MAX_ASSIGNED = 10_000


class ComputerPolicies:
    """What computers use and say."""

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        rules: RuleService,
        proposals: Proposals,
        modules: Sequence[Module],
        patterns: PatternSource,
    ) -> None:
        self._database = database
        self._audit = audit
        self._rules = rules
        self._proposals = proposals
        self._patterns = patterns
        self._modules = tuple(modules)

    def get(self, principal: Principal, computer_id: str) -> ComputerPolicy:
        """Return what a computer uses.

        Raises:
            InputError: there is no such computer that the principal may see.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record, use = _found(session, principal, computer_id, "computers.view")
            forest = forests.load(session, record.tenant_id)
            used = forest.used_by(use.policy_id, use.os_name)
            generation = session.get(GenerationRecord, computer_id)
            return ComputerPolicy(
                computer_id=computer_id,
                name=record.display_name,
                policy_id=record.policy_id,
                used_policy_id=used,
                used_policy_path=forest.path(used) if used else "",
                override_count=forest.computers.get(computer_id, NO_OVERRIDES).count,
                version=_own_version(session, computer_id),
                generation=generation.generation if generation else 0,
            )

    def effective_settings(self, principal: Principal, computer_id: str) -> EffectiveSettings:
        """Return every value of a computer with its origin, and whether each rule fits its system.

        Raises:
            InputError: there is no such computer that the principal may see.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record, use = _found(session, principal, computer_id, "computers.view")
            forest = forests.load(session, record.tenant_id)
            used = forest.used_by(use.policy_id, use.os_name)
            resolved = resolve(forest.layers(used, computer_id, record.display_name), self._modules)
            catalog = self._rules.catalog(session, record.tenant_id)
            return EffectiveSettings(
                target_kind="computer",
                target_id=computer_id,
                name=record.display_name,
                path=forest.path(used) if used else "",
                version=_own_version(session, computer_id),
                heartbeat_seconds=resolved.heartbeat_seconds,
                modules=modules_of(resolved, self._modules, catalog, use.os_name),
            )

    def preview(self, principal: Principal, computer_id: str, change: PolicyChange) -> Preview:
        """Say what a change of a computer's own overrides would do.

        Raises:
            InputError: no such computer, or the change would be refused.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record, use = _found(session, principal, computer_id, "computers.view")
            return self._propose(session, record, use, change)[0]

    def change(self, principal: Principal, computer_id: str, change: PolicyChange, expected_version: int) -> Applied:
        """Change what a computer says itself; null returns a value to the policy's.

        Raises:
            AccessError: the principal may not. InputError: no such computer, changed meanwhile (a computer that says nothing is
                at version 0), a wrong value, or it does not compile.
        """
        with self._database.session(principal.scope()) as session:
            record, use = _found(session, principal, computer_id, "policies.edit")
            lock_tree(session, record.tenant_id)
            check_version(record.display_name, _own_version(session, computer_id), expected_version)
            preview, overrides = self._propose(session, record, use, change)
            if not preview.is_empty:
                self._write(session, principal, record, overrides, preview)
            return Applied(target_id=computer_id, version=_own_version(session, computer_id), preview=preview)

    def preview_assign(
        self, principal: Principal, policy_id: str | None, computer_ids: Sequence[str], group_ids: Sequence[str] = ()
    ) -> Preview:
        """Say what assigning a policy (None: the default of each system) to computers and whole groups would do.

        Raises:
            InputError: no such policy, computer or group, or a computer that would not compile.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            return self._propose_assign(session, principal, policy_id, computer_ids, group_ids)[0]

    def assign(
        self, principal: Principal, policy_id: str | None, computer_ids: Sequence[str], group_ids: Sequence[str] = ()
    ) -> Preview:
        """Assign a policy to computers and to all that are in these groups and below them now; all of them or none.

        Raises:
            AccessError: the principal may not for one of them. InputError: as `preview_assign`.
        """
        with self._database.session(principal.scope()) as session:
            preview, tenant_id, chosen, path = self._propose_assign(
                session, principal, policy_id, computer_ids, group_ids, permission="computers.manage"
            )
            for record in chosen:
                record.policy_id = policy_id
            session.flush()
            if chosen:
                names = [record.display_name for record in chosen]
                self._audit.record(
                    session,
                    principal,
                    "policy.assign",
                    "policy",
                    policy_id or "",
                    f"Assigned {path or 'the default policy'} to {len(names)} computers.",
                    {"computers": [record.id for record in chosen]},
                    tenant_id=tenant_id,
                )
            return preview

    def _propose(
        self, session: Session, record: ComputerRecord, use: ComputerUse, change: PolicyChange
    ) -> tuple[Preview, Overrides]:
        if change.name is not msgspec.UNSET or change.description is not msgspec.UNSET:
            raise InputError("computer_change", "a computer's name is not changed with its policy", where="name")
        before = forests.load(session, record.tenant_id)
        known = before.computers.get(record.id, NO_OVERRIDES)
        overrides = applied(known, change)
        after = before.with_computer(record.id, overrides)
        catalog = self._rules.catalog(session, record.tenant_id)
        used = before.used_by(use.policy_id, use.os_name)
        old, new = (forest.layers(used, record.id, record.display_name) for forest in (before, after))
        self._proposals.check_overrides(overrides, catalog, known)
        check_pattern_names(self._patterns.contents(session, record.tenant_id), overrides, known)
        self._proposals.check_compiles(new, catalog)
        impact = self._proposals.impact(before, after, [use], catalog)
        preview = Preview(
            target_id=record.id,
            expected_version=_own_version(session, record.id),
            lines=self._proposals.lines(old, new, catalog),
            computer_count=impact.computer_count,
            computer_names=impact.computer_names,
            policies=[],
            is_empty=overrides == known,
        )
        return preview, overrides

    def _write(
        self, session: Session, principal: Principal, record: ComputerRecord, overrides: Overrides, preview: Preview
    ) -> None:
        own = session.get(ComputerOverridesRecord, record.id)
        if own is None:
            own = ComputerOverridesRecord(id=record.id, tenant_id=record.tenant_id)
            session.add(own)
        # A row that says nothing stays, so that its version goes on counting.
        own.overrides = write_overrides(overrides)
        own.changed_at, own.changed_by = time.time(), principal.actor
        session.flush()
        self._audit.record(
            session,
            principal,
            "computer.override",
            "computer",
            record.id,
            f"Changed what the computer {record.display_name} overrides.",
            {"lines": [line.sentence.en for line in preview.lines], "version": own.version},
            tenant_id=record.tenant_id,
        )
        touch(session, record.tenant_id)

    def _propose_assign(
        self,
        session: Session,
        principal: Principal,
        policy_id: str | None,
        computer_ids: Sequence[str],
        group_ids: Sequence[str],
        permission: str = "computers.view",
    ) -> tuple[Preview, str, list[ComputerRecord], str]:
        chosen = _chosen(session, principal, computer_ids, group_ids, permission)
        policy = found_policy(session, principal, policy_id) if policy_id is not None else None
        tenants = {record.tenant_id for record in chosen} | ({policy.tenant_id} if policy else set())
        if len(tenants) > 1:
            raise InputError("other_tenant", "the policy and the computers belong to different customers", where="policy_id")
        tenant_id = next(iter(tenants), "")
        if permission != "computers.view":
            lock_tree(session, tenant_id)
        forest = forests.load(session, tenant_id)
        catalog = self._rules.catalog(session, tenant_id)
        wanted = {record.id for record in chosen}
        uses = [use for use in computers_of(session, tenant_id) if use.computer_id in wanted]
        for use in uses:
            if use.computer_id in forest.computers:
                then = forest.used_by(policy_id, use.os_name)
                self._proposals.check_compiles(forest.layers(then, use.computer_id, use.name), catalog)
        impact = self._proposals.impact(
            forest, forest, uses, catalog, assigned_after={use.computer_id: policy_id for use in uses}
        )
        moved = [use for use in uses if use.policy_id != policy_id]
        path = forest.path(policy.id) if policy else ""
        preview = Preview(
            target_id=policy_id or "",
            expected_version=policy.version if policy else 0,
            lines=_assignment_lines(forest, moved, policy_id, path),
            computer_count=impact.computer_count,
            computer_names=impact.computer_names,
            policies=impact.policies,
            is_empty=not moved,
        )
        return preview, tenant_id, chosen, path


def _assignment_lines(
    forest: forests.Forest, moved: Sequence[ComputerUse], policy_id: str | None, path: str
) -> list[DifferenceLine]:
    """Return one line for each policy that computers leave."""
    left: dict[str | None, int] = {}
    for use in moved:
        left[use.policy_id] = left.get(use.policy_id, 0) + 1
    lines = []
    to_en, to_ja = path or "the default of their system", path or "システムの既定のポリシー"
    for old, count in left.items():
        known = forest.path(old) if old in forest.branches and old else ""
        plural = "computer goes" if count == 1 else "computers go"
        sentence = Words(
            f"{count} {plural} from {known or 'the default of their system'} to {to_en}.",
            f"コンピュータ{count}台：{known or 'システムの既定のポリシー'} → {to_ja}",
        )
        before: Any = old
        lines.append(DifferenceLine(None, "assignment", "policy_id", before, policy_id, sentence))
    return lines


def _found(session: Session, principal: Principal, computer_id: str, permission: str) -> tuple[ComputerRecord, ComputerUse]:
    row = session.execute(
        select(ComputerRecord, ReportRecord.os_name)
        .outerjoin(ReportRecord, ReportRecord.id == ComputerRecord.id)
        .where(ComputerRecord.id == computer_id)
    ).one_or_none()
    if row is None or not principal.may("computers.view", tenant_id=row[0].tenant_id, group_id=row[0].group_id):
        raise InputError("computer_not_found", f"there is no computer {computer_id!r}")
    record: ComputerRecord = row[0]
    principal.require(permission, tenant_id=record.tenant_id, group_id=record.group_id)
    use = ComputerUse(record.id, record.display_name, record.group_id, record.policy_id, row[1] or "")
    return record, use


def _chosen(
    session: Session, principal: Principal, computer_ids: Sequence[str], group_ids: Sequence[str], permission: str
) -> list[ComputerRecord]:
    groups = _with_subgroups(session, group_ids)
    records = list(session.scalars(select(ComputerRecord).where(ComputerRecord.id.in_(list(computer_ids)[:MAX_ASSIGNED]))))
    if groups:
        records += session.scalars(select(ComputerRecord).where(ComputerRecord.group_id.in_(groups)))
    by_id = {
        record.id: record
        for record in records
        if principal.may("computers.view", tenant_id=record.tenant_id, group_id=record.group_id)
    }
    for computer_id in computer_ids:
        if computer_id not in by_id:
            raise InputError("computer_not_found", f"there is no computer {computer_id!r}", where="computer_ids")
    if len(by_id) > MAX_ASSIGNED:
        raise InputError("too_many_computers", f"{len(by_id)} computers at once are more than {MAX_ASSIGNED}")
    for record in by_id.values():
        principal.require(permission, tenant_id=record.tenant_id, group_id=record.group_id)
    return sorted(by_id.values(), key=lambda record: record.display_name.casefold())


def _with_subgroups(session: Session, group_ids: Sequence[str]) -> frozenset[str]:
    if not group_ids:
        return frozenset()
    parents = {row[0]: row[1] for row in session.execute(select(GroupRecord.id, GroupRecord.parent_id))}
    for group_id in group_ids:
        if group_id not in parents:
            raise InputError("group_not_found", f"there is no group {group_id!r}", where="group_ids")
    found = set(group_ids)
    while more := {key for key, parent in parents.items() if parent in found} - found:
        found |= more
    return frozenset(found)


def _own_version(session: Session, computer_id: str) -> int:
    own = session.get(ComputerOverridesRecord, computer_id)
    return own.version if own else 0
