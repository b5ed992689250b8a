"""Which frame goes where: events to the spool, observations to whoever watches, answers to whoever asked."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, assert_never

from keibi.agent.agent_events import agent_event
from keibi.agent.intake import Intake
from keibi.agent.log import Log
from keibi.agent.peers import Peers
from keibi.agent.ports import (
    Alive,
    Answer,
    Applied,
    Emit,
    Examine,
    Examined,
    ExaminerIs,
    FollowThreats,
    FromWorker,
    Hello,
    Observed,
    Overflowed,
    Report,
    ThreatsNoted,
    Watch,
    WatchRoots,
)
from keibi.agent.status import StatusBoard
from keibi.agent.worker_link import RawObserved, WorkerLink, WorkerSpec
from keibi.contract.commands import CommandResult
from keibi.contract.names import ModuleId, Severity
from keibi.protection.base import outermost

SENSOR_SETTLES_SECONDS = 1.0
"""How long a sensor that was just told its roots may take to place its marks; what happens until then is looked at again."""


class Audience(Protocol):
    """A part of the core that deals with the workers of modules."""

    def module_is_up(self, module: ModuleId, link: WorkerLink) -> None:
        """The module's worker may be sent frames."""

    def module_is_down(self, module: ModuleId, how: str) -> None:
        """The module's worker has ended; what it was asked is not answered any more."""

    def applied(self, module: ModuleId, applied: Applied) -> None:
        """The module's worker accepted or refused a policy."""

    async def answered(self, result: CommandResult) -> None:
        """A worker says what came of a command."""


class Router:
    """The listener of all workers."""

    def __init__(self, intake: Intake, board: StatusBoard, log: Log, on_not_reading: Callable[[], None]) -> None:
        self._intake = intake
        self._board = board
        self._log = log
        self._on_not_reading = on_not_reading
        self._links: dict[str, WorkerLink] = {}
        self._watches: dict[str, Watch] = {}
        self._roots = WatchRoots(roots=[])
        self._sensor_seen_at = time.time()
        self._audience: list[Audience] = []
        self._peers = Peers(self.link_of)
        self._later: set[asyncio.Task[None]] = set()

    def introduce(self, audience: Sequence[Audience]) -> None:
        """Name the parts of the core that want to hear of modules."""
        self._audience = list(audience)

    def link_of(self, module: ModuleId) -> WorkerLink | None:
        """Return the worker that runs this module, or None while it is down."""
        return next((link for link in self._links.values() if link.spec.module is module), None)

    def worker_started(self, link: WorkerLink, hello: Hello) -> None:
        """Take note that the worker is up: it may be sent frames."""
        self._links[link.spec.name] = link
        self._board.worker_is_up(link.spec, hello.capabilities)
        if link.spec.is_sensor:
            link.send(self._roots)
            self._later_overflow(link.spec.name, self._sensor_seen_at)
        if link.spec.module is not None:
            self._peers.module_is_up(link.spec.module, link)
            for part in self._audience:
                part.module_is_up(link.spec.module, link)

    async def worker_said(self, link: WorkerLink, message: FromWorker | RawObserved) -> None:
        """Pass a frame on. Waits while the spool does not keep up, which slows the worker down."""
        match message:
            case RawObserved():
                self._sensor_seen_at = time.time()
                for watcher in self._watchers():
                    if watcher.pass_on(message):
                        self._log.warning("worker does not read its observations", worker=watcher.spec.name)
                        self._on_not_reading()
            case Emit():
                await self._intake.put(message.events, link, message.sequence)
            case Overflowed():
                for watcher in self._watchers():
                    watcher.send(message)
            case Watch():
                self._watches[link.spec.name] = message
                self._tell_sensors()
            case Report():
                self._board.module_says(message.status)
            case Applied():
                if link.spec.module is not None:
                    for part in self._audience:
                        part.applied(link.spec.module, message)
            case Answer():
                for part in self._audience:
                    await part.answered(message.result)
            case Examine() | FollowThreats() | ExaminerIs() | Examined() | ThreatsNoted():
                self._peers.pass_on(link.spec.module, message)
            case Hello():
                # Again, because what it can do has changed: a filesystem came that cannot be observed, say.
                self._board.worker_is_up(link.spec, message.capabilities)
            case Alive():
                return  # that it came is all there is to it
            case Observed():
                return  # it comes as RawObserved
            case _:
                assert_never(message)

    def worker_ended(self, spec: WorkerSpec, how: str) -> None:
        """Take note that the worker is down, however it came to that."""
        self._links.pop(spec.name, None)
        self._board.worker_is_down(spec, how)
        if spec.module is not None:
            self._peers.module_is_down(spec.module, how)
            for part in self._audience:
                part.module_is_down(spec.module, how)

    def worker_left_off(self, spec: WorkerSpec, reason: str) -> None:
        """Take note that the worker is in safe mode, and report it."""
        self._watches.pop(spec.name, None)
        self._tell_sensors()
        if self._board.worker_is_left_off(spec, reason):
            event = agent_event(
                "agent.safe_mode", spec.serves, Severity.HIGH, subject=spec.name, reason=reason, details={"worker": spec.name}
            )
            self._soon(self._intake.put([event]))

    def _watchers(self) -> list[WorkerLink]:
        return [self._links[name] for name in self._watches if name in self._links]

    def _tell_sensors(self) -> None:
        """Tell the sensors the union of what is watched, if it is another than before."""
        watches = self._watches.values()
        roots = WatchRoots(
            roots=outermost({root for watch in watches for root in watch.roots}),
            wants_processes=any(watch.wants_processes for watch in watches),
            wants_ports=any(watch.wants_ports for watch in watches),
        )
        if roots == self._roots:
            return
        self._roots = roots
        for link in self._links.values():
            if link.spec.is_sensor:
                link.send(roots)

    def _later_overflow(self, sensor: str, since: float) -> None:
        """Have watchers look again for what happened while a sensor was down, once its marks are in place."""

        async def tell() -> None:
            await asyncio.sleep(SENSOR_SETTLES_SECONDS)
            for watcher in self._watchers():
                watcher.send(Overflowed(since, time.time(), f"{sensor} was started anew"))

        if self._watches:
            self._soon(tell())

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)
