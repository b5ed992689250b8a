"""Finding events: lists, one event, its surroundings, charts, and what is new.

Every answer is narrowed to what the asker may see.
"""

import re
import time
from collections.abc import Callable, Iterator

from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database
from keibi.manager.events.export import csv_lines
from keibi.manager.events.feed import EventFeed
from keibi.manager.events.model import (
    EventQuery,
    EventRecord,
    EventRow,
    EventSeries,
    SeriesKey,
    Surroundings,
    Tail,
    TopField,
    TopRow,
)
from keibi.manager.events.model import check_query as checked
from keibi.manager.events.query import Condition, is_coarse, matching, microseconds, moment, visible
from keibi.manager.events.reach import ComputersOfGroups, Reach, StoredComputers, reach_of
from keibi.manager.events.retention import EventRetention
from keibi.manager.events.rows import StoredRow, read_rows, recorded, shaped
from keibi.manager.events.series import hourly_condition, read_series
from keibi.manager.events.store import QUERY_LIMITS, EventStore
from keibi.manager.events.tagging import EventTags
from keibi.manager.paging import Page, check_limit, decode_cursor, encode_cursor

VIEW = "events.view"
SEARCH_STEPS_SECONDS = (3600.0, 86400.0, 7 * 86400.0)
"""How far back a page is looked for at first: most pages are of the last hours, and reading less is reading faster."""
SURROUNDINGS_SECONDS = 3600.0
MAX_EXPORT_EVENTS = 1_000_000
EVENT_ID = "toFixedString(unhex({id:String}), 16)"
AFTER_ID = "toFixedString(unhex({after_id:String}), 16)"
NEAR_US = 3600 * 10**6

_EVENT_ID = re.compile(r"[0-9a-f]{32}")
_TOP_FIELDS = {
    "computer_id": "computer_id",
    "rule_id": "rule_id",
    "subject": "subject",
    "user": "user",
    "login_user": "login_user",
    "process": "process",
    "kind": "kind",
    "module": "module",
    "severity": "['', 'low', 'medium', 'high', 'critical'][severity + 1]",
    "action": "action",
}
_NEWEST = "detected_at DESC, event_id DESC"
_OLDEST = "detected_at ASC, event_id ASC"


