"""Threads that answer questions: each file belongs to one of them, so that what happens to it is taken in order."""

import queue
import threading
from collections.abc import Callable

from keibi.agent.gate.judging import WRITTEN, Question
from keibi.agent.judge_server import Asked

LANES = 2
MAX_WAITING = 2000
"""Questions that hold nobody and may wait in one lane, each with its descriptor; more are looked for later instead."""


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
        self._queues: list[queue.SimpleQueue[Asked | None]] = [queue.SimpleQueue() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._run, args=(one,), name=f"lane {number}", daemon=True)
            for number, one in enumerate(self._queues)
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
        lane = self._queues[asked.question.key.inode % len(self._queues)]
        if not asked.question.is_held and lane.qsize() > MAX_WAITING:
            asked.close()
            self._on_overflow()
            return
        lane.put(asked)

    def waiting_count(self) -> int:
        """Return how many questions wait."""
        return sum(lane.qsize() for lane in self._queues)

    def close(self) -> None:
        """Let the threads end after what they have."""
        for lane in self._queues:
            lane.put(None)
        for thread in self._threads:
            thread.join(5.0)

    def _run(self, lane: "queue.SimpleQueue[Asked | None]") -> None:
        while (asked := lane.get()) is not None:
            self._consider(asked)
