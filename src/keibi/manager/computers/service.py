"""Listing, editing and removing computers."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Select, String, and_, func, not_, or_, select
from sqlalchemy.orm import Session

from keibi.contract.enrolment import ComputerFacts
from keibi.contract.status import AgentStatus
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.alarms import AlarmService
from keibi.manager.computers.groups import GroupService, check_version, find_group, subtree_ids
from keibi.manager.computers.model import (
    IMPORTANCES,
    ONLINE_INTERVALS,
    POLICY_PENDING_SECONDS,
    ComputerChange,
    ComputerDetail,
    ComputerFilter,
    ComputerState,
    ComputerSummary,
    Overview,
    Problem,
)
from keibi.manager.computers.reach import MANAGE, VIEW, find_computer, visible
from keibi.manager.computers.tables import ComputerRecord, IdentityAlarmRecord, ReportRecord
from keibi.manager.database import Database
from keibi.manager.paging import DEFAULT_LIMIT, Page, SortKey, page_of

MAX_TAGS = 32
MAX_TAG_CHARACTERS = 64

Listener = Callable[[str, str], None]
"""Called after the transaction with (tenant id, computer id)."""
CheckPolicy = Callable[[Session, str, str], None]
"""Called with session, tenant id and policy id; raises InputError where the tenant has no such policy."""


class ComputerService:
    """Computers that the principal may see; `groups` and `alarms` are its other halves.

    `on_revoked` hears of computers whose agents must be refused; `check_policy` refuses policies that a tenant does not have.
    """

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        *,
        on_revoked: Sequence[Listener] = (),
        check_policy: CheckPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._audit = audit
        self._on_revoked = tuple(on_revoked)
        self._check_policy = check_policy
        self._clock = clock
        self.groups = GroupService(database, audit)
        self.alarms = AlarmService(database, audit, clock)

    def list(
        self,
        principal: Principal,
        filters: ComputerFilter = ComputerFilter(),
        cursor: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[ComputerSummary]:
        """Return a page of computers; `total` is the true count.

        Raises:
            AccessError: the principal may see none. InputError: a bad filter, sort, cursor or limit.
        """
        principal.require(VIEW)
        now = self._clock()
        with self._database.session(principal.scope(), writes=False) as session:
            statement = self._filtered(session, principal, filters, now)
            order = [_sort_key(filters), SortKey(ComputerRecord.id)]
            page = page_of(session, statement, order, cursor, limit)
            ids = [record.id for record in page.items]
            reports = {row.id: row for row in session.scalars(select(ReportRecord).where(ReportRecord.id.in_(ids)))}
            alarmed = _alarmed(session, ids)
            return page.map(lambda record: _summary(record, reports[record.id], record.id in alarmed, now))

    def get(self, principal: Principal, computer_id: str) -> ComputerDetail:
        """Return one computer with everything that is known of it.

        Raises:
            InputError: there is none that the principal may see.
        """
        now = self._clock()
        with self._database.session(principal.scope(), writes=False) as session:
            record = find_computer(session, principal, computer_id)
            report = _report(session, record)
            return _detail(record, report, bool(_alarmed(session, [record.id])), now)

    def change(
        self, principal: Principal, computer_id: str, change: ComputerChange, expected_version: int | None = None
    ) -> ComputerDetail:
        """Change what people decide about a computer.

        Raises:
            AccessError: the principal may not manage it, or not at the new place.
            InputError: no such computer, group or value; changed meanwhile.
        """
        with self._database.session(principal.scope()) as session:
            record = find_computer(session, principal, computer_id)
            principal.require(MANAGE, tenant_id=record.tenant_id, group_id=record.group_id)
            check_version(record.version, expected_version)
            before = _decided(record)
            self._apply(session, principal, record, change)
            session.flush()
            after = _decided(record)
            difference = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
            if difference:
                self._audit.record(
                    session,
                    principal,
                    "computer.change",
                    "computer",
                    computer_id,
                    f"Changed the computer {record.display_name}: {', '.join(difference)}.",
                    difference,
                    tenant_id=record.tenant_id,
                )
        return self.get(principal, computer_id)

    def set_enabled(self, principal: Principal, computer_id: str, is_enabled: bool) -> ComputerDetail:
        """Disable a computer, whose agent is refused from that moment on, or enable it again.

        Raises:
            AccessError: the principal may not manage it. InputError: there is none.
        """
        with self._database.session(principal.scope()) as session:
            record = find_computer(session, principal, computer_id)
            principal.require(MANAGE, tenant_id=record.tenant_id, group_id=record.group_id)
            record.is_enabled = is_enabled
            session.flush()
            verb = "enable" if is_enabled else "disable"
            self._audit.record(
                session,
                principal,
                f"computer.{verb}",
                "computer",
                computer_id,
                f"{verb.capitalize()}d the computer {record.display_name}.",
                tenant_id=record.tenant_id,
            )
        if not is_enabled:
            self._revoke(record)
        return self.get(principal, computer_id)

    def remove(self, principal: Principal, computer_id: str) -> None:
        """Forget a computer: its agent is refused from that moment on; its events stay as long as they are kept.

        Raises:
            AccessError: the principal may not manage it. InputError: there is none.
        """
        with self._database.session(principal.scope()) as session:
            record = find_computer(session, principal, computer_id)
            principal.require(MANAGE, tenant_id=record.tenant_id, group_id=record.group_id)
            session.delete(record)
            session.flush()
            self._audit.record(
                session,
                principal,
                "computer.remove",
                "computer",
                computer_id,
                f"Removed the computer {record.display_name}.",
                {"machine_id": record.machine_id},
                tenant_id=record.tenant_id,
            )
        self._revoke(record)

    def ids_in_groups(self, tenant_id: str, group_ids: frozenset[str]) -> frozenset[str]:
        """Return the ids of a tenant's computers that are in one of the groups now."""
        if not group_ids:
            return frozenset()
        with self._database.session_of(tenant_id, writes=False) as session:
            statement = select(ComputerRecord.id).where(ComputerRecord.group_id.in_(sorted(group_ids)))
            return frozenset(session.scalars(statement))

    def tags(self, principal: Principal) -> dict[str, int]:
        """Return the tags in use, with how many computers have each.

        Raises:
            AccessError: the principal may see no computers.
        """
        principal.require(VIEW)
        with self._database.session(principal.scope(), writes=False) as session:
            rows = session.scalars(select(ComputerRecord.tags).where(ComputerRecord.tags != "", visible(principal))).all()
        return dict(sorted(Counter(tag for row in rows for tag in split_tags(row)).items()))

    def unprotected(self, principal: Principal, limit: int = 1000) -> Sequence[tuple[ComputerSummary, Problem]]:
        """Return enabled computers that are not protected as they should be, each with each reason.

        Raises:
            AccessError: the principal may see no computers.
        """
        found: list[tuple[ComputerSummary, Problem]] = []
        page = self.list(
            principal, ComputerFilter(has_problems=True, sort="problems", is_descending=True), None, min(limit, 1000)
        )
        for computer in page.items:
            found += [(computer, problem) for problem in computer.problems]
        return found

    def overview(self, principal: Principal) -> Overview:
        """Return the numbers for the first page.

        Raises:
            AccessError: the principal may see no computers.
        """
        principal.require(VIEW)
        now = self._clock()
        with self._database.session(principal.scope(), writes=False) as session:
            reach = visible(principal)
            joined = select(ComputerRecord.id).join(ReportRecord, ReportRecord.id == ComputerRecord.id).where(reach)
            states = {state.value: _count(session, joined.where(_in_state(state, now))) for state in ComputerState}
            unprotected = _count(session, joined.where(_has_problems(now)))
            pending = _count(session, joined.where(ComputerRecord.is_enabled, _is_pending(now)))
            drifts = session.execute(
                select(func.coalesce(func.sum(ReportRecord.drift_count), 0), func.count())
                .join(ComputerRecord, ReportRecord.id == ComputerRecord.id)
                .where(reach, ComputerRecord.is_enabled, ReportRecord.drift_count > 0)
            ).one()
            alarms = _count(
                session,
                select(IdentityAlarmRecord.id)
                .join(ComputerRecord, IdentityAlarmRecord.computer_id == ComputerRecord.id)
                .where(reach, IdentityAlarmRecord.resolved_at.is_(None)),
            )
            codes: Counter[str] = Counter()
            stored = session.scalars(
                select(ReportRecord.problems)
                .join(ComputerRecord, ReportRecord.id == ComputerRecord.id)
                .where(reach, ComputerRecord.is_enabled, ReportRecord.problem_count > 0)
            )
            not_enforced: Counter[str] = Counter()
            for text in stored:
                problems = msgspec.json.decode(text, type=list[Problem])
                codes.update({problem.code for problem in problems})
                not_enforced.update({problem.module for problem in problems if problem.code == "not_enforced"})
        for code, count in (
            ("agent_offline", states["offline"]),
            ("agent_never", states["never"]),
            ("policy_pending", pending),
            ("identity_alarm", alarms),
        ):
            if count:
                codes[code] = count
        return Overview(
            computer_count=sum(states.values()),
            states=states,
            unprotected_count=unprotected,
            problem_counts=dict(codes.most_common()),
            not_enforced_counts=dict(not_enforced.most_common()),
            drift_count=int(drifts[0]),
            drift_computer_count=int(drifts[1]),
            open_alarm_count=alarms,
            policy_pending_count=pending,
        )

    def _filtered(self, session: Session, principal: Principal, filters: ComputerFilter, now: float) -> Select[ComputerRecord]:
        statement = select(ComputerRecord).join(ReportRecord, ReportRecord.id == ComputerRecord.id).where(visible(principal))
        if filters.text:
            statement = statement.where(
                or_(
                    ComputerRecord.display_name.icontains(filters.text, autoescape=True),
                    ReportRecord.hostname.icontains(filters.text, autoescape=True),
                    ReportRecord.addresses.contains(filters.text, autoescape=True),
                    ComputerRecord.tags.icontains(filters.text, autoescape=True),
                    ComputerRecord.id == filters.text,
                )
            )
        if filters.states:
            statement = statement.where(or_(*(_in_state(state, now) for state in filters.states)))
        if filters.group_id is not None:
            group = find_group(session, filters.group_id)
            statement = statement.where(ComputerRecord.group_id.in_(subtree_ids(session, group.tenant_id, group.id)))
        if filters.policy_ids:
            statement = statement.where(ComputerRecord.policy_id.in_(filters.policy_ids))
        for tag in filters.tags:
            statement = statement.where(ComputerRecord.tags.contains(f"|{tag}|", autoescape=True))
        if filters.os_name:
            statement = statement.where(ReportRecord.os_name == filters.os_name)
        if filters.importance:
            statement = statement.where(ComputerRecord.importance == filters.importance)
        if filters.computer_ids:
            statement = statement.where(ComputerRecord.id.in_(filters.computer_ids))
        if filters.has_problems is not None:
            statement = statement.where(_has_problems(now) if filters.has_problems else not_(_has_problems(now)))
        return statement

    def _apply(self, session: Session, principal: Principal, record: ComputerRecord, change: ComputerChange) -> None:
        if change.display_name is not None:
            name = change.display_name.strip()
            if not 1 <= len(name) <= 255 or not name.isprintable():
                raise InputError("computer_name", "a computer's name has 1 to 255 printable characters")
            record.display_name = name
        if change.group_id is not msgspec.UNSET and change.group_id != record.group_id:
            if change.group_id is not None and find_group(session, change.group_id).tenant_id != record.tenant_id:
                raise InputError("group_not_found", f"there is no group {change.group_id!r} for this computer's customer")
            principal.require(MANAGE, tenant_id=record.tenant_id, group_id=change.group_id)
            record.group_id = change.group_id
        if change.policy_id is not msgspec.UNSET:
            if change.policy_id is not None and self._check_policy is not None:
                self._check_policy(session, record.tenant_id, change.policy_id)
            record.policy_id = change.policy_id
        if change.importance is not None:
            if change.importance not in IMPORTANCES:
                raise InputError("importance_unknown", f"{change.importance!r} is not one of {', '.join(IMPORTANCES)}")
            record.importance = change.importance
        if change.tags is not None:
            record.tags = join_tags(change.tags)
        if change.note is not None:
            record.note = change.note[:10_000]

    def _revoke(self, record: ComputerRecord) -> None:
        for listener in self._on_revoked:
            listener(record.tenant_id, record.id)


