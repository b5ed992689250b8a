"""Tells live views that new events are stored, so that they need not ask again and again."""

import asyncio


class EventFeed:
    """The time of arrival of the newest stored flush. Published and awaited in one event loop.

    A manager node only hears of its own flushes; views wait with a limit and look anyway, which covers the other nodes.
    """

    def __init__(self) -> None:
        self.newest_at = 0.0
        self._changed = asyncio.Event()

    def publish(self, received_at: float) -> None:
        """Wake everyone who waits: events that arrived at `received_at` can be read now."""
        self.newest_at = max(self.newest_at, received_at)
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, after: float, limit_seconds: float) -> bool:
        """Return whether something newer than `after` is stored, waiting for it up to the limit."""
        if self.newest_at > after:
            return True
        try:
            await asyncio.wait_for(self._changed.wait(), limit_seconds)
        except TimeoutError:
            return False
        return True
