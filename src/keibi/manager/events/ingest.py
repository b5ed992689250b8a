"""Takes event batches in: many agents' batches become one insert, and each answer waits until that insert is on disk.

Theory of operation. `submit` puts a batch in a bounded queue and waits. One task forms flushes: the first batch after a quiet
moment goes at once; under load a flush waits until `WINDOW_SECONDS` after the one before, or until it is full. Converting and
inserting run in one thread each, so that the next flush is converted while the last one is being written. Inserts happen one
after another, in order: this is what makes the check for repeats and the live view's cursor right.

A flush whose insert fails is repeated as it is, with the same token, until it succeeds or `GIVE_UP_SECONDS` are over; then
all who wait for it are told to try later, and their agents still have the events.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec

from keibi.contract.events import Event, EventBatch, EventReceipt
from keibi.contract.names import ModuleId, Severity
from keibi.errors import InputError, TryLaterError
from keibi.manager.events.columns import Arrived, Columns, convert, stream
from keibi.manager.events.feed import EventFeed
from keibi.manager.events.store import EventStore

WINDOW_SECONDS = 0.1
MAX_FLUSH_EVENTS = 30_000
MAX_WAITING_BYTES = 64 * 1024 * 1024
MAX_BATCH_EVENTS = 50_000
GIVE_UP_SECONDS = 30.0

logger = logging.getLogger("keibi.events")


@dataclass(frozen=True, kw_only=True)
class IngestStatus:
    """What went through since the start, and what waits."""

    stored_count: int
    repeated_count: int
    quarantined_count: int
    refused_count: int
    flush_count: int
    waiting_count: int
    waiting_bytes: int
    last_flush_seconds: float


@dataclass(eq=False)
class _Waiting:
    arrived: Arrived
    size_bytes: int
    done: asyncio.Future[None]


@dataclass
class _Counters:
    stored: int = 0
    repeated: int = 0
    quarantined: int = 0
    refused: int = 0
    flushes: int = 0
    last_flush_seconds: float = 0.0


@dataclass
class _Flush:
    waiting: list[_Waiting]
    columns: Columns
    received_at: float


@dataclass
class _Queue:
    batches: list[_Waiting] = field(default_factory=list)
    event_count: int = 0
    size_bytes: int = 0


class EventIngest:
    """The way in for events. `start` and `stop` belong to the event loop that `submit` is awaited in."""

    def __init__(
        self,
        store: EventStore,
        feed: EventFeed,
        *,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._feed = feed
        self._max_waiting_bytes = max_waiting_bytes
        self._clock = clock
        self._queue = _Queue()
        self._flushing_bytes = 0
        self._counters = _Counters()
        self._has_batches = asyncio.Event()
        self._is_full = asyncio.Event()
        self._last_received_at = 0.0
        self._converter = ThreadPoolExecutor(1, "event-convert")
        self._writer = ThreadPoolExecutor(1, "event-write")
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._is_rollup_doubtful = False

    async def start(self) -> None:
        """Begin to take batches; the first one must not be the one that loads libraries."""
        await asyncio.get_running_loop().run_in_executor(self._converter, _warm_up)
        self._task = asyncio.create_task(self._run(), name="event-ingest")

    async def stop(self) -> None:
        """Store what waits, then end."""
        self._is_stopping = True
        self._has_batches.set()
        self._is_full.set()
        if self._task is not None:
            await self._task
        self._converter.shutdown()
        self._writer.shutdown()

    async def submit(self, tenant_id: str, computer_id: str, batch: EventBatch, *, size_bytes: int | None = None) -> EventReceipt:
        """Store a batch and return when it is durable. Tenant and computer are the authenticated agent's, never the event's.

        `size_bytes` is the batch's decoded size, where the caller knows it; it is what the queue is bounded by.

        Raises:
            InputError: more events than one batch may have.
            TryLaterError: the queue is full, the manager is stopping, or the store did not take the events in time.
        """
        count = len(batch.events)
        if count > MAX_BATCH_EVENTS:
            raise InputError(
                "batch_too_long", f"the batch has {count} events, more than {MAX_BATCH_EVENTS}", hint="send fewer at once"
            )
        if not count:
            return EventReceipt(batch_id=batch.batch_id, stored=0)
        if size_bytes is None:
            size_bytes = len(msgspec.msgpack.encode(batch))
        # What a decoded event takes in memory beyond its texts: the struct, its strings' headers, its dictionary.
        size_bytes += 1000 * count
        if self._is_stopping or self._task is None or self._task.done():
            raise TryLaterError("manager_stopping", "the manager is starting or stopping and takes no events now")
        waiting_bytes = self._queue.size_bytes + self._flushing_bytes
        if waiting_bytes and waiting_bytes + size_bytes > self._max_waiting_bytes:
            self._counters.refused += count
            raise TryLaterError(
                "ingest_full",
                f"{waiting_bytes // 2**20} MiB of events wait to be stored",
                hint="the agent keeps them and tries again",
                retry_after_seconds=2.0,
            )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.batches.append(_Waiting(Arrived(tenant_id, computer_id, batch.events), size_bytes, done))
        self._queue.event_count += count
        self._queue.size_bytes += size_bytes
        self._has_batches.set()
        if self._queue.event_count >= MAX_FLUSH_EVENTS:
            self._is_full.set()
        await done
        return EventReceipt(batch_id=batch.batch_id, stored=count)

    def status(self) -> IngestStatus:
        """Return the counters, for status and metrics."""
        counters = self._counters
        return IngestStatus(
            stored_count=counters.stored,
            repeated_count=counters.repeated,
            quarantined_count=counters.quarantined,
            refused_count=counters.refused,
            flush_count=counters.flushes,
            waiting_count=self._queue.event_count,
            waiting_bytes=self._queue.size_bytes + self._flushing_bytes,
            last_flush_seconds=counters.last_flush_seconds,
        )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        writing: asyncio.Task[None] | None = None
        last_started = 0.0
        while True:
            await self._has_batches.wait()
            if not self._queue.batches:
                break
            pause = last_started + WINDOW_SECONDS - time.monotonic()
            if pause > 0 and not self._is_stopping:
                try:
                    await asyncio.wait_for(self._is_full.wait(), pause)
                except TimeoutError:
                    pass
            last_started = time.monotonic()
            waiting = self._take()
            received_at = self._next_received_at()
            try:
                columns = await loop.run_in_executor(self._converter, convert, [each.arrived for each in waiting], received_at)
            except Exception as error:  # an edge: a defect in one flush must not end the intake of all events
                logger.exception("a flush of %d batches could not be converted", len(waiting))
                self._finish(waiting, error)
                continue
            if writing is not None:
                await writing
            flush = _Flush(waiting, columns, received_at)
            writing = asyncio.create_task(self._write(flush), name="event-flush")
        if writing is not None:
            await writing

    def _take(self) -> list[_Waiting]:
        """Take batches off the queue, in order, until a flush is full."""
        taken: list[_Waiting] = []
        event_count = 0
        for waiting in self._queue.batches:
            if taken and event_count + len(waiting.arrived.events) > MAX_FLUSH_EVENTS:
                break
            taken.append(waiting)
            event_count += len(waiting.arrived.events)
        size_bytes = sum(waiting.size_bytes for waiting in taken)
        rest = self._queue.batches[len(taken) :]
        self._queue = _Queue(rest, self._queue.event_count - event_count, self._queue.size_bytes - size_bytes)
        self._flushing_bytes += size_bytes
        if not rest and not self._is_stopping:
            self._has_batches.clear()
        if self._queue.event_count < MAX_FLUSH_EVENTS and not self._is_stopping:
            self._is_full.clear()
        return taken

    def _next_received_at(self) -> float:
        # Strictly growing, also when the clock jumps back: the live view's cursor is this time.
        self._last_received_at = max(self._clock(), self._last_received_at + 0.000_01)
        return self._last_received_at

    async def _write(self, flush: _Flush) -> None:
        started = time.monotonic()
        try:
            new_count = await asyncio.get_running_loop().run_in_executor(self._writer, self._store_flush, flush)
        except Exception as error:  # an edge: whoever waits must be told, whatever it was
            if not isinstance(error, TryLaterError):
                logger.exception("a flush of %d batches could not be stored", len(flush.waiting))
            self._finish(flush.waiting, error)
            return
        self._counters.flushes += 1
        self._counters.stored += new_count
        self._counters.repeated += len(flush.columns.event_ids) - new_count
        self._counters.quarantined += len(flush.columns.quarantined)
        self._counters.last_flush_seconds = time.monotonic() - started
        self._finish(flush.waiting, None)
        self._feed.publish(flush.received_at)

    def _store_flush(self, flush: _Flush) -> int:
        """Insert one flush, repeating it while the store is away; runs in the writer's thread."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        pause_seconds = 0.05
        has_failed = False
        while True:
            try:
                new_count = self._store.insert(flush.columns)
                if flush.columns.quarantined:
                    self._store.quarantine(flush.columns, flush.received_at)
                if has_failed or self._is_rollup_doubtful:
                    # The store may have stopped between a flush and its counts. Only here does nobody else insert.
                    self._store.repair_rollup()
                    self._is_rollup_doubtful = False
            except TryLaterError as error:
                has_failed = True
                if time.monotonic() + pause_seconds > deadline:
                    self._is_rollup_doubtful = True
                    raise
                logger.warning("a flush is repeated: %s", error)
                time.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, 2.0)
            else:
                return new_count

    def _finish(self, waiting: list[_Waiting], error: Exception | None) -> None:
        for each in waiting:
            self._flushing_bytes -= each.size_bytes
            if each.done.done():
                continue  # the agent hung up
            if error is None:
                each.done.set_result(None)
            elif isinstance(error, TryLaterError):
                each.done.set_exception(TryLaterError(error.code, error.message, where=error.where, hint=error.hint))
            else:
                each.done.set_exception(
                    TryLaterError(
                        "event_store_fault", "the events could not be stored; the manager's log says why", retry_after_seconds=30
                    )
                )


def _warm_up() -> None:
    event = Event(event_id="0" * 32, module=ModuleId.INTEGRITY_MONITORING, kind="warm.up", severity=Severity.LOW, detected_at=0.0)
    stream(convert([Arrived("", "", [event] * 100)], time.time()).table)