class EventService:
    """What the console, the API and the command line ask of the event store. Calls block: use a worker thread."""

    def __init__(
        self,
        store: EventStore,
        database: Database,
        audit: AuditService,
        *,
        feed: EventFeed | None = None,
        computers: ComputersOfGroups | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._computers = computers or StoredComputers(database)
        self._clock = clock
        self.feed = feed or EventFeed()
        self.tags = EventTags(store, database, audit, self._computers, clock)
        self.retention = EventRetention(store, database, audit, clock)

    def search(self, principal: Principal, query: EventQuery, cursor: str | None = None, limit: int = 50) -> Page[EventRow]:
        """Return one page, newest first (or oldest first); pages do not shift when events arrive.

        Raises:
            AccessError: events may not be seen.
            InputError: a bad query, cursor or limit.
        """
        check_limit(limit)
        condition = self._matching(principal, query)
        if condition is None:
            return Page([], None)
        is_newest = query.order == "newest"
        newest_us = microseconds(query.until if query.until is not None else self._clock() + 86400.0)
        if cursor:
            at_us, event_id = _position(cursor)
            _add_after(condition, at_us, event_id, "<" if is_newest else ">")
            newest_us = min(newest_us, at_us)
        rows = (
            self._newest(condition, newest_us, limit + 1) if is_newest else read_rows(self._store, condition, _OLDEST, limit + 1)
        )
        more = encode_cursor([rows[limit - 1].detected_us, rows[limit - 1].id]) if len(rows) > limit else None
        return Page(shaped(self._store, rows[:limit]), more)

    def count(self, principal: Principal, query: EventQuery) -> int:
        """Return how many events there are, exactly.

        Raises:
            AccessError: events may not be seen.
            InputError: a bad query.
        """
        condition = self._matching(principal, query)
        if condition is None:
            return 0
        sql = f"SELECT count() FROM {self._store.database}.events WHERE {condition.sql}"
        return int(self._store.client.raw(sql, condition.parameters, settings=QUERY_LIMITS))

    def get(self, principal: Principal, event_id: str) -> EventRecord:
        """Return one event with everything about it.

        Raises:
            AccessError: events may not be seen.
            InputError: there is no such event, or it is not the principal's to see.
        """
        return recorded(self._store, self._stored(principal, event_id))

    def around(self, principal: Principal, event_id: str, limit: int = 20) -> Surroundings:
        """Return the events of the same computer within an hour before and after one event, the nearest first.

        Raises:
            AccessError: events may not be seen.
            InputError: there is no such event, or it is not the principal's to see; a bad limit.
        """
        check_limit(limit)
        event = self._stored(principal, event_id)
        sides = []
        for comparison, order, seconds in (("<", _NEWEST, -SURROUNDINGS_SECONDS), (">", _OLDEST, SURROUNDINGS_SECONDS)):
            condition = self._of_tenant(event.tenant_id)
            condition.add("computer_id = {computer:String}", computer=event.computer_id)
            _add_after(condition, event.detected_us, event.id, comparison)
            edge = event.detected_us + int(seconds * 1e6)
            beyond = ">=" if seconds < 0 else "<="
            condition.add(f"detected_at {beyond} {moment('edge')}", edge=edge)
            sides.append(shaped(self._store, read_rows(self._store, condition, order, limit)))
        return Surroundings(before=sides[0], after=sides[1])

    def series(
        self, principal: Principal, query: EventQuery, buckets: int = 48, by: SeriesKey = "module", time_zone: str = "UTC"
    ) -> EventSeries:
        """Return counts over time in at most about `buckets` steps of a natural length; without a period, of the last 24 hours.

        Raises:
            AccessError: events may not be seen.
            InputError: a bad query, number of buckets or time zone.
        """
        principal.require(VIEW)
        return read_series(self._store, checked(query), self._reach(principal), buckets, by, time_zone, self._clock())

    def top(self, principal: Principal, query: EventQuery, field: TopField, limit: int = 10) -> list[TopRow]:
        """Return the values of a field that most events have, with how many events and computers; empty values do not count.

        Raises:
            AccessError: events may not be seen.
            InputError: a bad query, field or limit.
        """
        check_limit(limit)
        if field not in _TOP_FIELDS:
            raise InputError(
                "field_invalid", f"events cannot be ranked by {field!r}", hint=f"use one of: {', '.join(_TOP_FIELDS)}"
            )
        condition = self._matching(principal, query)
        if condition is None:
            return []
        value = _TOP_FIELDS[field]
        table, count = "events", "count()"
        if is_coarse(query) and field in {"computer_id", "kind", "module", "severity", "action"}:
            table, count = "events_hourly", "sum(count)"
            condition = hourly_condition(query, self._reach(principal))
        sql = f"""SELECT toString({value}) AS value, {count} AS count, uniqExact(computer_id) AS computer_count
FROM {self._store.database}.{table} WHERE {condition.sql}
GROUP BY value HAVING value != '' ORDER BY count DESC, value LIMIT {limit}"""
        return self._store.client.select(sql, condition.parameters, TopRow, settings=QUERY_LIMITS)

    def tail(self, principal: Principal, query: EventQuery, after: str | None = None, limit: int = 200) -> Tail:
        """Return what arrived after the cursor, in the order of arrival; without a cursor nothing yet, and where to begin.

        Events that an agent had spooled come here when they arrive, however long ago they were detected.

        Raises:
            AccessError: events may not be seen.
            InputError: a bad query, cursor or limit.
        """
        check_limit(limit)
        condition = self._matching(principal, query)
        if not after:
            newest = "toUnixTimestamp64Micro(max(received_at))"
            sql = f"SELECT {newest} FROM {self._store.database}.events WHERE detected_at >= today() - 1"
            newest_us = int(self._store.client.raw(sql, settings=QUERY_LIMITS))
            return Tail((), encode_cursor([newest_us or microseconds(self._clock()), "f" * 32]))
        at_us, event_id = _position(after)
        if condition is None:
            return Tail((), after)
        condition.add(
            f"received_at > {moment('at')} OR (received_at = {moment('at')} AND event_id > {EVENT_ID})",
            at=at_us,
            id=event_id,
        )
        rows = read_rows(self._store, condition, "received_at ASC, event_id ASC", limit)
        return Tail(shaped(self._store, rows), encode_cursor([rows[-1].received_us, rows[-1].id]) if rows else after)

    def export_csv(self, principal: Principal, query: EventQuery, language: str = "en") -> Iterator[str]:
        """Return an iterator over the lines of a CSV file of all matching events, up to MAX_EXPORT_EVENTS.

        Raises:
            AccessError: events may not be seen.
            InputError: a bad query.
        """
        principal.require(VIEW)
        checked(query)
        return csv_lines(self._all_pages(principal, query), language)

    def _all_pages(self, principal: Principal, query: EventQuery) -> Iterator[EventRow]:
        cursor: str | None = None
        sent = 0
        while sent < MAX_EXPORT_EVENTS:
            page = self.search(principal, query, cursor, 1000)
            yield from page.items
            sent += len(page.items)
            cursor = page.next_cursor
            if cursor is None:
                return

    def _newest(self, condition: Condition, newest_us: int, limit: int) -> list[StoredRow]:
        """Return the newest rows, looking through the last hour first, then the last day, the last week, and all."""
        for seconds in SEARCH_STEPS_SECONDS:
            narrow = Condition([*condition.clauses], {**condition.parameters})
            since = newest_us - int(seconds * 1e6)
            narrow.add(f"detected_at >= {moment('step')}", step=since)
            rows = read_rows(self._store, narrow, _NEWEST, limit)
            if len(rows) >= limit:
                return rows
        return read_rows(self._store, condition, _NEWEST, limit)

    def _stored(self, principal: Principal, event_id: str) -> StoredRow:
        principal.require(VIEW)
        reach = self._reach(principal)
        if _EVENT_ID.fullmatch(event_id) and not reach.is_empty:
            # The id begins with the time at which the event was born; where the clock was right, it is near there.
            born_us = int(event_id[:12], 16) * 1000
            for is_near in (True, False):
                condition = visible(reach).add(f"event_id = {EVENT_ID}", id=event_id)
                if is_near:
                    condition.add(f"detected_at BETWEEN {moment('near_since')} AND {moment('near_until')}")
                    condition.parameters |= {
                        "near_since": max(0, born_us - NEAR_US),
                        "near_until": min(born_us + NEAR_US, 4 * 10**15),
                    }
                rows = read_rows(self._store, condition, "received_at", 1, with_details=True)
                if rows:
                    return rows[0]
        raise InputError(
            "event_not_found",
            f"there is no event {event_id[:64]!r}",
            hint="it may have been removed by retention, or is not yours to see",
        )

    def _reach(self, principal: Principal) -> Reach:
        return reach_of(principal, VIEW, self._computers)

    def _matching(self, principal: Principal, query: EventQuery) -> Condition | None:
        """Return the query's condition for this principal, or None when nothing may be seen."""
        principal.require(VIEW)
        checked(query)
        reach = self._reach(principal)
        return None if reach.is_empty else matching(query, reach, database=self._store.database)

    @staticmethod
    def _of_tenant(tenant_id: str) -> Condition:
        return visible(Reach(frozenset({tenant_id})))


def arrival_cursor(row: EventRow) -> str:
    """Return the cursor of the live view that stands right after this event."""
    return encode_cursor([microseconds(row.received_at), row.event_id])


def _position(cursor: str) -> tuple[int, str]:
    at_us, event_id = decode_cursor(cursor, 2)
    if not isinstance(at_us, int) or not isinstance(event_id, str) or not _EVENT_ID.fullmatch(event_id) or not 0 <= at_us < 2**62:
        raise InputError("cursor_invalid", f"{cursor[:40]!r} is not a cursor of this list", hint="start again at the first page")
    return at_us, event_id


def _add_after(condition: Condition, at_us: int, event_id: str, comparison: str) -> None:
    """Add "comes after this event" in the order of detection; the first half lets the primary key skip what cannot."""
    here = moment("after_us")
    condition.add(
        f"detected_at {comparison}= {here} AND (detected_at {comparison} {here} OR event_id {comparison} {AFTER_ID})",
        after_us=at_us,
        after_id=event_id,
    )
