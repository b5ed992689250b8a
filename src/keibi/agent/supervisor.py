"""Keeps the workers running, within limits, and says what each failure leads to.

Theory of operation. Each worker has one task: start it, wait for `Hello`, hand its frames to the listener, and see how it ends.
An end that nobody asked for is a crash. After a crash the worker starts again, later each time; after three within ten
minutes it stays off (safe mode) until a person or a new policy generation lets it run again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.ports import FromWorker, Hello
from keibi.agent.safe_mode import ALL_WORKERS, SafeMode
from keibi.agent.worker_link import RawObserved, WorkerLink, WorkerSpec, how_it_ended
from keibi.errors import InputError, KeibiError, RefusedError, TryLaterError

SILENCE_LOOKS = 4


class Failure(StrEnum):
    """What can fail in the agent while it protects."""

    WORKER_NOT_STARTED = "worker_not_started"
    WORKER_ENDED = "worker_ended"
    WORKER_SILENT = "worker_silent"  # no Hello in time, or nothing at all for too long
    WORKER_FRAME_INVALID = "worker_frame_invalid"
    WORKER_CRASH_LOOP = "worker_crash_loop"
    WORKER_NOT_READING = "worker_not_reading"
    CORE_CRASH_LOOP = "core_crash_loop"
    SPOOL_NOT_WRITABLE = "spool_not_writable"
    SPOOL_CORRUPT = "spool_corrupt"
    POLICY_REFUSED = "policy_refused"
    MANAGER_AWAY = "manager_away"


class Response(StrEnum):
    """What the agent does about a failure. Nothing here can block a program or a connection: this agent only observes."""

    CONTINUE = "continue"
    RESTART = "restart"
    SAFE_MODE = "safe_mode"


FAILURES: dict[Failure, Response] = {
    Failure.WORKER_NOT_STARTED: Response.RESTART,
    Failure.WORKER_ENDED: Response.RESTART,
    Failure.WORKER_SILENT: Response.RESTART,
    Failure.WORKER_FRAME_INVALID: Response.RESTART,
    Failure.WORKER_CRASH_LOOP: Response.SAFE_MODE,
    Failure.WORKER_NOT_READING: Response.CONTINUE,  # it is told what it missed, and looks again
    Failure.CORE_CRASH_LOOP: Response.SAFE_MODE,
    Failure.SPOOL_NOT_WRITABLE: Response.CONTINUE,  # workers keep their events until there is room
    Failure.SPOOL_CORRUPT: Response.CONTINUE,  # moved aside, read as far as possible, reported
    Failure.POLICY_REFUSED: Response.CONTINUE,  # the former generation stays in force
    Failure.MANAGER_AWAY: Response.CONTINUE,  # last good policy, events spooled
}


class Listener(Protocol):
    """Who is told what the workers do."""

    def worker_started(self, link: WorkerLink, hello: Hello) -> None:
        """Take note that the worker is up: it may be sent frames."""

    async def worker_said(self, link: WorkerLink, message: FromWorker | RawObserved) -> None:
        """Take a frame. The next one is read after this returns: so a slow listener slows the worker down."""

    def worker_ended(self, spec: WorkerSpec, how: str) -> None:
        """Take note that the worker is down, however it came to that."""

    def worker_left_off(self, spec: WorkerSpec, reason: str) -> None:
        """Take note that the worker is in safe mode."""


@dataclass
class _Run:
    """How one worker is doing."""

    spec: WorkerSpec
    state: str = "starting"
    link: WorkerLink | None = None
    crashes: list[float] = field(default_factory=list)
    crash_count: int = 0
    last_end: str = ""
    crash: str = ""  # how it ended last, unless that was asked for or has been told to the next one
    is_restart_asked: bool = False
    is_silent: bool = False  # and killed for it
    again: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Runs the workers of an explicit list."""

    def __init__(self, specs: Sequence[WorkerSpec], listener: Listener, safe_mode: SafeMode, files: Lane, log: Log) -> None:
        self.counts: Counter[Failure] = Counter()
        self._runs = {spec.name: _Run(spec) for spec in specs}
        self._listener = listener
        self._safe_mode = safe_mode
        self._files = files
        self._log = log
        self._is_stopping = False

    async def run(self) -> None:
        """Keep all workers running; returns after `stop`."""
        async with asyncio.TaskGroup() as tasks:
            for run in self._runs.values():
                tasks.create_task(self._keep(run), name=f"worker {run.spec.name}")

    async def stop(self, within_seconds: float) -> None:
        """Have all workers finish what is half done and end; those that do not in time are killed."""
        self._is_stopping = True
        for run in self._runs.values():
            run.again.set()
        await asyncio.gather(*(run.link.stop(within_seconds) for run in self._runs.values() if run.link is not None))

    async def restart(self, name: str) -> None:
        """End a worker in an orderly way; it starts again at once and this counts as no crash.

        Raises:
            InputError: there is no such worker.
        """
        run = self._runs.get(name)
        if run is None:
            raise InputError("worker_unknown", f"there is no worker {name!r}", hint=f"the workers are {', '.join(self._runs)}")
        run.is_restart_asked = True
        run.again.set()
        if run.link is not None:
            await run.link.stop(3.0)

    async def leave_safe_mode(self, worker: str = ALL_WORKERS) -> list[str]:
        """Let a worker (or all) run again; returns the names that were in safe mode."""
        left = await self._files.run(self._safe_mode.leave, worker)
        for run in self._runs.values():
            if left and not self._safe_mode.reason(run.spec.name):
                run.crashes.clear()
                run.again.set()
        return left

    def note(self, failure: Failure) -> Response:
        """Count a failure and return what is to be done about it."""
        self.counts[failure] += 1
        return FAILURES[failure]

    def report(self) -> list[dict[str, object]]:
        """Return how each worker is, for the status that people read."""
        return [
            {
                "worker": run.spec.name,
                "state": run.state,
                "pid": run.link.pid if run.link else None,
                "crash_count": run.crash_count,
                "last_end": run.last_end,
                "missed_observation_frames": run.link.missed_count if run.link else 0,
            }
            for run in self._runs.values()
        ]

    def pids(self) -> list[int]:
        """Return the process ids of the workers that run."""
        return [run.link.pid for run in self._runs.values() if run.link is not None]

    def crash_count(self, name: str) -> int:
        """Return how often this worker crashed since the agent started."""
        return self._runs[name].crash_count

    async def _keep(self, run: _Run) -> None:
        spec = run.spec
        while not self._is_stopping:
            if reason := self._safe_mode.reason(spec.name):
                run.state = "safe mode"
                self._listener.worker_left_off(spec, reason)
                await self._until_asked(run, None)
                continue
            run.state = "starting"
            failure, how = await self._run_once(run)
            run.link = None
            run.state = "ended"
            run.last_end = how
            self._listener.worker_ended(spec, how)
            if self._is_stopping:
                return
            if run.is_restart_asked:
                run.is_restart_asked = False
                continue
            run.crash = how
            await self._after_crash(run, failure, how)

    async def _after_crash(self, run: _Run, failure: Failure, how: str) -> None:
        limits = run.spec.limits
        now = time.monotonic()
        run.crash_count += 1
        run.crashes = [at for at in run.crashes if now - at < limits.within_seconds] + [now]
        self.note(failure)
        if len(run.crashes) >= limits.max_crashes:
            self.note(Failure.WORKER_CRASH_LOOP)
            reason = (
                f"{run.spec.name} ended {len(run.crashes)} times within {limits.within_seconds / 60:.0f} minutes, last by {how}"
            )
            self._log.error(
                "worker left off, safe mode", worker=run.spec.name, reason=reason, leave="keibi agent leave-safe-mode"
            )
            await self._files.run(self._safe_mode.enter, run.spec.name, reason)
            run.crashes.clear()
            return
        wait = min(limits.most_wait_seconds, limits.least_wait_seconds * 2 ** (len(run.crashes) - 1))
        self._log.warning("worker ended", worker=run.spec.name, how=how, restart_in_seconds=wait)
        await self._until_asked(run, wait)

    async def _until_asked(self, run: _Run, limit_seconds: float | None) -> None:
        if self._is_stopping:
            return
        run.again.clear()
        try:
            async with asyncio.timeout(limit_seconds):
                await run.again.wait()
        except TimeoutError:
            return

    async def _run_once(self, run: _Run) -> tuple[Failure, str]:
        """Start the worker, hear it out, and return how it ended."""
        try:
            link = await WorkerLink.start(run.spec, last_end=run.crash)
        except TryLaterError as error:
            return Failure.WORKER_NOT_STARTED, str(error)
        run.link, run.is_silent = link, False
        if self._is_stopping or run.is_restart_asked:
            return Failure.WORKER_ENDED, how_it_ended(await link.kill())
        watch = asyncio.create_task(self._end_when_silent(run, link), name=f"silence of {run.spec.name}")
        try:
            await self._converse(run, link)
            async with asyncio.timeout(5.0):
                code = await link.wait()
            if run.is_silent:
                return Failure.WORKER_SILENT, f"saying nothing for {run.spec.silent_seconds:.0f} s"
        except TimeoutError:
            await link.kill()
            if run.state == "starting":
                return Failure.WORKER_SILENT, f"no Hello within {run.spec.limits.hello_seconds:.0f} s"
            return Failure.WORKER_ENDED, "closing its socket without ending"
        except RefusedError as error:
            await link.kill()
            return Failure.WORKER_FRAME_INVALID, str(error)
        finally:
            watch.cancel()
            await link.kill()
        return Failure.WORKER_ENDED, how_it_ended(code)

    async def _end_when_silent(self, run: _Run, link: WorkerLink) -> None:
        """Kill a worker that stopped saying anything though it should."""
        seconds = run.spec.silent_seconds
        if not seconds:
            return
        silent_count, heard_count = 0, -1
        # Several looks, and not one deadline: after a pause of the core itself, what waits to be read is read first.
        while silent_count < SILENCE_LOOKS:
            await asyncio.sleep(seconds / SILENCE_LOOKS)
            is_silent = run.state == "running" and link.heard_count == heard_count
            silent_count, heard_count = silent_count + 1 if is_silent else 0, link.heard_count
        run.is_silent = True
        await link.kill()

    async def _converse(self, run: _Run, link: WorkerLink) -> None:
        messages = link.messages()
        async with asyncio.timeout(run.spec.limits.hello_seconds):
            hello = await anext(messages, None)
        if hello is None:
            return
        if not isinstance(hello, Hello):
            raise RefusedError("worker_frame_invalid", "the first frame is not Hello", where=run.spec.name)
        run.state = "running"
        run.crash = ""
        self._log.info("worker runs", worker=run.spec.name, pid=link.pid)
        self._listener.worker_started(link, hello)
        async for message in messages:
            try:
                await self._listener.worker_said(link, message)
            except KeibiError as error:
                # One frame that cannot be served is not the worker's end.
                self._log.error("frame of a worker not served", error, worker=run.spec.name)
