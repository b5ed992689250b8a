"""Telling parts of the manager, and on PostgreSQL other managers too, that something changed.

A signal is a hint: whoever misses one finds the change in the database a little later. So nothing waits for a signal to
arrive, and losing the connection to PostgreSQL for a while costs only time.
"""

import logging
import secrets
import selectors
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import StrEnum

import msgspec
import psycopg
from sqlalchemy import func, select

from keibi.errors import KeibiError
from keibi.manager.database import Database, Scope

CHANNEL = "keibi"
MAX_IDS = 150
"""Ids in one notification: PostgreSQL takes at most 8,000 bytes."""
RECONNECT_SECONDS = 2.0

logger = logging.getLogger("keibi.signals")


class SignalKind(StrEnum):
    """What changed."""

    DUE = "due"  # these computers should send a heartbeat now
    POLICIES = "policies"  # the policies of these tenants changed
    REVOKED = "revoked"  # computers or tenants whose access tokens are worthless now
    RESTORED = "restored"  # enabled again


Heard = Callable[[tuple[str, ...]], None]


class _Message(msgspec.Struct, frozen=True):
    node: str
    kind: SignalKind
    ids: tuple[str, ...]


class Signals:
    """Delivers signals in this process at once, to other managers by LISTEN/NOTIFY. Who listens must be quick and thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._node = secrets.token_hex(8)
        self._heard: dict[SignalKind, list[Heard]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake: socket.socket | None = None
        self.is_listening = threading.Event()

    def subscribe(self, kind: SignalKind, heard: Heard) -> None:
        """Have `heard` called with the ids of every signal of that kind, in whichever thread it arrives."""
        self._heard[kind].append(heard)

    def publish(self, kind: SignalKind, ids: Sequence[str]) -> None:
        """Tell everybody; call it after the transaction that made it true."""
        self._deliver(kind, tuple(ids))
        if not self._database.is_postgresql:
            return
        try:
            with self._database.session(Scope.system("signals")) as session:
                for start in range(0, len(ids), MAX_IDS):
                    message = _Message(self._node, kind, tuple(ids[start : start + MAX_IDS]))
                    session.execute(select(func.pg_notify(CHANNEL, msgspec.json.encode(message).decode())))
        except KeibiError as error:
            logger.warning("other managers were not told of %s: %s", kind, error)

    def tell_here(self, kind: SignalKind, ids: Sequence[str]) -> None:
        """Tell this process only: what every manager notices by itself."""
        self._deliver(kind, tuple(ids))

    def start(self) -> None:
        """Begin to listen to other managers; does nothing on SQLite, where there are none."""
        if self._database.is_postgresql and self._thread is None:
            self._wake, woken = socket.socketpair()
            self._thread = threading.Thread(target=self._listen, args=(woken,), name="signals", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop listening, at once."""
        self._stop.set()
        if self._wake is not None:
            self._wake.close()  # which the thread sees as something to read
        if self._thread is not None:
            self._thread.join()

    def _deliver(self, kind: SignalKind, ids: tuple[str, ...]) -> None:
        for heard in self._heard[kind]:
            heard(ids)

    def _listen(self, woken: socket.socket) -> None:
        address = self._database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        while not self._stop.is_set():
            try:
                with psycopg.connect(address, autocommit=True) as connection, selectors.DefaultSelector() as selector:
                    selector.register(connection, selectors.EVENT_READ)
                    selector.register(woken, selectors.EVENT_READ)
                    connection.execute(f"LISTEN {CHANNEL}")
                    self.is_listening.set()
                    while not self._stop.is_set():
                        for notification in connection.notifies(timeout=0):
                            self._take(notification.payload)
                        selector.select()
            except psycopg.Error as error:
                logger.warning("lost the connection that listens to other managers: %s", error)
            self.is_listening.clear()
            self._stop.wait(RECONNECT_SECONDS)
        woken.close()

    def _take(self, payload: str) -> None:
        try:
            message = msgspec.json.decode(payload, type=_Message)
        except msgspec.MsgspecError:
            logger.warning("a notification that is not ours: %.80r", payload)
            return
        if message.node != self._node:
            self._deliver(message.kind, message.ids)