def split_tags(text: str) -> tuple[str, ...]:
    """Return the tags in a column's value."""
    return tuple(tag for tag in text.split("|") if tag)


def join_tags(tags: Sequence[str]) -> str:
    """Return tags as a column's value.

    Raises:
        InputError: too many, too long, or with a character that a tag cannot have.
    """
    cleaned = sorted({tag.strip() for tag in tags if tag.strip()})
    if len(cleaned) > MAX_TAGS:
        raise InputError("tags_too_many", f"a computer has at most {MAX_TAGS} tags")
    for tag in cleaned:
        if len(tag) > MAX_TAG_CHARACTERS or not tag.isprintable() or set(tag) & set("|,"):
            raise InputError("tag_invalid", f"{tag[:80]!r} cannot be a tag", hint="at most 64 characters, without | and ,")
    return f"|{'|'.join(cleaned)}|" if cleaned else ""


def _in_state(state: ComputerState, now: float) -> Any:
    oldest = now - ONLINE_INTERVALS * ReportRecord.heartbeat_seconds
    match state:
        case ComputerState.DISABLED:
            return not_(ComputerRecord.is_enabled)
        case ComputerState.NEVER:
            return and_(ComputerRecord.is_enabled, ReportRecord.last_heartbeat_at.is_(None))
        case ComputerState.ONLINE:
            return and_(ComputerRecord.is_enabled, ReportRecord.last_heartbeat_at >= oldest)
        case ComputerState.OFFLINE:
            return and_(ComputerRecord.is_enabled, ReportRecord.last_heartbeat_at < oldest)


