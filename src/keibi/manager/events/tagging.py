"""Words that people put on events. They stand in a table of their own: tags never alter events."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
import pyarrow as pa

from keibi.errors import AccessError, InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database
from keibi.manager.events.columns import stream
from keibi.manager.events.model import TagCount, check_tag
from keibi.manager.events.query import microseconds, visible
from keibi.manager.events.reach import ComputersOfGroups, reach_of
from keibi.manager.events.store import INSERT_SETTINGS, QUERY_LIMITS, EventStore

MAX_TAGGED_AT_ONCE = 10_000


class _Found(msgspec.Struct):
    tenant_id: str
    id: str
    detected_us: int


class EventTags:
    """Puts tags on events and takes them off; each act is in the audit trail, once for each tenant that it touched."""

    def __init__(
        self,
        store: EventStore,
        database: Database,
        audit: AuditService,
        computers: ComputersOfGroups,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._database = database
        self._audit = audit
        self._computers = computers
        self._clock = clock

    def add(self, principal: Principal, event_ids: Sequence[str], tag: str) -> int:
        """Put a tag on events; return how many events were found. Putting it twice is the same as once.

        Raises:
            AccessError: events may not be tagged.
            InputError: a bad tag, a bad id or too many of them.
        """
        return self._set(principal, event_ids, tag, is_set=True)

    def remove(self, principal: Principal, event_ids: Sequence[str], tag: str) -> int:
        """Take a tag off events; return how many events were found.

        Raises:
            AccessError: events may not be tagged.
            InputError: a bad tag, a bad id or too many of them.
        """
        return self._set(principal, event_ids, tag, is_set=False)

    def in_use(self, principal: Principal) -> list[TagCount]:
        """Return the tags on events that the principal may see, the most used first.

        Raises:
            AccessError: events may not be seen.
        """
        principal.require("events.view")
        reach = reach_of(principal, "events.view", self._computers)
        if reach.is_empty:
            return []
        condition = visible(reach)
        sql = f"""SELECT tag, count() AS event_count FROM {self._store.database}.event_tags FINAL
WHERE is_set = 1 AND (tenant_id, event_id) IN (SELECT tenant_id, event_id FROM {self._store.database}.events WHERE {condition.sql}
    AND event_id IN (SELECT event_id FROM {self._store.database}.event_tags))
GROUP BY tag ORDER BY event_count DESC, tag LIMIT 1000"""
        return self._store.client.select(sql, condition.parameters, TagCount, settings=QUERY_LIMITS)

    def _set(self, principal: Principal, event_ids: Sequence[str], tag: str, *, is_set: bool) -> int:
        principal.require("events.tag")
        tag = check_tag(tag)
        if not 0 < len(event_ids) <= MAX_TAGGED_AT_ONCE:
            raise InputError(
                "events_too_many", f"{len(event_ids)} events are named; 1 to {MAX_TAGGED_AT_ONCE} can be tagged at once"
            )
        for event_id in event_ids:
            if len(event_id) != 32 or not all(character in "0123456789abcdef" for character in event_id):
                raise InputError("event_id_invalid", f"{event_id[:64]!r} is not the id of an event")
        found = self._found(principal, event_ids)
        if not found:
            return 0
        by_tenant: dict[str, list[_Found]] = defaultdict(list)
        for event in found:
            by_tenant[event.tenant_id].append(event)
        verb, past = ("tag", "tagged as") if is_set else ("untag", "no longer tagged as")
        with self._database.session(principal.scope()) as session:
            for tenant_id, events in sorted(by_tenant.items()):
                one = events[0].id if len(events) == 1 else ""
                self._audit.record(
                    session,
                    principal,
                    f"event.{verb}",
                    "event",
                    one,
                    f"{len(events)} event{'s' if len(events) != 1 else ''} {past} {tag!r}",
                    {"tag": tag, "event_ids": [event.id for event in events[:100]], "event_count": len(events)},
                    tenant_id=tenant_id,
                )
            # Inside the transaction: when the store does not take the tags, the trail does not say that it did.
            self._write(found, tag, principal.actor, is_set=is_set)
        return len(found)

    def _found(self, principal: Principal, event_ids: Sequence[str]) -> list[_Found]:
        reach = reach_of(principal, "events.tag", self._computers)
        if reach.is_empty:
            raise AccessError("not_allowed", f"{principal.name} may not tag events here", hint="ask an administrator")
        condition = visible(reach)
        condition.add("event_id IN (SELECT unhex(arrayJoin({ids:Array(String)})))", ids=sorted(set(event_ids)))
        sql = f"""SELECT DISTINCT tenant_id, lower(hex(event_id)) AS id, toUnixTimestamp64Micro(detected_at) AS detected_us
FROM {self._store.database}.events WHERE {condition.sql}"""
        return self._store.client.select(sql, condition.parameters, _Found, settings=QUERY_LIMITS)

    def _write(self, found: Sequence[_Found], tag: str, actor: str, *, is_set: bool) -> None:
        count = len(found)
        moment = pa.timestamp("us", tz="UTC")
        table = pa.table(
            {
                "tenant_id": pa.array([event.tenant_id for event in found], pa.string()),
                "event_id": pa.array([bytes.fromhex(event.id) for event in found], pa.binary(16)),
                "tag": pa.array([tag] * count, pa.string()),
                "is_set": pa.array([int(is_set)] * count, pa.uint8()),
                "detected_at": pa.array([event.detected_us for event in found], pa.int64()).cast(moment),
                "set_by": pa.array([actor] * count, pa.string()),
                "set_at": pa.array([microseconds(self._clock())] * count, pa.int64()).cast(moment),
            }
        )
        sql = f"INSERT INTO {self._store.database}.event_tags ({', '.join(table.column_names)}) FORMAT ArrowStream"
        self._store.client.insert(sql, stream(table), settings=INSERT_SETTINGS)
