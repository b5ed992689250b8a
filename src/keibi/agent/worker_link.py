"""One run of one worker process: how it is started, and the frames that go to it and come from it.

The worker's standard input is one end of a socket pair. It sees end-of-file there as soon as the core is gone, and is killed
by the kernel (PDEATHSIG) should it not heed that. Frames that carry observations are bounded: a worker that does not read
for long is told by one `Overflowed` what it missed, instead of the core holding all of it.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from keibi.agent.ports import FromWorker, Overflowed, Stop, ToWorker
from keibi.contract.codec import frame, frame_length
from keibi.contract.commands import CommandKind
from keibi.contract.names import ModuleId
from keibi.errors import RefusedError, TryLaterError

MAX_OBSERVED_BYTES = 8 * 1024 * 1024
"""Observations that may wait for one worker; about 80,000."""
READ_BUFFER_BYTES = 1024 * 1024
LAST_END = "KEIBI_LAST_END"
"""The name in a worker's environment under which it finds how the one before it ended."""
_PASSED_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "HOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")


@dataclass(frozen=True, kw_only=True)
class RestartLimits:
    """How often a worker may end by itself before it is left off (safe mode)."""

    max_crashes: int = 3
    within_seconds: float = 600.0
    least_wait_seconds: float = 0.5
    most_wait_seconds: float = 30.0
    hello_seconds: float = 30.0


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """A worker to be run. It is started as root; one that needs less drops by itself, before it reads anything hostile."""

    name: str
    argv: tuple[str, ...]
    serves: ModuleId  # under whose name its troubles are reported
    module: ModuleId | None = None  # which module's policy and commands it gets; None: none
    goes_on_with: frozenset[CommandKind] = frozenset()  # commands that it takes again, and finishes, when it was ended in them
    silent_seconds: float = 0.0  # it is ended when it says nothing for so long; 0: it may be silent
    is_sensor: bool = False  # gets WatchRoots, and its observations go to whoever watches
    environment: dict[str, str] = field(default_factory=dict)
    encoding: Literal["msgpack", "json"] = "msgpack"  # "json": for a worker that has the standard library only
    limits: RestartLimits = RestartLimits()


@dataclass(frozen=True)
class RawObserved:
    """An `Observed` frame as it came; passed on without being read."""

    payload: bytes


class _Peek(msgspec.Struct):
    type: str