def state_of(record: ComputerRecord, report: ReportRecord, now: float) -> ComputerState:
    """Return how a computer is: the same as the conditions of the list, for one that is loaded."""
    if not record.is_enabled:
        return ComputerState.DISABLED
    if report.last_heartbeat_at is None:
        return ComputerState.NEVER
    is_online = report.last_heartbeat_at >= now - ONLINE_INTERVALS * report.heartbeat_seconds
    return ComputerState.ONLINE if is_online else ComputerState.OFFLINE


def _is_pending(now: float) -> Any:
    return and_(
        ReportRecord.generation_in_force < ReportRecord.generation_wanted,
        ReportRecord.generation_wanted_at < now - POLICY_PENDING_SECONDS,
    )


def _has_problems(now: float) -> Any:
    return and_(
        ComputerRecord.is_enabled,
        or_(
            ReportRecord.problem_count > 0,
            ReportRecord.last_heartbeat_at.is_(None),
            ReportRecord.last_heartbeat_at < now - ONLINE_INTERVALS * ReportRecord.heartbeat_seconds,
            _is_pending(now),
            ComputerRecord.id.in_(select(IdentityAlarmRecord.computer_id).where(IdentityAlarmRecord.resolved_at.is_(None))),
        ),
    )


def _sort_key(filters: ComputerFilter) -> SortKey:
    columns = {
        "name": func.lower(ComputerRecord.display_name, type_=String),
        "hostname": ReportRecord.hostname,
        "last_heartbeat_at": func.coalesce(ReportRecord.last_heartbeat_at, 0.0),
        "enrolled_at": ComputerRecord.enrolled_at,
        "problems": ReportRecord.problem_count,
    }
    if filters.sort not in columns:
        raise InputError("sort_invalid", f"computers cannot be sorted by {filters.sort!r}", hint=f"use {', '.join(columns)}")
    return SortKey(columns[filters.sort], filters.is_descending)


