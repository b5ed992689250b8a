"""Observations that wait to be sent: brought together for each path, held to a rate, and bounded.

A file that is written and stays open (a log) is told of once a second at most; closing it tells at once. What finds no room is
given up together with all that waits, and told as one `Overflowed`: the watchers then look at the files themselves.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from keibi.agent.ports import Happening, Observation, Overflowed
from keibi.contract.events import Actor

HOLD_SECONDS = 1.0
"""How often a file that stays open is told of at most."""
BATCH_SECONDS = 0.02
"""How long the first of several observations waits for the others."""
MAX_BATCH = 1000
MAX_WAITING = 20_000
MAX_WAITING_BYTES = 6 * 1024 * 1024
"""Of paths; long names count for more."""

MAX_REASON_CHARACTERS = 500
TOO_MUCH = "more happened than the agent could take in"

_CONTENT = frozenset({Happening.MODIFIED, Happening.ATTRIBUTES})


@dataclass(slots=True)
class _Waiting:
    happening: Happening
    path: bytes
    at: float
    is_directory: bool
    actor: Actor
    old_path: bytes = b""
    due: float = 0.0  # by the clock that never jumps


class Gathering:
    """What waits. `at` is seconds since the epoch, and is only told; what is due goes by `clock`, which never jumps."""

    def __init__(
        self,
        *,
        max_waiting: int = MAX_WAITING,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.given_up_count = 0
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._queue: deque[_Waiting] = deque()
        self._last: dict[bytes, _Waiting] = {}
        self._held: dict[bytes, _Waiting] = {}
        self._bytes = 0
        self._clock = clock
        self._queue_due = 0.0
        self._overflow: Overflowed | None = None

    def add(self, happening: Happening, path: bytes, at: float, *, is_directory: bool = False, actor: Actor = Actor()) -> None:
        """Take what happened; it is brought together with what happened to the same path by the same process."""
        held = self._held.pop(path, None)
        if held is not None:
            self._bytes -= len(path)
            if held.actor.pid != actor.pid or happening not in (Happening.MODIFIED, Happening.DELETED):
                self._put(held)
        last = self._last.get(path)
        if last is not None and last.actor.pid == actor.pid and _joins(last, happening):
            if last.happening in _CONTENT:
                last.at = at
            return
        self._put(_Waiting(happening, path, at, is_directory, actor))

    def hold(self, path: bytes, at: float, *, actor: Actor) -> None:
        """Take a write to a file that stays open."""
        last = self._last.get(path)
        if last is not None and last.actor.pid == actor.pid and last.happening in (Happening.CREATED, Happening.MODIFIED):
            return
        if path in self._held:
            return
        due = self._clock() + HOLD_SECONDS
        self._held[path] = _Waiting(Happening.MODIFIED, path, at, is_directory=False, actor=actor, due=due)
        self._bytes += len(path)
        self._bound(at)

    def rename(self, old_path: bytes, path: bytes, at: float, *, is_directory: bool, actor: Actor) -> None:
        """Take a rename. What follows is never brought together with what came before it."""
        for held in self._take_held(list(self._held) if is_directory else [old_path, path]):
            self._put(held)
        self._put(_Waiting(Happening.RENAMED, path, at, is_directory, actor, old_path))
        if is_directory:
            self._last.clear()
        else:
            self._last.pop(old_path, None)
            self._last.pop(path, None)

    def overflowed(self, since: float, until: float, reason: str) -> None:
        """Note that what happened between these times may be missing, or that the watched roots must be looked at again."""
        if self._overflow is not None:
            since, until = min(since, self._overflow.since), max(until, self._overflow.until)
            before = self._overflow.reason
            is_said = reason in before or len(before) > MAX_REASON_CHARACTERS
            reason = before if is_said else f"{before}; {reason}"
        self._overflow = Overflowed(since, until, reason)

    def give_up(self, since: float, until: float, reason: str) -> None:
        """Give up all that waits: what was looked at anew needs no observation."""
        self.given_up_count += len(self._queue) + len(self._held)
        waiting = [*self._queue, *self._held.values()]
        self.overflowed(min([since, *(one.at for one in waiting)]), until, reason)
        self._queue.clear()
        self._last.clear()
        self._held.clear()
        self._bytes = 0

    def due_at(self) -> float | None:
        """Return when, by the clock, there is something to send; None when nothing waits."""
        if self._overflow is not None or len(self._queue) >= MAX_BATCH:
            return 0.0
        first = self._queue_due if self._queue else None
        held = next(iter(self._held.values())).due if self._held else None
        return min((moment for moment in (first, held) if moment is not None), default=None)

    def is_full(self) -> bool:
        """Whether a whole batch waits."""
        return len(self._queue) >= MAX_BATCH

    def take_overflow(self) -> Overflowed | None:
        """Return what must be told before anything else, once."""
        overflow, self._overflow = self._overflow, None
        return overflow

    def take(self) -> list[Observation]:
        """Return up to MAX_BATCH observations, oldest first."""
        now = self._clock()
        due = []
        for path, waiting in self._held.items():
            if waiting.due > now:
                break
            due.append(path)
        for held in self._take_held(due):
            self._put(held)
        taken: list[Observation] = []
        while self._queue and len(taken) < MAX_BATCH:
            waiting = self._queue.popleft()
            self._bytes -= len(waiting.path) + len(waiting.old_path)
            if self._last.get(waiting.path) is waiting:
                del self._last[waiting.path]
            taken.append(
                Observation(waiting.happening, waiting.path, waiting.at, waiting.is_directory, waiting.old_path, waiting.actor)
            )
        return taken

    def take_all(self) -> None:
        """Have everything that is held back become due: the end is near."""
        for held in self._take_held(list(self._held)):
            self._put(held)

    def waiting_count(self) -> int:
        """Return how many observations wait."""
        return len(self._queue) + len(self._held)

    def _take_held(self, paths: list[bytes]) -> list[_Waiting]:
        taken = [held for path in paths if (held := self._held.pop(path, None)) is not None]
        self._bytes -= sum(len(held.path) for held in taken)
        return taken

    def _put(self, waiting: _Waiting) -> None:
        if not self._queue:
            self._queue_due = self._clock() + BATCH_SECONDS
        self._queue.append(waiting)
        self._last[waiting.path] = waiting
        self._bytes += len(waiting.path) + len(waiting.old_path)
        self._bound(waiting.at)

    def _bound(self, now: float) -> None:
        if self.waiting_count() > self._max_waiting or self._bytes > self._max_waiting_bytes:
            self.give_up(now, now, TOO_MUCH)


def _joins(last: _Waiting, happening: Happening) -> bool:
    """Whether `happening` says nothing new after what waits; a waiting ATTRIBUTES becomes MODIFIED when that follows."""
    if last.happening is happening:
        return True
    if last.happening in (Happening.CREATED, Happening.MODIFIED) and happening in _CONTENT:
        return True
    if last.happening is Happening.ATTRIBUTES and happening is Happening.MODIFIED:
        last.happening = Happening.MODIFIED
        return True
    return False
