"""Alarms about identities that were seen twice."""

import time
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.model import IdentityAlarm
from keibi.manager.computers.reach import visible
from keibi.manager.computers.tables import ComputerRecord, IdentityAlarmRecord
from keibi.manager.database import Database
from keibi.manager.paging import DEFAULT_LIMIT, Page, SortKey, page_of


class AlarmService:
    """Raising, listing and resolving identity alarms."""

    def __init__(self, database: Database, audit: AuditService, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    def raise_in(self, session: Session, computer: ComputerRecord, kind: str, detail: str) -> None:
        """Note an alarm in the caller's session; the same again only counts up, as long as nobody resolved it."""
        now = self._clock()
        record = session.scalar(
            select(IdentityAlarmRecord).where(
                IdentityAlarmRecord.computer_id == computer.id,
                IdentityAlarmRecord.kind == kind,
                IdentityAlarmRecord.detail == detail,
                IdentityAlarmRecord.resolved_at.is_(None),
            )
        )
        if record is not None:
            record.last_at, record.count = now, record.count + 1
            return
        session.add(
            IdentityAlarmRecord(
                id=new_id(),
                tenant_id=computer.tenant_id,
                computer_id=computer.id,
                kind=kind,
                detail=detail,
                first_at=now,
                last_at=now,
                count=1,
                resolved_by="",
            )
        )
        session.flush()

    def list(
        self, principal: Principal, *, with_resolved: bool = False, cursor: str | None = None, limit: int = DEFAULT_LIMIT
    ) -> Page[IdentityAlarm]:
        """Return alarms of computers that the principal may see, the newest first.

        Raises:
            AccessError: the principal may see no computers.
        """
        principal.require("computers.view")
        statement = (
            select(IdentityAlarmRecord)
            .join(ComputerRecord, ComputerRecord.id == IdentityAlarmRecord.computer_id)
            .where(visible(principal))
        )
        if not with_resolved:
            statement = statement.where(IdentityAlarmRecord.resolved_at.is_(None))
        order = [SortKey(IdentityAlarmRecord.first_at, is_descending=True), SortKey(IdentityAlarmRecord.id)]
        with self._database.session(principal.scope(), writes=False) as session:
            page = page_of(session, statement, order, cursor, limit)
            return page.map(lambda record: _alarm(session, record))

    def resolve(self, principal: Principal, alarm_id: str) -> IdentityAlarm:
        """Say that an alarm was dealt with.

        Raises:
            AccessError: the principal may not manage that computer. InputError: there is no such alarm.
        """
        with self._database.session(principal.scope()) as session:
            record = session.get(IdentityAlarmRecord, alarm_id)
            computer = session.get(ComputerRecord, record.computer_id) if record else None
            if (
                record is None
                or computer is None
                or not principal.may("computers.view", tenant_id=computer.tenant_id, group_id=computer.group_id)
            ):
                raise InputError("alarm_not_found", f"there is no alarm {alarm_id!r}")
            principal.require("computers.manage", tenant_id=computer.tenant_id, group_id=computer.group_id)
            record.resolved_at, record.resolved_by = self._clock(), principal.actor
            session.flush()
            self._audit.record(
                session,
                principal,
                "alarm.resolve",
                "computer",
                computer.id,
                f"Resolved the identity alarm of {computer.display_name}.",
                {"kind": record.kind, "detail": record.detail},
                tenant_id=computer.tenant_id,
            )
            return _alarm(session, record)


def _alarm(session: Session, record: IdentityAlarmRecord) -> IdentityAlarm:
    computer = session.get(ComputerRecord, record.computer_id)
    return IdentityAlarm(
        alarm_id=record.id,
        tenant_id=record.tenant_id,
        computer_id=record.computer_id,
        computer_name=computer.display_name if computer else "",
        kind=record.kind,
        detail=record.detail,
        first_at=record.first_at,
        last_at=record.last_at,
        count=record.count,
        resolved_at=record.resolved_at,
        resolved_by=record.resolved_by,
    )
