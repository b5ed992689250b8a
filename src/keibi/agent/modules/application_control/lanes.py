"""Threads that answer questions: each file belongs to one of them, so that what happens to it is taken in order.

A held process goes before everything that holds nobody, except what was written to the very file that it wants: else a program
that a package manager has just written would be judged before it is known who wrote it.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from keibi.agent.gate.judging import WRITTEN, Question
from keibi.agent.judge_server import Asked
from keibi.agent.precedence import Precedence

LANES = 2
MAX_WAITING = 2000
"""Questions that hold nobody and may wait in one lane, each with its descriptor; more are looked for later instead."""

_Identity = tuple[int, int]


class _Lane:
    """What waits for one thread."""

    def __init__(self) -> None:
        self._held: deque[Asked] = deque()
        self._others: OrderedDict[_Identity, list[Asked]] = OrderedDict()
        self._other_count = 0
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, asked: Asked) -> bool:
        """Add a question; False when too many wait that hold nobody."""
        with self._changed:
            if asked.question.is_held:
                self._held.append(asked)
            elif self._other_count >= MAX_WAITING:
                return False
            else:
                self._others.setdefault(_identity(asked), []).append(asked)
                self._other_count += 1
            self._changed.notify()
            return True

    def take(self) -> list[Asked]:
        """Wait for what comes next, all about one file and in order; nothing when the lane is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._others or self._is_closed)
            if self._held:
                asked = self._held.popleft()
                before = self._others.pop(_identity(asked), [])
                self._other_count -= len(before)
                return [*before, asked]
            if self._others:
                _, oldest = self._others.popitem(last=False)
                self._other_count -= len(oldest)
                return oldest
            return []

    def close(self) -> None:
        """Let the thread end after what waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()


class Lanes:
    """Hands questions to threads. `close` ends them."""

    def __init__(
        self,
        consider: Callable[[Asked], None],
        on_overflow: Callable[[], None],
        *,
        remember: Callable[[int], None],
        is_fine: Callable[[Question], bool],
        count: int = LANES,
    ) -> None:
        self._consider = consider
        self._remember = remember
        self._is_fine = is_fine
        self._on_overflow = on_overflow
        self._lanes = [_Lane() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"lane {number}", daemon=True)
            for number, lane in enumerate(self._lanes)
        ]

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()

    def put(self, asked: Asked) -> None:
        """Take a question; one that holds nobody is given up when too many wait, and `on_overflow` called."""
        if self._is_fine(asked.question):
            asked.close()
            return
        if asked.question.event == WRITTEN:
            # A copying program ends right after it has closed what it wrote: look at it before the file waits for its turn.
            self._remember(asked.question.pid)
        if not self._lanes[asked.question.key.inode % len(self._lanes)].put(asked):
            asked.close()
            self._on_overflow()

    def close(self) -> None:
        """Let the threads end after what they have."""
        for lane in self._lanes:
            lane.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(5.0)

    def _run(self, lane: _Lane) -> None:
        precedence = Precedence()
        while batch := lane.take():
            precedence.be_for(is_held=batch[-1].question.is_held)
            for asked in batch:
                self._consider(asked)


def _identity(asked: Asked) -> _Identity:
    return asked.question.key.device, asked.question.key.inode
