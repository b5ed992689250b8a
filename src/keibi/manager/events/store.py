"""The event store: its schema, inserts that are safe to repeat, and what else changes it."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from keibi.errors import InputError, TryLaterError
from keibi.manager.events.client import ClickHouse, Value
from keibi.manager.events.columns import Columns, Span, stream
from keibi.manager.events.schema import SCHEMA_VERSION, Deployment, rollup_query, statements

MAX_FILTERED = 200
"""Up to so many computers or tenants are named in the check for repeats; beyond, the time span alone bounds it."""

QUERY_LIMITS: Mapping[str, str | int] = {"max_execution_time": 20, "max_memory_usage": 1024**3, "max_threads": 4}
CHECK_LIMITS: Mapping[str, str | int] = {"max_execution_time": 60, "max_threads": 1}
INSERT_SETTINGS: Mapping[str, str | int] = {
    "max_execution_time": 60,
    # Spooled events of an agent that was away can span more days than the default of 100.
    "max_partitions_per_insert_block": 0,
    "async_insert": 0,
    # One thread does an insert with less CPU than several. The check before it has removed repeats, so the engine need not
    # fold rows; and the merge that follows builds the indexes, for small new parts are read quickly without them.
    "max_threads": 1,
    "max_insert_threads": 1,
    "input_format_parallel_parsing": 0,
    "optimize_on_insert": 0,
    "materialize_skip_indexes_on_insert": 0,
}

logger = logging.getLogger("keibi.events")


@dataclass(frozen=True, kw_only=True)
class StoreSize:
    """How much the store holds."""

    event_count: int
    disk_bytes: int
    oldest_at: float | None


class EventStore:
    """The tables in ClickHouse, spoken to through `client`."""

    def __init__(self, client: ClickHouse, deployment: Deployment | None = None) -> None:
        self.client = client
        self.deployment = deployment or Deployment()
        self.database = self.deployment.database

    def prepare(self) -> None:
        """Create what is missing, mend the rollup after a crash, and touch every path once, so that nothing stalls later.

        Raises:
            InputError: the store was made by a newer Keibi.
        """
        for statement in statements(self.deployment):
            self.client.raw(statement)
        found = int(self.client.raw(f"SELECT max(version) FROM {self.database}.schema_version"))
        if found > SCHEMA_VERSION:
            raise InputError(
                "event_store_newer",
                f"the event store has schema version {found}, this Keibi knows {SCHEMA_VERSION}",
                hint="start the Keibi version that wrote it, or a newer one",
            )
        if found < SCHEMA_VERSION:
            self.client.raw(
                f"INSERT INTO {self.database}.schema_version SELECT {{version:UInt32}}, now64(6)", {"version": SCHEMA_VERSION}
            )
        repaired = self.repair_rollup()
        if repaired:
            logger.warning(
                "the hourly counts of %s were made anew, because the store had stopped in mid-insert", ", ".join(repaired)
            )

    def insert(self, columns: Columns) -> int:
        """Store what `columns` holds, except what is stored already; return how many rows were new.

        Repeating a call that failed is safe: its token names this flush, and ids that did get stored are not stored again.

        Raises:
            TryLaterError: the store is away, busy or full; nothing or everything is stored.
        """
        try:
            table = columns.table
            known = self._known_ids(columns.spans)
            if not known.isdisjoint(columns.event_ids):
                stored = self._known_events(columns.spans)
                rows = enumerate(zip(columns.tenant_ids, columns.event_ids, strict=True))
                new = [position for position, row in rows if row not in stored]
                table = table.take(pa.array(new, pa.int64()))
            if table.num_rows:
                names = ", ".join(table.column_names)
                sql = f"INSERT INTO {self.database}.events ({names}) FORMAT ArrowStream"
                self.client.insert(sql, stream(table), settings={**INSERT_SETTINGS, "insert_deduplication_token": columns.token})
        except InputError as error:
            raise TryLaterError("event_store_busy", f"the event store could not take the events: {error.message}") from error
        return int(table.num_rows)

    def _known_ids(self, spans: Sequence[Span]) -> frozenset[bytes]:
        """Return the ids of all events in these spans: 16 bytes each, because nearly always none of them comes again."""
        if not spans:
            return frozenset()
        where, parameters = _within(spans)
        body = self.client.raw(
            f"SELECT event_id FROM {self.database}.events WHERE {where}",
            parameters,
            output_format="RowBinary",
            settings=CHECK_LIMITS,
        )
        return frozenset(body[position : position + 16] for position in range(0, len(body), 16))

    def _known_events(self, spans: Sequence[Span]) -> frozenset[tuple[str, bytes]]:
        """Return tenant and id of all events in these spans; two tenants may have the same id, if only by malice."""
        where, parameters = _within(spans)
        sql = f"SELECT tenant_id, lower(hex(event_id)) AS event_id FROM {self.database}.events WHERE {where}"
        rows = self.client.select(sql, parameters, _Key, settings=CHECK_LIMITS)
        return frozenset((row.tenant_id, bytes.fromhex(row.event_id)) for row in rows)

    def quarantine(self, columns: Columns, at: float) -> None:
        """Keep events aside that could not be kept as they were."""
        rows = [
            {
                "tenant_id": event.tenant_id,
                "computer_id": event.computer_id,
                "received_at": f"{at:.6f}",
                "event_id": event.event_id,
                "reason": event.reason,
                "event": event.event,
            }
            for event in columns.quarantined
        ]
        self.client.insert(
            f"INSERT INTO {self.database}.events_quarantine FORMAT JSONEachRow",
            b"\n".join(map(msgspec.json.encode, rows)),
            settings={**INSERT_SETTINGS, "insert_deduplication_token": columns.token},
        )

    def repair_rollup(self) -> list[str]:
        """Make the hourly counts anew for each day on which they differ from the events; return those days.

        The store writes a flush and its counts as two parts: a kill between the two loses the second. Nothing may be inserted
        meanwhile, so it is for the embedded store only, and for the one thread that inserts there.
        """
        if self.deployment.cluster:
            return []
        database = self.database
        sql = f"""SELECT toString(day) AS day FROM (
    SELECT toDate(detected_at) AS day, count() AS events, 0 AS counted FROM {database}.events GROUP BY day
    UNION ALL SELECT toDate(hour) AS day, 0 AS events, sum(count) AS counted FROM {database}.events_hourly GROUP BY day
) GROUP BY day HAVING sum(events) != sum(counted) ORDER BY day"""
        days = [row.day for row in self.client.select(sql, {}, _Day)]
        for day in days:
            self.client.raw(
                f"ALTER TABLE {database}.events_hourly{self.deployment.on_cluster()} DROP PARTITION '{checked_day(day)}'"
            )
            where = "toDate(detected_at) = {day:Date}"
            self.client.raw(f"INSERT INTO {database}.events_hourly {rollup_query(self.deployment, where=where)}", {"day": day})
        return days

    def size(self) -> StoreSize:
        """Return how much the store holds, for status and metrics."""
        (row,) = self.client.select(
            f"""SELECT (SELECT count() FROM {self.database}.events) AS event_count,
