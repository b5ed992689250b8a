"""Wake-ups: agents wait here to hear that a heartbeat is worth while.

Theory of operation. `due` remembers computers that should send a heartbeat; a wake-up that comes while nobody waits is
therefore not lost, and the heartbeat takes it away. Everything runs in the event loop; `wake` may be called from any thread.
"""

import asyncio
import contextlib
from collections.abc import Iterable

from keibi.manager.agents.signals import SignalKind, Signals

MAX_WAIT_SECONDS = 55.0
MAX_DUE = 1_000_000


class WakeUps:
    """The waiting agents of this node."""

    def __init__(self, signals: Signals) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due: set[str] = set()
        self._waiting: dict[str, asyncio.Event] = {}
        self._is_stopping = False
        signals.subscribe(SignalKind.DUE, self.wake)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say in which event loop the agents wait."""
        self._loop = loop
        self._is_stopping = False

    async def wait(self, computer_id: str, seconds: float) -> bool:
        """Return True as soon as the computer is due, or False after `seconds`. A second wait of a computer ends the first."""
        if self._is_stopping:
            return False
        if computer_id in self._due:
            return True
        if (other := self._waiting.get(computer_id)) is not None:
            other.set()
        event = asyncio.Event()
        self._waiting[computer_id] = event
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(seconds, 0.0), MAX_WAIT_SECONDS)):
                    await event.wait()
        finally:
            if self._waiting.get(computer_id) is event:
                del self._waiting[computer_id]
        return computer_id in self._due

    def wake(self, computer_ids: Iterable[str]) -> None:
        """Let these computers know; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop ends at this very moment
                self._loop.call_soon_threadsafe(self._wake, tuple(computer_ids))

    def has_come(self, computer_id: str) -> None:
        """Say, in the event loop, that the computer's heartbeat is here."""
        self._due.discard(computer_id)

    def release_all(self) -> None:
        """End all waits: the manager stops."""
        self._is_stopping = True
        for event in self._waiting.values():
            event.set()

    @property
    def waiting_count(self) -> int:
        """How many agents wait now."""
        return len(self._waiting)

    def _wake(self, computer_ids: tuple[str, ...]) -> None:
        for computer_id in computer_ids:
            if len(self._due) < MAX_DUE:
                self._due.add(computer_id)
            if (event := self._waiting.get(computer_id)) is not None:
                event.set()
