"""Allowing and blocking software: shown before it is done, done whole or not at all, and undone again."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.contract.names import Severity, new_id
from keibi.contract.policy import ModuleState
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database, Scope
from keibi.manager.paging import DEFAULT_LIMIT, Page, SortKey, page_of
from keibi.manager.policies.model import Preview
from keibi.manager.policies.rulesets import ComputerModule
from keibi.manager.policies.service import PolicyService
from keibi.manager.rules.model import CatalogRule, RuleSource, Words
from keibi.manager.rules.service import RuleService
from keibi.manager.software.model import (
    MAX_DECIDED_AT_ONCE,
    MAX_NOTE_CHARACTERS,
    Decision,
    DecisionPreview,
    DecisionRequest,
)
from keibi.manager.software.planning import MODULE, OWN_RULESETS, RulesetPlan, RulesetPlanner
from keibi.manager.software.ruleset_text import identity
from keibi.manager.software.tables import DecisionRecord
from keibi.protection.application_control.rules import Entry, Rule, RuleAction
from keibi.protection.base import Text

DECIDE = "software.decide"
MAX_RECORDED_ENTRIES = 100
ATTEMPTS = 3

FindComputers = Callable[[str, CatalogRule], frozenset[str]]
"""Called with a tenant and a ruleset; returns the computers that have told of software of which the ruleset speaks."""

_entries_of = msgspec.json.Decoder(list[Entry])
_removed_of = msgspec.json.Decoder(dict[str, list[Entry]])


@dataclass(frozen=True)
class _Considered:
    """A decision as it would be, in the transaction that works it out."""

    preview: DecisionPreview
    plan: RulesetPlan
    changed: Mapping[str, CatalogRule]


class DecisionService:
    """Decisions of people, for a whole customer: rulesets are of the customer, and so is the right to decide."""

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        rules: RuleService,
        policies: PolicyService,
        find_computers: FindComputers,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._audit = audit
        self._rules = rules
        self._policies = policies.rulesets
        self._planner = RulesetPlanner(rules)
        self._find_computers = find_computers
        self._clock = clock

    def preview(self, principal: Principal, request: DecisionRequest, tenant_id: str | None = None) -> DecisionPreview:
        """Say what a decision would do, without doing it.

        Raises:
            AccessError: the principal may not decide there. InputError: nothing to decide, no such ruleset or policy, or it would
                not compile. RuleInvalidError: an entry is wrong.
        """
        principal, tenant = _decider(principal, tenant_id)
        had = self._computers_with(tenant, request)
        with self._database.session(_scope(principal, tenant), writes=False) as session:
            return self._consider(session, tenant, request, had, locks=False).preview

    def decide(self, principal: Principal, request: DecisionRequest, tenant_id: str | None = None) -> Decision:
        """Make a decision. Of several people who decide at once, each keeps what they decided.

        Raises:
            AccessError, InputError: as `preview`.
        """
        principal, tenant = _decider(principal, tenant_id)
        had = self._computers_with(tenant, request)
        for attempt in range(ATTEMPTS):
            try:
                with self._database.session(_scope(principal, tenant)) as session:
                    return self._decide(session, principal, tenant, request, had)
            except InputError as error:
                # Two people made the customer's first ruleset at the same moment; the second finds it the next time.
                if error.code != "conflict" or attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    def list(self, principal: Principal, cursor: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Decision]:
        """Return decisions, the newest first.

        Raises:
            AccessError: the principal may not see rules. InputError: a bad cursor or limit.
        """
        principal.require("rules.view")
        statement = select(DecisionRecord).where(DecisionRecord.tenant_id.in_(principal.tenants_where("rules.view")))
        order = [SortKey(DecisionRecord.decided_at, is_descending=True), SortKey(DecisionRecord.id, is_descending=True)]
        with self._database.session(principal.scope(), writes=False) as session:
            return page_of(session, statement, order, cursor, limit).map(_decision)

    def get(self, principal: Principal, decision_id: str) -> Decision:
        """Return one decision.

        Raises:
            InputError: there is none that the principal may see.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            return _decision(self._found(session, principal, decision_id))

    def preview_undo(self, principal: Principal, decision_id: str) -> Preview:
        """Say which computers undoing a decision would reach.

        Raises:
            AccessError: the principal may not decide there. InputError: no such decision, or it is undone already.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = self._for_undo(session, principal, decision_id)
            plan = self._undone(session, record, locks=False)
            return self._policies.propose(session, record.tenant_id, MODULE, plan.changed(self._clock()), ())

    def undo(self, principal: Principal, decision_id: str, expected_version: int | None = None) -> Decision:
        """Take out what a decision put in, as far as it is there, and put back what it took out, unless that is undone too.

        Raises:
            AccessError: the principal may not decide there. InputError: no such decision, it is undone already, or it was changed
                meanwhile.
        """
        with self._database.session(principal.scope()) as session:
            record = self._for_undo(session, principal, decision_id)
            if expected_version is not None and record.version != expected_version:
                raise InputError("changed_meanwhile", "somebody else changed this decision meanwhile", hint="load it again")
            plan = self._undone(session, record, locks=True)
            self._write(session, principal, plan)
            record.undone_at, record.undone_by = self._clock(), principal.actor
            session.flush()
            entries = _entries_of.decode(record.entries)
            self._audit.record(
                session,
                principal,
                "software.undo",
                "decision",
                record.id,
                f"Undid the decision to {record.action} {_items(len(entries))}.",
                {"rulesets": sorted(plan.texts), "entries": _for_audit(entries)},
                tenant_id=record.tenant_id,
            )
            return _decision(record)

    def remove_entries(self, principal: Principal, rule_id: str, entries: Sequence[Entry], tenant_id: str | None = None) -> int:
        """Take entries out of an own ruleset; return how many it had.

        Raises:
            AccessError: the principal may not decide there. InputError: no such own ruleset.
        """
        principal, tenant = _decider(principal, tenant_id)
        with self._database.session(_scope(principal, tenant)) as session:
            plan = self._planner.begin(session, tenant, locks=True)
            self._planner.check_ruleset(plan, rule_id)
            gone = self._planner.remove(plan, rule_id, [identity(entry) for entry in entries])
            if gone:
                self._write(session, principal, plan)
                self._audit.record(
                    session,
                    principal,
                    "software.remove",
                    "rule",
                    rule_id,
                    f"Took {_items(len(gone))} out of the ruleset {rule_id}.",
                    {"entries": _for_audit(gone)},
                    tenant_id=tenant,
                )
            return len(gone)

    def _decide(
        self, session: Session, principal: Principal, tenant: str, request: DecisionRequest, had: frozenset[str]
    ) -> Decision:
        considered = self._consider(session, tenant, request, had, locks=True)
        preview, plan = considered.preview, considered.plan
        self._write(session, principal, plan)
        used = {key: rule for key, rule in considered.changed.items() if rule.rule.action is request.action}
        used |= {} if used else {key: plan.rules[key] for key in preview.rule_ids if key in plan.rules}
        policy_ids = [policy_id for policy_id, _ in preview.policies]
        summary = f"Has the ruleset {', '.join(preview.rule_ids)} by a decision about software."
        self._policies.use(session, principal, tenant, MODULE, used, policy_ids, summary)
        record = DecisionRecord(
            id=new_id(),
            tenant_id=tenant,
            action=request.action.value,
            entries=_text(preview.new_entries),
            removed=_text(plan.removed),
            rule_ids=" ".join(preview.rule_ids),
            policies=_text([path for _, path in preview.policies]),
            note=request.note,
            computer_count=preview.change.computer_count,
            decided_at=self._clock(),
            decided_by=principal.actor,
        )
        session.add(record)
        session.flush()
        verb = "Allowed" if request.action is RuleAction.ALLOW else "Blocked"
        self._audit.record(
            session,
            principal,
            f"software.{request.action.value}",
            "decision",
            record.id,
            f"{verb} {_items(len(preview.new_entries))} of software; reaches {_computers(preview.change.computer_count)}.",
            {
                "rulesets": list(preview.rule_ids),
                "policies": [path for _, path in preview.policies],
                "entries": _for_audit(preview.new_entries),
                "note": request.note,
            },
            tenant_id=tenant,
        )
        return _decision(record)

    def _consider(
        self, session: Session, tenant: str, request: DecisionRequest, had: frozenset[str], *, locks: bool
    ) -> _Considered:
        plan = self._planner.begin(session, tenant, locks=locks)
        if request.rule_id:
            self._planner.check_ruleset(plan, request.rule_id, request.action)
        paths = self._policies.paths(session, tenant)
        for policy_id in request.policy_ids:
            if policy_id not in paths:
                raise InputError("policy_not_found", f"there is no policy {policy_id!r}", where="policy_ids")
        _check(request)
        self._planner.add(plan, request)
        changed = plan.changed(self._clock())
        base = request.rule_id or OWN_RULESETS[request.action][0]
        rule_ids = tuple(plan.added_to) or (base,)
        computers = self._policies.computers(session, tenant, MODULE)
        policy_ids = self._policies_for(session, tenant, request, had, computers)
        if len(set(rule_ids) - {base}) > 0:
            # What uses a ruleset uses its continuation too.
            policy_ids |= {one.policy_id for one in computers if base in one.rule_ids and one.policy_id is not None}
        used = {key: rule for key, rule in {**plan.rules, **changed}.items() if key in rule_ids or key in changed}
        using = {key: rule for key, rule in used.items() if rule.rule.action is request.action}
        others = {key: rule for key, rule in changed.items() if key not in using}
        change = self._policies.propose(session, tenant, MODULE, using, sorted(policy_ids), others)
        below = self._policies.subtrees(session, tenant, policy_ids)
        states = [one.state for one in computers if one.policy_id in below]
        title = changed[rule_ids[0]].rule.title if rule_ids[0] in changed else plan.rules[rule_ids[0]].rule.title
        preview = DecisionPreview(
            tenant_id=tenant,
            rule_ids=rule_ids,
            title=Words.of(title),
            action=request.action,
            new_entries=tuple(plan.new_entries),
            known_count=plan.known_count,
            policies=tuple((policy_id, paths[policy_id]) for policy_id in sorted(policy_ids, key=lambda key: paths[key])),
            change=change,
            off_count=states.count(ModuleState.OFF),
            detect_count=states.count(ModuleState.DETECT),
            prevent_count=states.count(ModuleState.PREVENT),
        )
        return _Considered(preview, plan, changed)

    def _policies_for(
        self,
        session: Session,
        tenant: str,
        request: DecisionRequest,
        had: frozenset[str],
        computers: Sequence[ComputerModule],
    ) -> set[str]:
        if request.policy_ids:
            return set(request.policy_ids)
        found: set[str] = set()
        if request.action is RuleAction.ALLOW:
            found = {one.policy_id for one in computers if one.computer.computer_id in had and one.policy_id is not None}
        return found or set(self._policies.roots(session, tenant))

    def _computers_with(self, tenant: str, request: DecisionRequest) -> frozenset[str]:
        if request.policy_ids or request.action is RuleAction.BLOCK or not request.entries:
            return frozenset()
        # Asked before the transaction: the event store may take its time, and writers wait for each other.
        rule = Rule("ac-asked", 1, Text(""), Text(""), Severity.LOW, request.action, list(request.entries))
        return self._find_computers(
            tenant, CatalogRule(rule=rule, module=MODULE, source=RuleSource.OWN, text="", changed_at=self._clock())
        )

    def _write(self, session: Session, principal: Principal, plan: RulesetPlan) -> None:
        for rule_id, text in plan.texts.items():
            record = plan.records.get(rule_id)
            if record is None:
                self._rules.create_in(session, principal, plan.tenant_id, MODULE, text, is_recorded=False)
            else:
                self._rules.update_in(session, principal, record, text, is_recorded=False)

    def _undone(self, session: Session, record: DecisionRecord, *, locks: bool) -> RulesetPlan:
        plan = self._planner.begin(session, record.tenant_id, locks=locks)
        entries = _entries_of.decode(record.entries)
        for rule_id in record.rule_ids.split():
            if rule_id in plan.records:
                self._planner.remove(plan, rule_id, [identity(entry) for entry in entries])
        given_up = self._given_up(session, record)
        for rule_id, removed in _removed_of.decode(record.removed).items():
            if rule_id in plan.records:
                kept = [entry for entry in removed if (rule_id, identity(entry)) not in given_up]
                self._planner.put_back(plan, rule_id, kept)
        return plan

    def _given_up(self, session: Session, record: DecisionRecord) -> frozenset[tuple[str, tuple[Any, ...]]]:
        """Return, by ruleset, what decisions before this one had put in that were undone since: nobody wants it back."""
        undone = session.scalars(
            select(DecisionRecord).where(
                DecisionRecord.tenant_id == record.tenant_id,
                DecisionRecord.decided_at <= record.decided_at,
                DecisionRecord.undone_at >= record.decided_at,
                DecisionRecord.id != record.id,
            )
        )
        return frozenset(
            (rule_id, identity(entry))
            for other in undone
            for rule_id in other.rule_ids.split()
            for entry in _entries_of.decode(other.entries)
        )

    def _for_undo(self, session: Session, principal: Principal, decision_id: str) -> DecisionRecord:
        record = self._found(session, principal, decision_id)
        principal.require(DECIDE, tenant_id=record.tenant_id)
        if record.undone_at is not None:
            raise InputError("decision_undone", "this decision is undone already", where=decision_id)
        return record

    def _found(self, session: Session, principal: Principal, decision_id: str) -> DecisionRecord:
        tenants = principal.tenants_where("rules.view")
        found = session.scalar(
            select(DecisionRecord).where(DecisionRecord.id == decision_id, DecisionRecord.tenant_id.in_(tenants))
        )
        if found is None:
            raise InputError("decision_not_found", f"there is no decision {decision_id!r}")
        return found


def _decider(principal: Principal, tenant_id: str | None) -> tuple[Principal, str]:
    """Return the principal in the tenant that is meant.

    Raises:
        AccessError: the principal may not decide there. InputError: several are meant.
    """
    chosen = principal.in_tenant(tenant_id) if tenant_id else principal
    tenant = chosen.home_tenant_id
    # Rulesets are of the whole customer: a right over one group of computers does not open them.
    chosen.require(DECIDE, tenant_id=tenant)
    return chosen, tenant


def _scope(principal: Principal, tenant_id: str) -> Scope:
    return Scope(frozenset({tenant_id}), principal.actor)


def _check(request: DecisionRequest) -> None:
    if not request.entries:
        raise InputError("nothing_chosen", "no software is chosen", where="entries", hint="choose at least one")
    if len(request.entries) > MAX_DECIDED_AT_ONCE:
        raise InputError(
            "too_many_chosen",
            f"{len(request.entries)} are chosen; up to {MAX_DECIDED_AT_ONCE} can be decided at once",
            hint="narrow the filter first, or decide by package or path",
        )
    if len(request.note) > MAX_NOTE_CHARACTERS:
        raise InputError("note_too_long", f"the note has {len(request.note)} characters, more than {MAX_NOTE_CHARACTERS}")


def _decision(record: DecisionRecord) -> Decision:
    return Decision(
        decision_id=record.id,
        tenant_id=record.tenant_id,
        action=RuleAction(record.action),
        entries=tuple(_entries_of.decode(record.entries)),
        rule_ids=tuple(record.rule_ids.split()),
        policies=tuple(msgspec.json.decode(record.policies, type=list[str])),
        note=record.note,
        computer_count=record.computer_count,
        decided_at=record.decided_at,
        decided_by=record.decided_by,
        undone_at=record.undone_at,
        undone_by=record.undone_by,
        version=record.version,
    )


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def _computers(count: int) -> str:
    return "1 computer" if count == 1 else f"{count} computers"


def _for_audit(entries: Sequence[Entry]) -> list[Any]:
    return [msgspec.to_builtins(entry) for entry in entries[:MAX_RECORDED_ENTRIES]]


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
