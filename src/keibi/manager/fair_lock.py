"""A lock that threads get in the order in which they asked."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from keibi.errors import TryLaterError


class FairLock:
    """First come, first served. SQLite's own waiting is a lottery, in which a thread can lose for ten seconds."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._owner: int | None = None

    @contextlib.contextmanager
    def held(self, seconds: float) -> Iterator[None]:
        """Hold the lock for a block.

        Raises:
            TryLaterError: it was not to be had within `seconds`.
            RuntimeError: this very thread holds it already: it would wait for itself.
        """
        self._acquire(seconds)
        try:
            yield
        finally:
            self._release()

    def _acquire(self, seconds: float) -> None:
        me = threading.get_ident()
        with self._guard:
            if self._owner is None:
                self._owner = me
                return
            if self._owner == me:
                raise RuntimeError("a thread opened a writing session within its own writing session")
            turn = threading.Event()
            self._waiting.append(turn)
        is_my_turn = turn.wait(seconds)
        with self._guard:
            if is_my_turn or turn.is_set():
                self._owner = me
                return
            self._waiting.remove(turn)
        raise TryLaterError("database_busy", f"the database was busy for {seconds:.0f} seconds", hint="try again in a moment")

    def _release(self) -> None:
        with self._guard:
            if self._waiting:
                # Never free in between: nobody can push in before whose turn it is. The owner is set by who takes over;
                # until then no thread is it.
                self._owner = 0
                self._waiting.popleft().set()
            else:
                self._owner = None
