"""The gate's side of its connection to one judge; never waits for it (`agent/gate/judging.py`)."""

import os
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final

from keibi.agent.gate import judging
from keibi.agent.gate.judging import Terms, Told

MAX_WAITING: Final = 2048
"""Messages that may wait for a judge that does not read; each may hold a descriptor."""
BEHIND_WAITING: Final = 512
TRY_SECONDS: Final = 5.0
MAX_TOLD_LATER: Final = 500
"""So much of what a judge could not be told is kept whole; of more, the number is."""


@dataclass(eq=False)
class Outgoing:
    """A message that waits to be sent. `is_owned`: its descriptor is closed when it is sent or dropped."""

    message: dict[str, Any]
    descriptor: int | None = None
    is_owned: bool = False
    is_withdrawn: bool = False  # answered meanwhile; its descriptor may be somebody else's by now
    is_lossy: bool = False  # may be dropped when the judge does not keep up

    @property
    def is_question(self) -> bool:
        """Whether it asks about a file without anybody waiting for the answer."""
        return self.is_lossy and self.is_owned

    def drop(self) -> None:
        """Give up the descriptor."""
        if self.is_owned and self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class JudgeLink:
    """One judge: connected or away. Its last terms hold while it is away."""

    def __init__(self, index: int, name: str, path: str) -> None:
        self.index = index
        self.name = name
        self.terms: Terms | None = None
        self.own: frozenset[int] = frozenset()
        self.connection: socket.socket | None = None
        self.silent_since: float | None = None  # since when verdicts were wanted and none came; monotonic
        self._missed_at = 0.0  # when a verdict was wanted last that did not come
        self._silent_before = 0.0  # seconds for which it was silent before it connected anew, if no verdict came since
        self._try_at = 0.0
        self._untold: dict[tuple[str, bool], int] = {}  # how much could not be told, by kind and whether it was allowed
        self._told_later: deque[Told] = deque()
        self.caught_up_count = -1  # how many events there had been when it was told last that it has heard of all
        self._path = path
        self._waiting: deque[Outgoing] = deque()

    @property
    def is_blocked(self) -> bool:
        """Whether messages wait until the judge reads."""
        return bool(self._waiting)

    @property
    def has_untold(self) -> bool:
        """Whether there is something that the judge could not be told yet."""
        return bool(self._untold or self._told_later)

    def is_given_up(self, now: float) -> bool:
        """Whether no verdict came for so long that nobody is to wait for this judge, or be refused for the want of it."""
        seconds = self.terms.closed_at_most_seconds if self.terms is not None else 0
        # One that is there and that nobody asks is not silent.
        until = now if self.connection is None else self._missed_at
        return seconds > 0 and self.silent_since is not None and until - self.silent_since > seconds

    def is_to_be_tried(self, now: float) -> bool:
        """Return whether it is time to ask one that was given up again, which may hold somebody up."""
        if now < self._try_at:
            return False
        self._try_at = now + TRY_SECONDS
        return True

    def is_without_verdict(self, now: float) -> None:
        """Take note that a verdict was wanted and did not come."""
        self._missed_at = now
        if self.silent_since is None:
            self.silent_since = now - self._silent_before

    def gives_verdicts(self) -> None:
        """Take note that a verdict came."""
        self.silent_since, self._silent_before = None, 0.0

    def miss(self, count: int = 1) -> None:
        """Have the judge told, when it can be, that there was so much of which it was not told."""
        self._untold["overflow", True] = self._untold.get(("overflow", True), 0) + count

    def connect(self) -> bool:
        """Try to connect; returns whether it is."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self._path)
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            connection.close()
            return False
        self.own = frozenset((struct.unpack("3i", peer)[0],))
        self.caught_up_count = -1
        if self.silent_since is not None:
            # One that comes and goes and never answers is no better than one that is away.
            self._silent_before = time.monotonic() - self.silent_since
            self.silent_since = None
        self.connection = connection
        return True

    @property
    def is_behind(self) -> bool:
        """Whether so much waits to be sent that what nobody waits for should rather wait in the kernel."""
        return len(self._waiting) >= BEHIND_WAITING

    def disconnect(self) -> None:
        """Hang up; what waited to be sent is dropped, and told as missed to whoever is there next."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
            self.is_without_verdict(time.monotonic())
        if self.terms is not None and self.terms.mode != judging.OFF:
            # What it had been sent and not read is gone with it as well, however much that was.
            self.miss(max(1, sum(outgoing.is_question for outgoing in self._waiting)))
        for outgoing in self._waiting:
            outgoing.drop()
        self._waiting.clear()

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            BlockingIOError: there is none now.
            OSError: the judge is gone, or says nothing that a judge says.
        """
        if self.connection is None:
            raise ConnectionResetError(self.name)
        try:
            received = judging.receive(self.connection)
        except ValueError as error:
            raise ConnectionResetError(f"{self.name}: {error}") from error
        if received is None:
            raise ConnectionResetError(self.name)
        message, descriptor = received
        if descriptor is not None:
            os.close(descriptor)
        return message

    def send(self, outgoing: Outgoing) -> bool:
        """Send now, or when the judge reads again; False: it was dropped, since the judge is away or too far behind."""
        if self.connection is None:
            outgoing.drop()
            return False
        if not self._waiting:
            if self._send_now(outgoing):
                return True
            if self.connection is None:
                return False
        if outgoing.is_lossy and len(self._waiting) >= MAX_WAITING:
            outgoing.drop()
            return False
        self._waiting.append(outgoing)
        return True

    def tell(self, told: Told) -> None:
        """Tell something without ever making it wait: what does not fit is counted and told later in one."""
        if self.connection is not None and not self._waiting and not self._told_later:
            try:
                judging.send(self.connection, judging.told_message(told), flags=socket.MSG_DONTWAIT)
            except OSError:
                pass
            else:
                return
        if told.path and len(self._told_later) < MAX_TOLD_LATER:
            # By the time that somebody listens again, the process id may be another's.
            self._told_later.append(told if self.connection is not None else replace(told, pid=0))
        else:
            kind = (told.what, told.was_allowed)
            self._untold[kind] = self._untold.get(kind, 0) + told.count

    def flush(self) -> None:
        """Send what waits, as far as the judge takes it."""
        while self._waiting and self.connection is not None:
            outgoing = self._waiting[0]
            if not outgoing.is_withdrawn and not self._send_now(outgoing):
                return
            if self._waiting:
                self._waiting.popleft()
        while self.has_untold and self.connection is not None:
            kind, count = next(iter(self._untold.items()), (("", True), 0))
            told = self._told_later[0] if self._told_later else Told(kind[0], count, was_allowed=kind[1])
            try:
                judging.send(self.connection, judging.told_message(told), flags=socket.MSG_DONTWAIT)
            except OSError:
                return
            if self._told_later:
                self._told_later.popleft()
            else:
                del self._untold[kind]

    def _send_now(self, outgoing: Outgoing) -> bool:
        if self.connection is None:
            return False
        try:
            judging.send(self.connection, outgoing.message, outgoing.descriptor, flags=socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            # Gone (its end is read as such in a moment), or too many descriptors are in flight: wait for either.
            return False
        outgoing.drop()
        return True