def _count(session: Session, statement: Select[str]) -> int:
    return session.scalar(select(func.count()).select_from(statement.subquery())) or 0


def _alarmed(session: Session, computer_ids: Sequence[str]) -> frozenset[str]:
    return frozenset(
        session.scalars(
            select(IdentityAlarmRecord.computer_id).where(
                IdentityAlarmRecord.computer_id.in_(computer_ids), IdentityAlarmRecord.resolved_at.is_(None)
            )
        )
    )


def _report(session: Session, record: ComputerRecord) -> ReportRecord:
    report = session.get(ReportRecord, record.id)
    if report is None:
        raise InputError("computer_not_found", f"there is no computer {record.id!r}")
    return report


def _decided(record: ComputerRecord) -> dict[str, object]:
    return {
        "display_name": record.display_name,
        "group_id": record.group_id,
        "policy_id": record.policy_id,
        "importance": record.importance,
        "tags": list(split_tags(record.tags)),
        "note": record.note,
    }


def _problems(record: ComputerRecord, report: ReportRecord, is_alarmed: bool, now: float) -> tuple[Problem, ...]:
    if not record.is_enabled:
        return ()
    found = []
    state = state_of(record, report, now)
    if state is ComputerState.NEVER:
        found.append(Problem("agent_never", "The agent was enrolled but has never reported."))
    if state is ComputerState.OFFLINE:
        found.append(Problem("agent_offline", "The agent does not report."))
    if is_alarmed:
        found.append(Problem("identity_alarm", "The identity of this computer was seen twice."))
    found += msgspec.json.decode(report.problems, type=list[Problem])
    is_late = report.generation_wanted_at < now - POLICY_PENDING_SECONDS
    if report.generation_in_force < report.generation_wanted and is_late and state is not ComputerState.NEVER:
        found.append(Problem("policy_pending", "The newest policy is not in force yet."))
    return tuple(found)


