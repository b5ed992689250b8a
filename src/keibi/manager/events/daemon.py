"""Starts the event store's process and keeps it running.

Theory of operation. The manager owns the listening socket and hands it to the child. When the child dies, requests wait in
the socket's queue while the next child opens the store, so that a restart costs callers time but no error, and the address
never changes. A child that dies is started again after a pause that doubles up to half a minute; one that cannot open the
store says why, and that sentence is what `start` raises and `status` shows.
"""

import collections
import contextlib
import json
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from keibi.errors import TryLaterError
from keibi.manager.events.eventd import EXIT_CANNOT_OPEN, listen

START_SECONDS = 60.0
"""How long a child may take to open the store; after a crash chDB reads its parts anew."""
STOP_SECONDS = 20.0
WAIT_SECONDS = 20.0
"""How long to wait for the event store of a manager that was killed to end by itself."""
LONGEST_PAUSE_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A child that ran this long is held to be well: the next death starts again with the shortest pause."""

logger = logging.getLogger("keibi.eventd")


@dataclass(frozen=True, kw_only=True)
class DaemonStatus:
    """How the event store's process is."""

    is_running: bool
    pid: int | None
    restart_count: int
    message: str
    memory_bytes: int


class EventDaemon:
    """The event store's process, started and supervised. `url` and `key` stay the same across restarts."""

    def __init__(
        self, directory: Path, *, port: int = 0, memory_bytes: int = 2 * 1024**3, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self._directory = directory
        self._wait_seconds = wait_seconds
        self._memory_bytes = memory_bytes
        self._listener = listen(port)
        self.key = secrets.token_urlsafe(32)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopping = threading.Event()
        self._supervisor: threading.Thread | None = None
        self._restart_count = 0
        self._last_lines: collections.deque[str] = collections.deque(maxlen=5)
        self._message = "not started"

    def start(self) -> None:
        """Start the process and return when it answers.

        Raises:
            TryLaterError: it cannot open the store; the message is the process's own.
        """
        process = self._spawn()
        if not self._wait_until_ready(process):
            self._end(process)
            raise TryLaterError("event_store_unavailable", self._message, where=str(self._directory))
        self._supervisor = threading.Thread(target=self._supervise, args=(process,), name="eventd-supervisor", daemon=True)
        self._supervisor.start()

    def stop(self) -> None:
        """End the process after its running queries, and close the socket."""
        self._is_stopping.set()
        process = self._process
        if process is not None:
            self._end(process)
        if self._supervisor is not None:
            self._supervisor.join(STOP_SECONDS)
        self._listener.close()
        self._message = "stopped"

    def status(self) -> DaemonStatus:
        """Return how the process is now."""
        process = self._process
        is_running = process is not None and process.poll() is None
        pid = process.pid if process is not None and is_running else None
        return DaemonStatus(
            is_running=is_running,
            pid=pid,
            restart_count=self._restart_count,
            message=self._message,
            memory_bytes=resident_bytes(pid) if pid else 0,
        )

    def _supervise(self, process: subprocess.Popen[bytes]) -> None:
        pause_seconds = 0.25
        while True:
            started = time.monotonic()
            status = process.wait()
            _close_streams(process)
            if self._is_stopping.is_set():
                return
            pause_seconds = 0.25 if time.monotonic() - started > STABLE_SECONDS else pause_seconds
            self._message = f"the event store's process ended ({_told(status)}) and is being started again"
            logger.error("%s %s", self._message, " | ".join(self._last_lines))
            while True:
                if self._is_stopping.wait(pause_seconds):
                    return
                pause_seconds = min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
                self._restart_count += 1
                process = self._spawn()
                if self._wait_until_ready(process):
                    break
                self._end(process)
                logger.error("the event store's process could not be started again: %s", self._message)
            if self._is_stopping.is_set():
                self._end(process)
                return

    def _spawn(self) -> subprocess.Popen[bytes]:
        descriptor = self._listener.fileno()
        command = [sys.executable, "-m", "keibi.manager.events.eventd", "--directory", str(self._directory)]
        command += ["--listen-descriptor", str(descriptor), "--memory-bytes", str(self._memory_bytes)]
        command += ["--wait-seconds", str(self._wait_seconds)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(descriptor,),
            # Its own session: Ctrl-C at a terminal must reach the manager first, which then ends it in order.
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101 - asked for with PIPE
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(self.key.encode() + b"\n")
            process.stdin.flush()
        threading.Thread(target=self._read_errors, args=(process,), name="eventd-log", daemon=True).start()
        self._process = process
        return process

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.stdout is not None  # noqa: S101 - asked for with PIPE
        deadline = time.monotonic() + START_SECONDS
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([process.stdout], [], [], min(1.0, max(0.0, deadline - time.monotonic())))
            if readable:
                chunk = os.read(process.stdout.fileno(), 4096)
                if not chunk:
                    status = process.wait()
                    told = self._last_lines[-1] if status == EXIT_CANNOT_OPEN and self._wait_for_lines() else _told(status)
                    self._message = f"the event store cannot be opened: {told}"
                    return False
                line += chunk
            elif self._is_stopping.is_set() or time.monotonic() > deadline:
                self._message = f"the event store did not open within {START_SECONDS:.0f} s"
                return False
        self._message = "running"
        logger.info("the event store's process runs as %d", json.loads(line)["pid"])
        return True

    def _wait_for_lines(self) -> bool:
        # The exit status can be seen before the thread has read the last line of standard error.
        deadline = time.monotonic() + 2
        while not self._last_lines and time.monotonic() < deadline:
            time.sleep(0.01)
        return bool(self._last_lines)

    def _read_errors(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None  # noqa: S101 - asked for with PIPE
        with process.stderr as stream:
            for line in stream:
                text = line.decode("utf-8", "replace").rstrip()[:2000]
                self._last_lines.append(text)
                logger.warning("%s", text)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close_streams(process)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, or 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _close_streams(process: subprocess.Popen[bytes]) -> None:
    # Standard error is the log thread's, which closes it at its end.
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _told(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
