"""The way of events into the spool: many workers' frames become one commit, and only then they are told `Stored`.

While the disk refuses, the events wait here (a bounded number; then workers are no longer read, and keep theirs).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from keibi.agent.agent_events import agent_event
from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.ports import Stored
from keibi.agent.spool import Batch, Spool
from keibi.agent.worker_link import WorkerLink
from keibi.contract.events import Event
from keibi.contract.names import ModuleId, Severity
from keibi.contract.status import SpoolStatus
from keibi.errors import TryLaterError

MAX_WAITING_GROUPS = 64
MAX_EVENTS_A_COMMIT = 5000
RETRY_SECONDS = 2.0

T = TypeVar("T")


@dataclass(frozen=True)
class _Group:
    events: list[Event]
    link: WorkerLink | None
    sequence: int


class Intake:
    """The spool as the event loop sees it."""

    def __init__(self, spool: Spool, lane: Lane, log: Log, on_trouble: Callable[[TryLaterError], None], serves: ModuleId) -> None:
        self.trouble = ""
        self.waiting = asyncio.Event()
        """Set when there is something to send."""
        self._spool = spool
        self._lane = lane
        self._log = log
        self._on_trouble = on_trouble
        self._serves = serves
        self._known = SpoolStatus()
        self._groups: asyncio.Queue[_Group] = asyncio.Queue(MAX_WAITING_GROUPS)

    async def put(self, events: list[Event], link: WorkerLink | None = None, sequence: int = 0) -> None:
        """Have events spooled; `link` is told `Stored(sequence)` once they are on disk. Waits while too many wait."""
        await self._groups.put(_Group(events, link, sequence))

    async def run(self) -> None:
        """Write groups to disk as they come, for ever."""
        await self._report_corruption()
        if (await self.status()).waiting_count:
            self.waiting.set()
        while True:
            groups = [await self._groups.get()]
            count = len(groups[0].events)
            while count < MAX_EVENTS_A_COMMIT and not self._groups.empty():
                groups.append(self._groups.get_nowait())
                count += len(groups[-1].events)
            await self._store([event for group in groups for event in group.events])
            self.waiting.set()
            through: dict[WorkerLink, int] = {}
            for group in groups:
                if group.link is not None and group.sequence:
                    through[group.link] = max(group.sequence, through.get(group.link, 0))
                self._groups.task_done()
            for link, sequence in through.items():
                link.send(Stored(sequence))

    async def flush(self) -> None:
        """Return when everything that was put is on disk."""
        await self._groups.join()

    async def take_batch(self, *, max_events: int) -> Batch | None:
        """Return the next batch to send, or None. `waiting` is cleared when there is none."""
        self.waiting.clear()
        batch = await self._call(lambda: self._spool.take_batch(max_events=max_events))
        if batch is not None:
            self.waiting.set()
        return batch

    async def ack(self, batch_id: str) -> None:
        """Forget a batch that the manager has."""
        await self._call(lambda: self._spool.ack(batch_id))

    async def split(self, batch_id: str) -> None:
        """Undo a batch, to take its events in smaller ones."""
        await self._call(lambda: self._spool.split(batch_id))

    async def set_aside(self, batch_id: str, reason: str) -> None:
        """Put a batch out of the way that the manager will never take."""
        await self._call(lambda: self._spool.set_aside(batch_id, reason))

    async def status(self) -> SpoolStatus:
        """Return how much waits; what was known last while the disk refuses."""
        try:
            self._known = await self._call(self._spool.status)
        except TryLaterError as error:
            self._log.error("spool status not known", error)
        return self._known

    async def _store(self, events: list[Event]) -> None:
        while True:
            try:
                await self._call(lambda: self._spool.append(events))
            except TryLaterError as error:
                if not self.trouble:
                    self._log.error("events cannot be written to disk", error, waiting=len(events))
                self.trouble = str(error)
                self._on_trouble(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if self.trouble:
                    self._log.info("events can be written to disk again")
                self.trouble = ""
                return

    async def _call(self, call: Callable[[], T]) -> T:
        try:
            return await self._lane.run(call)
        except TryLaterError as error:
            if error.code != "spool_corrupt":
                raise
            self._on_trouble(error)
            await self._lane.run(self._spool.reopen)
            await self._report_corruption()
            return await self._lane.run(call)

    async def _report_corruption(self) -> None:
        if not self._spool.corruption:
            return
        self._log.error("spool was corrupt", found=self._spool.corruption)
        event = agent_event("agent.spool_corrupt", self._serves, Severity.HIGH, subject="spool", reason=self._spool.corruption)
        await self._lane.run(self._spool.append, [event])
        self._spool.corruption = ""
