"""Events on their way to the core, written in the transaction that changes a worker's state, kept until the core has them."""

import sqlite3
from collections.abc import Iterable

import msgspec

from keibi.agent.ports import Emit
from keibi.contract.events import Event

MAX_IN_FLIGHT = 10_000
"""Events sent to the core and not yet confirmed; more wait on disk, so that a slow core costs no memory."""
BATCH_EVENTS = 500
BATCH_BYTES = 4 * 1024 * 1024
"""Of one frame: an event may carry a difference of 64 KiB, and the core refuses frames above 32 MiB."""

_SCHEMA = "CREATE TABLE IF NOT EXISTS outbox (sequence INTEGER PRIMARY KEY AUTOINCREMENT, event BLOB NOT NULL)"


class Outbox:
    """The queue of events in a worker's own database. One thread uses it at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute(_SCHEMA)
        self._sent = 0
        self._confirmed = 0

    def append(self, events: Iterable[Event]) -> None:
        """Add events; the caller's transaction makes them durable together with what they tell of."""
        encoder = msgspec.msgpack.Encoder()
        self._connection.executemany("INSERT INTO outbox (event) VALUES (?)", [(encoder.encode(event),) for event in events])

    def next_frame(self) -> Emit | None:
        """Return the next events not yet sent by this process; None when there are none or enough are on the way."""
        in_flight = self._connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM outbox WHERE sequence <= ? LIMIT ?)", (self._sent, MAX_IN_FLIGHT)
        ).fetchone()[0]
        if in_flight >= MAX_IN_FLIGHT:
            return None
        rows = self._connection.execute(
            "SELECT sequence, event FROM outbox WHERE sequence > ? ORDER BY sequence LIMIT ?", (self._sent, BATCH_EVENTS)
        ).fetchall()
        if not rows:
            return None
        size = 0
        events: list[Event] = []
        for sequence, encoded in rows:
            size += len(encoded)
            if events and size > BATCH_BYTES:
                break
            self._sent = sequence
            events.append(msgspec.msgpack.decode(encoded, type=Event))
        return Emit(self._sent, events)

    def forget(self, through: int) -> None:
        """Delete what the core has on disk."""
        self._connection.execute("DELETE FROM outbox WHERE sequence <= ?", (through,))

    def waiting_count(self) -> int:
        """Return how many events the core has not confirmed."""
        return int(self._connection.execute("SELECT count(*) FROM outbox").fetchone()[0])