(SELECT sum(bytes_on_disk) FROM system.parts WHERE database = {{database:String}} AND active) AS disk_bytes,
(SELECT if(count() = 0, NULL, toFloat64(min(detected_at))) FROM {self.database}.events) AS oldest_at""",
            {"database": self.database},
            _Size,
            settings=QUERY_LIMITS,
        )
        return StoreSize(event_count=row.event_count, disk_bytes=row.disk_bytes, oldest_at=row.oldest_at)

    def wait_until_alive(self, limit_seconds: float) -> bool:
        """Return whether the store answers within the limit."""
        deadline = time.monotonic() + limit_seconds
        while not self.client.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


class _Key(msgspec.Struct):
    tenant_id: str
    event_id: str


class _Day(msgspec.Struct):
    day: str


class _Size(msgspec.Struct):
    event_count: int
    disk_bytes: int
    oldest_at: float | None


def checked_day(day: str) -> str:
    """Return the day if it is one and nothing else."""
    # A partition's name cannot be a parameter; which is why this is made sure of here.
    return time.strftime("%Y-%m-%d", time.strptime(day, "%Y-%m-%d"))


def _within(spans: Sequence[Span]) -> tuple[str, dict[str, Value]]:
    """Return the condition "in one of these spans", and its parameters."""
    clauses: list[str] = []
    parameters: dict[str, Value] = {}
    for number, span in enumerate(spans):
        since = f"fromUnixTimestamp64Micro({{since{number}:Int64}}, 'UTC')"
        until = f"fromUnixTimestamp64Micro({{until{number}:Int64}}, 'UTC')"
        clause = f"detected_at BETWEEN {since} AND {until}"
        parameters |= {f"since{number}": span.since_us, f"until{number}": span.until_us}
        if len(span.tenant_ids) <= MAX_FILTERED:
            clause += f" AND tenant_id IN {{tenants{number}:Array(String)}}"
            parameters[f"tenants{number}"] = sorted(span.tenant_ids)
        if len(span.computer_ids) <= MAX_FILTERED:
            clause += f" AND computer_id IN {{computers{number}:Array(String)}}"
            parameters[f"computers{number}"] = sorted(span.computer_ids)
        clauses.append(f"({clause})")
    return " OR ".join(clauses), parameters
