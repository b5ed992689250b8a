"""How long events are kept: rules for each tenant and module, and the job that removes what is older."""

import calendar
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from sqlalchemy import select

from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database, Scope
from keibi.manager.events.model import RetentionOutcome, RetentionRule
from keibi.manager.events.query import microseconds, moment
from keibi.manager.events.store import EventStore, checked_day
from keibi.manager.events.tables import RetentionRecord

DEFAULT_DAYS = 90
MAX_DAYS = 3660
QUARANTINE_DAYS = 30

_DAY_SECONDS = 86400
_WAIT = {"mutations_sync": 1}
"""Come back only when the rows are gone."""


class _Held(msgspec.Struct):
    day: str
    tenant_id: str
    module: str
    count: int


class EventRetention:
    """The rules, and `apply_retention`, which a daily job calls."""

    def __init__(self, store: EventStore, database: Database, audit: AuditService, clock: Callable[[], float]) -> None:
        self._store = store
        self._database = database
        self._audit = audit
        self._clock = clock

    def rules(self, principal: Principal) -> list[RetentionRule]:
        """Return the rules of the principal's tenants; a tenant without a general rule shows the default one.

        Raises:
            AccessError: events may not be seen.
        """
        principal.require("events.view")
        tenant_ids = principal.tenants_where("events.view")
        with self._database.session(principal.scope(), writes=False) as session:
            records = session.scalars(select(RetentionRecord)).all()
            found = [
                RetentionRule(record.tenant_id, ModuleId(record.module) if record.module else None, record.days)
                for record in records
                if record.tenant_id in tenant_ids
            ]
        general = {rule.tenant_id for rule in found if rule.module is None}
        found += [RetentionRule(tenant_id, None, DEFAULT_DAYS, is_default=True) for tenant_id in tenant_ids - general]
        return sorted(found, key=lambda rule: (rule.tenant_id, rule.module or ""))

    def change(self, principal: Principal, module: ModuleId | None, days: int | None) -> None:
        """Set the rule of the chosen tenant for a module (None: all others); `days` None removes it.

        Raises:
            AccessError: settings may not be changed.
            InputError: a number of days outside 1 to 3660, or no tenant is chosen.
        """
        tenant_id = principal.home_tenant_id
        principal.require("settings.edit", tenant_id=tenant_id)
        if days is not None and not 1 <= days <= MAX_DAYS:
            raise InputError("days_invalid", f"events can be kept for 1 to {MAX_DAYS} days, not {days}", where="days")
        name = module.value if module else ""
        with self._database.session(principal.scope()) as session:
            record = session.get(RetentionRecord, (tenant_id, name))
            before = record.days if record else None
            if days is None:
                if record is not None:
                    session.delete(record)
            elif record is None:
                session.add(
                    RetentionRecord(
                        tenant_id=tenant_id, module=name, days=days, changed_at=self._clock(), changed_by=principal.actor
                    )
                )
            else:
                record.days, record.changed_at, record.changed_by = days, self._clock(), principal.actor
            told = f"{days} days" if days is not None else "the default"
            self._audit.record(
                session,
                principal,
                "event_retention.change",
                "event_retention",
                name or "all",
                f"events of {name or 'all modules'} are kept for {told}",
                {"before": before, "after": days},
                tenant_id=tenant_id,
            )

    def apply_retention(self, now: float) -> RetentionOutcome:
        """Remove what is older than the rules allow, whole days at a time; safe to repeat and to interrupt.

        A day of which nobody keeps anything is dropped at once. Of other days one statement removes all that is over, so that
        a day's file is written anew at most once for each age that some tenant chose.
        """
        with self._database.session(Scope.system("retention"), writes=False) as session:
            rules = {(record.tenant_id, record.module): record.days for record in session.scalars(select(RetentionRecord))}
        removed = 0
        dropped: list[str] = []
        for day, held in self._held().items():
            end_at = calendar.timegm(time.strptime(day, "%Y-%m-%d")) + _DAY_SECONDS
            over = [each for each in held if end_at <= now - _days(rules, each) * _DAY_SECONDS]
            if not over:
                continue
            if len(over) == len(held):
                self._drop(day)
                dropped.append(day)
            else:
                self._remove(day, over)
            removed += sum(each.count for each in over)
        self._store.client.raw(
            f"ALTER TABLE {self._store.database}.events_quarantine{self._store.deployment.on_cluster()}"
            f" DELETE WHERE received_at < {moment('cutoff')}",
            {"cutoff": microseconds(now - QUARANTINE_DAYS * _DAY_SECONDS)},
            settings=_WAIT,
        )
        if removed:
            self._drop_tags()
        return RetentionOutcome(removed_count=removed, dropped_days=tuple(dropped))

    def _held(self) -> dict[str, list[_Held]]:
        """Return for each day which tenants' events of which modules there are."""
        sql = f"""SELECT toString(toDate(hour)) AS day, tenant_id, module, sum(count) AS count
FROM {self._store.database}.events_hourly GROUP BY day, tenant_id, module ORDER BY day"""
        days: dict[str, list[_Held]] = {}
        for held in self._store.client.select(sql, {}, _Held):
            days.setdefault(checked_day(held.day), []).append(held)
        return days

    def _drop(self, day: str) -> None:
        database, on_cluster = self._store.database, self._store.deployment.on_cluster()
        # The counts last: they say what is left to do when this is interrupted.
        for table in ("events", "events_hourly"):
            self._store.client.raw(f"ALTER TABLE {database}.{table}{on_cluster} DROP PARTITION '{day}'")

    def _remove(self, day: str, over: Sequence[_Held]) -> None:
        database, on_cluster = self._store.database, self._store.deployment.on_cluster()
        keys = [f"{each.tenant_id} {each.module}" for each in over]
        for table in ("events", "events_hourly"):
            self._store.client.raw(
                f"ALTER TABLE {database}.{table}{on_cluster} DELETE IN PARTITION '{day}'"
                " WHERE concat(tenant_id, ' ', module) IN {keys:Array(String)}",
                {"keys": keys},
                settings=_WAIT,
            )

    def _drop_tags(self) -> None:
        """Remove the tags of events that are gone."""
        database, on_cluster = self._store.database, self._store.deployment.on_cluster()
        self._store.client.raw(
            f"ALTER TABLE {database}.event_tags{on_cluster} DELETE"
            f" WHERE (tenant_id, event_id) NOT IN (SELECT tenant_id, event_id FROM {database}.events"
            f" WHERE event_id IN (SELECT event_id FROM {database}.event_tags))",
            settings=_WAIT,
        )


def _days(rules: Mapping[tuple[str, str], int], held: _Held) -> int:
    return rules.get((held.tenant_id, held.module)) or rules.get((held.tenant_id, "")) or DEFAULT_DAYS
