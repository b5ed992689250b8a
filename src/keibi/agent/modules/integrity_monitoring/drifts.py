"""Differences that wait for a person, where the policy wants approval: reported once, kept until they are decided or gone."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from keibi.agent.linux.files import FileState
from keibi.agent.modules.integrity_monitoring.baseline import FILE
from keibi.agent.modules.integrity_monitoring.file_pages import Page, pages_of, split_path
from keibi.contract.names import new_id

State = FileState | dict[str, Any] | None

_SCHEMA = """
CREATE TABLE IF NOT EXISTS drift (
    drift_id TEXT PRIMARY KEY, type TEXT NOT NULL, key BLOB NOT NULL, after BLOB, detected_at REAL NOT NULL,
    event_id TEXT NOT NULL, decision TEXT NOT NULL, UNIQUE (type, key)) WITHOUT ROWID
"""


class Decision(StrEnum):
    """What a person said of a drift. An approved one is no drift any more."""

    WAITING = "waiting"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Drift:
    """One entity that is not as the baseline has it."""

    drift_id: str
    type: str
    key: bytes
    after: State
    detected_at: float
    event_id: str
    decision: Decision


class Drifts:
    """The open drifts, in the baseline's database. Changes belong to the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute(_SCHEMA)

    def find(self, type_: str, key: bytes) -> Drift | None:
        """Return the drift of an entity."""
        return next(self._select("type = ? AND key = ?", (type_, key)), None)

    def get(self, drift_id: str) -> Drift | None:
        """Return a drift by its id."""
        return next(self._select("drift_id = ?", (drift_id,)), None)

    def all(self) -> Iterator[Drift]:
        """Yield all open drifts, oldest first."""
        yield from self._select("1 ORDER BY detected_at", ())

    def waiting_count(self) -> int:
        """Return how many wait for a decision."""
        row = self._connection.execute("SELECT count(*) FROM drift WHERE decision = ?", (Decision.WAITING,)).fetchone()
        return int(row[0])

    def put(self, type_: str, key: bytes, after: State, detected_at: float, event_id: str) -> str:
        """Keep a drift, in place of an older one of the same entity; return its new id."""
        drift_id = new_id()
        self._connection.execute("DELETE FROM drift WHERE type = ? AND key = ?", (type_, key))
        self._connection.execute(
            "INSERT INTO drift VALUES (?, ?, ?, ?, ?, ?, ?)",
            (drift_id, type_, key, encode_state(after), detected_at, event_id, Decision.WAITING),
        )
        return drift_id

    def reject(self, drift_id: str) -> None:
        """Note that a person does not accept it. It stays open until the entity is as it was."""
        self._connection.execute("UPDATE drift SET decision = ? WHERE drift_id = ?", (Decision.REJECTED, drift_id))

    def close(self, type_: str, key: bytes) -> None:
        """Forget the drift of an entity: it was approved, or is gone."""
        self._connection.execute("DELETE FROM drift WHERE type = ? AND key = ?", (type_, key))

    def clear(self) -> None:
        """Forget all: the baseline was rebuilt from what is there."""
        self._connection.execute("DELETE FROM drift")

    def _select(self, condition: str, values: tuple[object, ...]) -> Iterator[Drift]:
        rows = self._connection.execute(
            f"SELECT drift_id, type, key, after, detected_at, event_id, decision FROM drift WHERE {condition}",  # noqa: S608  fixed
            values,
        ).fetchall()
        for drift_id, type_, key, after, detected_at, event_id, decision in rows:
            yield Drift(drift_id, type_, key, decode_state(type_, after), detected_at, event_id, Decision(decision))


_page_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes])


def encode_state(state: State) -> bytes | None:
    """Return a state as bytes: a file as a page of one entry, another entity as JSON."""
    if state is None:
        return None
    if not isinstance(state, FileState):
        return msgspec.json.encode(state, order="deterministic")
    page = next(iter(pages_of(split_path(state.path)[0], [state])))
    return msgspec.msgpack.encode(
        (page.directory, page.names, page.states, page.wishes, page.outcomes, page.digests, page.extras)
    )


def decode_state(type_: str, data: bytes | None) -> State:
    """Return what `encode_state` was given."""
    if data is None:
        return None
    if type_ == FILE:
        return next(iter(Page(*_page_decoder.decode(data)).entries()))
    return msgspec.json.decode(data, type=dict[str, Any])
