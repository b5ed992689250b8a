"""Events on disk until the manager has them: SQLite, WAL, every commit flushed.

Theory of operation. `append` commits a group of events at once; only then may anybody count on them. `take_batch` names the
oldest events as one batch and keeps that name, so that a batch which must be sent again, even by the next run of the agent,
is the same batch; `ack` forgets it. When the bound in bytes is reached, the least severe events go first and of those the
oldest, never one of the batch under way; what went is counted in the same commit and becomes an event of its own when the
next batch is taken.

Not thread-safe: all calls come from one `Lane`.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from keibi.agent.spool_salvage import move_aside, read_what_can_be_read
from keibi.contract.events import Event, EventAction
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.contract.status import SpoolStatus
from keibi.errors import TryLaterError

MAX_BATCH_EVENTS = 2000
MAX_BATCH_BYTES = 4 * 1024 * 1024
MAX_EVENT_BYTES = 1024 * 1024
"""An event above this loses its details: one event must not crowd out a batch."""
_BATCH = "batch"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, event_id BLOB NOT NULL UNIQUE, keep INTEGER NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_keep ON events (keep, seq);
CREATE TABLE IF NOT EXISTS dropped (
    module TEXT NOT NULL, severity TEXT NOT NULL, count INTEGER NOT NULL, unreported INTEGER NOT NULL,
    PRIMARY KEY (module, severity)
);
CREATE TABLE IF NOT EXISTS refused (event_id BLOB NOT NULL UNIQUE, body BLOB NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""


class Batch(msgspec.Struct, frozen=True):
    """Events as they are sent: `contract.events.EventBatch` with bodies that are encoded already."""

    batch_id: str
    events: list[msgspec.Raw]
    dropped_since_last: int = 0


class _BatchUnderWay(msgspec.Struct, frozen=True):
    batch_id: str
    first: int
    last: int
    dropped: int


class Spool:
    """The events that wait in one file."""

    def __init__(self, path: str, *, max_bytes: int) -> None:
        """Open the spool; one that is corrupt is moved aside, and what can be read of it is kept.

        Raises:
            TryLaterError: the disk is full, read-only or broken.
        """
        self.path = path
        self.corruption = ""
        self._max_bytes = max_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._open()

    def reopen(self) -> None:
        """Open the file anew, after a call raised `spool_corrupt`.

        Raises:
            TryLaterError: the disk is full, read-only or broken.
        """
        self.close()
        self._open()

    def _open(self) -> None:
        with _disk_troubles(self.path):
            try:
                self._connection = _open(self.path)
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
                self._connection = self._recover(error)
            self._waiting_count, self._waiting_bytes = self._connection.execute(
                "SELECT count(*), coalesce(sum(size), 0) FROM events"
            ).fetchone()

    def append(self, events: list[Event]) -> int:
        """Put events on disk; those whose id is there already are ignored. Returns how many are new.

        Raises:
            TryLaterError: the disk is full or broken: none of these events is kept.
        """
        rows = [self._row(event) for event in events]
        with self._transaction() as connection:
            before = connection.total_changes
            connection.executemany("INSERT OR IGNORE INTO events (event_id, keep, size, body) VALUES (?, ?, ?, ?)", rows)
            added = connection.total_changes - before
            if added == len(rows):
                waiting_bytes = self._waiting_bytes + sum(row[2] for row in rows)
            else:
                waiting_bytes = connection.execute("SELECT coalesce(sum(size), 0) FROM events").fetchone()[0]
            waiting_count = self._waiting_count + added
            if waiting_bytes > self._max_bytes:
                dropped_count, dropped_bytes = self._drop(connection, waiting_bytes - self._max_bytes)
                waiting_count -= dropped_count
                waiting_bytes -= dropped_bytes
        # Only after the commit: one that failed has changed nothing.
        self._waiting_count, self._waiting_bytes = waiting_count, waiting_bytes
        return added

    def take_batch(self, *, max_events: int = MAX_BATCH_EVENTS, max_bytes: int = MAX_BATCH_BYTES) -> Batch | None:
        """Return the oldest events under a batch id that stays theirs until `ack`; None when nothing waits.

        Raises:
            TryLaterError: the disk is full or broken.
        """
        with self._transaction() as connection:
            under_way = self._under_way(connection)
            added: list[tuple[bytes, int, int, bytes]] = []
            if under_way is None:
                added = self._report_drops(connection)
                under_way = self._name_batch(connection, max_events, max_bytes)
            bodies = []
            if under_way is not None:
                query = "SELECT body FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq"
                bodies = [msgspec.Raw(body) for (body,) in connection.execute(query, (under_way.first, under_way.last))]
        self._waiting_count += len(added)
        self._waiting_bytes += sum(row[2] for row in added)
        return Batch(under_way.batch_id, bodies, under_way.dropped) if under_way is not None else None

    def ack(self, batch_id: str) -> None:
        """Forget the events of this batch: the manager has them. Another id than that of the batch under way is ignored.

        Raises:
            TryLaterError: the disk is full or broken; the batch will be sent again.
        """
        with self._transaction() as connection:
            under_way = self._under_way(connection)
            if under_way is None or under_way.batch_id != batch_id:
                return
            taken = connection.execute(
                "SELECT count(*), coalesce(sum(size), 0) FROM events WHERE seq BETWEEN ? AND ?", (under_way.first, under_way.last)
            ).fetchone()
            connection.execute("DELETE FROM events WHERE seq BETWEEN ? AND ?", (under_way.first, under_way.last))
            connection.execute("DELETE FROM state WHERE name = ?", (_BATCH,))
        self._waiting_count -= taken[0]
        self._waiting_bytes -= taken[1]

    def split(self, batch_id: str) -> None:
        """Undo the batch under way, so that its events can be taken in smaller ones."""
        with self._transaction() as connection:
            under_way = self._under_way(connection)
            if under_way is not None and under_way.batch_id == batch_id:
                connection.execute("DELETE FROM state WHERE name = ?", (_BATCH,))

    def set_aside(self, batch_id: str, reason: str) -> None:
        """Keep the events of this batch on disk but out of the way: the manager will never take them. Then `ack` it."""
        with self._transaction() as connection:
            under_way = self._under_way(connection)
            if under_way is not None and under_way.batch_id == batch_id:
                connection.execute(
                    "INSERT OR IGNORE INTO refused SELECT event_id, body, ?, ? FROM events WHERE seq BETWEEN ? AND ?",
                    (reason, time.time(), under_way.first, under_way.last),
                )
                connection.execute("DELETE FROM refused WHERE rowid <= (SELECT max(rowid) - 1000 FROM refused)")
        self.ack(batch_id)

    def status(self) -> SpoolStatus:
        """Return how much waits, and how much was dropped since the spool was made."""
        with _disk_troubles(self.path):
            dropped = self._connection.execute("SELECT coalesce(sum(count), 0) FROM dropped").fetchone()[0]
            oldest = self._connection.execute("SELECT body FROM events ORDER BY seq LIMIT 1").fetchone()
        return SpoolStatus(
            waiting_count=self._waiting_count,
            waiting_bytes=self._waiting_bytes,
            dropped_count=dropped,
            oldest_at=msgspec.msgpack.decode(oldest[0], type=Event).detected_at if oldest else None,
        )

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self._connection.close()

    def _row(self, event: Event) -> tuple[bytes, int, int, bytes]:
        body = self._encoder.encode(event)
        if len(body) > MAX_EVENT_BYTES:
            event = msgspec.structs.replace(event, details={"left_out": "details", "left_out_bytes": len(body)})
            body = self._encoder.encode(event)
        return _id_bytes(event.event_id), keep_rank(event), len(body), body

    def _name_batch(self, connection: sqlite3.Connection, max_events: int, max_bytes: int) -> _BatchUnderWay | None:
        first = last = None
        total = 0
        for seq, size in connection.execute("SELECT seq, size FROM events ORDER BY seq LIMIT ?", (max_events,)):
            total += size
            if first is not None and total > max_bytes:
                break
            first = seq if first is None else first
            last = seq
        if first is None or last is None:
            return None
        dropped = _number(connection, "dropped")
        under_way = _BatchUnderWay(new_id(), first, last, dropped)
        connection.execute("INSERT INTO state VALUES (?, ?)", (_BATCH, self._encoder.encode(under_way)))
        connection.execute("DELETE FROM state WHERE name = 'dropped'")
        return under_way

    def _under_way(self, connection: sqlite3.Connection) -> _BatchUnderWay | None:
        found = connection.execute("SELECT value FROM state WHERE name = ?", (_BATCH,)).fetchone()
        return msgspec.msgpack.decode(found[0], type=_BatchUnderWay) if found else None

    def _drop(self, connection: sqlite3.Connection, excess_bytes: int) -> tuple[int, int]:
        """Drop events until `excess_bytes` are free: the least worth keeping first, of those the oldest."""
        under_way = self._under_way(connection)
        after = under_way.last if under_way else -1
        dropped_bytes, seqs = 0, []
        counts: dict[tuple[str, str], int] = {}
        query = "SELECT seq, size, body FROM events WHERE seq > ? ORDER BY keep, seq"
        for seq, size, body in connection.execute(query, (after,)):
            if dropped_bytes >= excess_bytes:
                break
            event = msgspec.msgpack.decode(body, type=Event)
            counts[event.module, event.severity] = counts.get((event.module, event.severity), 0) + 1
            dropped_bytes += size
            seqs.append((seq,))
        connection.executemany("DELETE FROM events WHERE seq = ?", seqs)
        connection.executemany(
            "INSERT INTO dropped VALUES (?1, ?2, ?3, ?3)"
            " ON CONFLICT DO UPDATE SET count = count + excluded.count, unreported = unreported + excluded.count",
            [(module, severity, count) for (module, severity), count in counts.items()],
        )
        connection.execute(
            "INSERT OR REPLACE INTO state VALUES ('dropped', ?)",
            (self._encoder.encode(_number(connection, "dropped") + len(seqs)),),
        )
        return len(seqs), dropped_bytes

    def _report_drops(self, connection: sqlite3.Connection) -> list[tuple[bytes, int, int, bytes]]:
        """Make one event for each module that lost some, and return their rows."""
        lost: dict[str, dict[str, int]] = {}
        for module, severity, count in connection.execute(
            "SELECT module, severity, unreported FROM dropped WHERE unreported > 0"
        ):
            lost.setdefault(module, {})[severity] = count
        rows = [self._row(_dropped_event(ModuleId(module), counts)) for module, counts in lost.items()]
        if rows:
            connection.executemany("INSERT INTO events (event_id, keep, size, body) VALUES (?, ?, ?, ?)", rows)
            connection.execute("UPDATE dropped SET unreported = 0")
        return rows

    def _recover(self, error: sqlite3.DatabaseError) -> sqlite3.Connection:
        aside = move_aside(self.path)
        self.corruption = f"the spool was corrupt ({error}); it was moved to {aside}"
        connection = _open(self.path)
        kept = 0
        decoder = msgspec.msgpack.Decoder(Event)
        connection.execute("BEGIN IMMEDIATE")
        for body in read_what_can_be_read(aside):
            try:
                row = self._row(decoder.decode(body))
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
                continue
            kept += connection.execute(
                "INSERT OR IGNORE INTO events (event_id, keep, size, body) VALUES (?, ?, ?, ?)", row
            ).rowcount
        connection.execute("COMMIT")
        self.corruption += f" and {kept} events could be read from it"
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _disk_troubles(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def keep_rank(event: Event) -> int:
    """Return how much an event is worth keeping when some must go: its severity, or the highest where something was blocked."""
    return Severity.CRITICAL.rank if event.action is EventAction.BLOCKED else event.severity.rank


def _dropped_event(module: ModuleId, counts: dict[str, int]) -> Event:
    total = sum(counts.values())
    return Event(
        event_id=new_id(),
        module=module,
        kind="agent.spool_dropped",
        severity=Severity.HIGH,
        detected_at=time.time(),
        subject="spool",
        reason="the spool reached its bound while the manager was away",
        message=f"{total} events were dropped because the agent's spool was full; the least severe and oldest went first.",
        details={"dropped_count": total, "dropped_by_severity": counts},
    )


def _number(connection: sqlite3.Connection, name: str) -> int:
    found = connection.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
    return msgspec.msgpack.decode(found[0], type=int) if found else 0


def _id_bytes(event_id: str) -> bytes:
    try:
        return bytes.fromhex(event_id)
    except ValueError:
        return event_id.encode()


def _open(path: str) -> sqlite3.Connection:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        os.chmod(path, 0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        connection.executescript(_SCHEMA)
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        error = sqlite3.DatabaseError(found)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextmanager
def _disk_troubles(path: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        is_corrupt = isinstance(error, sqlite3.DatabaseError) and _is_corrupt(error)
        raise TryLaterError(
            "spool_corrupt" if is_corrupt else "spool_not_writable",
            f"the spool cannot be used: {error}",
            where=path,
            hint=f"make room on the disk of {os.path.dirname(path)}; workers keep their events meanwhile",
        ) from error