def _status(report: ReportRecord) -> AgentStatus | None:
    return msgspec.json.decode(report.status, type=AgentStatus) if report.status else None


def _summary(record: ComputerRecord, report: ReportRecord, is_alarmed: bool, now: float) -> ComputerSummary:
    return ComputerSummary(**_fields(record, report, _status(report), is_alarmed, now))


def _detail(record: ComputerRecord, report: ReportRecord, is_alarmed: bool, now: float) -> ComputerDetail:
    status = _status(report)
    return ComputerDetail(
        **_fields(record, report, status, is_alarmed, now),
        note=record.note,
        machine_id=record.machine_id,
        heartbeat_seconds=report.heartbeat_seconds,
        generation_received=report.generation_received,
        status_at=report.status_at,
        status=status,
        facts=msgspec.json.decode(report.facts, type=ComputerFacts) if report.facts else None,
    )


def _fields(
    record: ComputerRecord, report: ReportRecord, status: AgentStatus | None, is_alarmed: bool, now: float
) -> dict[str, Any]:
    return {
        "computer_id": record.id,
        "tenant_id": record.tenant_id,
        "display_name": record.display_name,
        "hostname": report.hostname,
        "state": state_of(record, report, now),
        "group_id": record.group_id,
        "policy_id": record.policy_id,
        "importance": record.importance,
        "tags": split_tags(record.tags),
        "os_pretty_name": report.os_pretty_name,
        "addresses": tuple(report.addresses.split()),
        "agent_version": report.agent_version,
        "enrolled_at": record.enrolled_at,
        "last_heartbeat_at": report.last_heartbeat_at,
        "generation_wanted": report.generation_wanted,
        "generation_in_force": report.generation_in_force,
        "modules": {str(module.module): str(module.health) for module in status.modules} if status else {},
        "problems": _problems(record, report, is_alarmed, now),
        "drift_count": report.drift_count,
        "version": record.version,
    }