class WorkerLink:
    """A running worker. `stop` or `kill` must be called by whoever started it."""

    def __init__(
        self, spec: WorkerSpec, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.spec = spec
        self.started_at = time.time()
        self._process = process
        self._reader = reader
        self._writer = writer
        self._frames: deque[bytes] = deque()
        self._observed: deque[bytes] = deque()
        self._observed_bytes = 0
        self._caught_up_at = time.time()
        self._missed_since: float | None = None
        self.missed_count = 0
        self.heard_count = 0
        self._wake = asyncio.Event()
        self._pump = asyncio.create_task(self._write_frames(), name=f"frames to {spec.name}")

    @classmethod
    async def start(cls, spec: WorkerSpec, *, last_end: str = "") -> "WorkerLink":
        """Start the worker's process; it finds in its environment how the one before it ended, if that was no wish of ours.

        Raises:
            TryLaterError: it cannot be started: no such program, no memory, too many processes.
        """
        ours, theirs = socket.socketpair()
        try:
            environment = {name: os.environ[name] for name in _PASSED_ENVIRONMENT if name in os.environ} | spec.environment
            environment |= {LAST_END: last_end} if last_end else {}
            process = await asyncio.create_subprocess_exec(
                *_bound_to_parent(spec.argv),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=None,  # the worker's lines go where ours go
                env=environment,
                process_group=0,
            )
        except OSError as error:
            ours.close()
            raise TryLaterError("worker_not_started", f"the program cannot be started: {error}", where=spec.argv[0]) from error
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=READ_BUFFER_BYTES)
        return cls(spec, process, reader, writer)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: ToWorker) -> None:
        """Queue a frame; these are few and small, and never left out."""
        self._frames.append(_json_frame(message) if self.spec.encoding == "json" else frame(message))
        self._wake.set()

    def pass_on(self, observed: RawObserved) -> bool:
        """Queue observations; when too many wait, they are replaced by one `Overflowed`. Returns whether that begins now."""
        if self._missed_since is not None:
            self.missed_count += 1
            return False
        if self._observed_bytes + len(observed.payload) > MAX_OBSERVED_BYTES:
            # Looking again covers what still waits here too, so that is given up as well.
            self._missed_since = self._caught_up_at
            self.missed_count += len(self._observed) + 1
            self._observed.clear()
            self._observed_bytes = 0
            return True
        self._observed.append(observed.payload)
        self._observed_bytes += len(observed.payload)
        self._wake.set()
        return False

    async def messages(self) -> AsyncIterator[FromWorker | RawObserved]:
        """Give the frames of the worker until it ends.

        Raises:
            RefusedError: it wrote something that is not a frame of the contract.
        """
        is_json = self.spec.encoding == "json"
        decoder = msgspec.json.Decoder(FromWorker) if is_json else msgspec.msgpack.Decoder(FromWorker)
        peek = msgspec.json.Decoder(_Peek) if is_json else msgspec.msgpack.Decoder(_Peek)
        while True:
            try:
                payload = await self._reader.readexactly(frame_length(await self._reader.readexactly(4)))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            self.heard_count += 1
            try:
                if peek.decode(payload).type == "Observed":
                    yield RawObserved(payload)
                else:
                    yield decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RefusedError(
                    "worker_frame_invalid", f"the worker wrote a frame that is none: {error}", where=self.spec.name
                ) from error

    async def wait(self) -> int:
        """Return the exit code once the process has ended; negative: the signal that ended it."""
        return await self._process.wait()

    async def stop(self, within_seconds: float) -> int:
        """Ask the worker to end, kill it when it does not in time, and return its exit code."""
        self.send(Stop())
        try:
            async with asyncio.timeout(within_seconds):
                code = await self._process.wait()
        except TimeoutError:
            code = await self.kill()
        await self._close()
        return code

    async def kill(self) -> int:
        """End the worker and its process group at once, if it still runs, and return its exit code."""
        # Once it has been waited for, its number may already be somebody else's.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        code = await self._process.wait()
        await self._close()
        return code

    async def _close(self) -> None:
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump
        self._writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await self._writer.wait_closed()

    async def _write_frames(self) -> None:
        try:
            while True:
                await self._wake.wait()
                while (payload := self._next_frame()) is not None:
                    self._writer.write(payload)
                    await self._writer.drain()
                self._wake.clear()
        except (ConnectionError, OSError):
            return  # the worker has ended; its exit is noticed where it is waited for

    def _next_frame(self) -> bytes | None:
        if self._frames:
            return self._frames.popleft()
        if self._observed:
            payload = self._observed.popleft()
            self._observed_bytes -= len(payload)
            return len(payload).to_bytes(4, "big") + payload
        if self._missed_since is not None:
            now = time.time()
            since, self._missed_since = self._missed_since, None
            self._caught_up_at = now
            return frame(Overflowed(since, now, "this worker did not read its observations fast enough"))
        self._caught_up_at = time.time()
        return None


def _json_frame(message: ToWorker) -> bytes:
    payload = msgspec.json.encode(message)
    return len(payload).to_bytes(4, "big") + payload


def _bound_to_parent(argv: tuple[str, ...]) -> list[str]:
    """Return the command that has the kernel kill the worker when the core ends; unchanged without setpriv (util-linux)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *argv] if setpriv else list(argv)


def how_it_ended(code: int) -> str:
    """Return an exit code as a person says it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
