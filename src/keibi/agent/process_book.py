"""Who did it, for workers: from a process id to an actor and to the chain of those that started it.

Theory of operation. A process that runs is looked up in /proc at each question, since it may have become another program. One
that has ended is known from what the sensor told (`observe`) or from when it was last looked at (`remember`). A process id that
means another process by now is told apart by when that one started.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from keibi.agent.linux.accounts import AccountNames
from keibi.agent.linux.containers import container_in
from keibi.agent.ports import Happening, Observation
from keibi.contract.events import Actor
from keibi.protection.base import escape_name, unescape_name

MAX_KNOWN = 4096
MAX_CHAIN = 16
MAX_COMMAND_LINE_BYTES = 2048
_READ_BYTES = 8192
_NO_LOGIN = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Known:
    """One process as it was last known."""

    executable: bytes
    parent_pid: int
    uid: int
    command_line: str
    login_user: str
    container: str
    source: str
    started_ticks: int = 0  # since boot; 0: told by the sensor, and it had ended before it could be looked at


class ProcessBook:
    """Knows processes, also some that have ended. Any thread may use it."""

    def __init__(self, names: AccountNames, *, max_known: int = MAX_KNOWN, proc: str = "/proc") -> None:
        self._names = names
        self._max_known = max_known
        self._proc = proc
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._changed = threading.Condition()

    def observe(self, observations: Iterable[Observation]) -> None:
        """Take note of what the sensor told of programs that started."""
        for observation in observations:
            if observation.happening is not Happening.PROCESS_STARTED or observation.actor.pid <= 0:
                continue
            told = observation.actor
            # Most still run: then /proc knows more, above all the command line.
            if self._look(told.pid) is None:
                self._store(told.pid, self._of_told(told))

    def remember(self, pid: int) -> None:
        """Look at a process and at those that started it while they may still be there; cheap when they are known."""
        for _ in range(MAX_CHAIN):
            if pid <= 1:
                return
            with self._changed:
                known = self._known.get(pid)
            if known is not None and known.started_ticks and known.started_ticks == self._started_ticks(pid):
                return
            known = self._look(pid) or known
            if known is None:
                return
            pid = known.parent_pid

    def actor(self, pid: int, *, wait_seconds: float = 0.0) -> Actor:
        """Return who that is; only the pid when it is not known and the sensor does not tell of it within `wait_seconds`."""
        known = self._find(pid, wait_seconds)
        if known is None:
            return Actor(pid=max(pid, 0), source="fanotify" if pid > 0 else "")
        parent = self._find(known.parent_pid)
        return Actor(
            process=escape_name(known.executable),
            pid=pid,
            parent=escape_name(parent.executable) if parent is not None else "",
            user=self._names.user(known.uid),
            uid=known.uid,
            login_user=known.login_user,
            container=known.container,
            source=known.source,
            parent_pid=known.parent_pid,
        )

    def chain(self, pid: int, *, wait_seconds: float = 0.0) -> list[dict[str, Any]]:
        """Return a process and those that started it, nearest first: `process`, `pid`, `user` and `command_line` of each."""
        found: list[dict[str, Any]] = []
        seen: set[int] = set()
        while pid > 0 and pid not in seen and len(found) < MAX_CHAIN:
            seen.add(pid)
            known = self._find(pid, wait_seconds if not found else 0.0)
            if known is None:
                break
            found.append(
                {
                    "process": escape_name(known.executable),
                    "pid": pid,
                    "user": self._names.user(known.uid),
                    "command_line": known.command_line,
                }
            )
            pid = known.parent_pid
        return found

    def executable(self, pid: int) -> bytes:
        """Return the path of the program that a process runs or ran; empty when it is not known."""
        if pid <= 0:
            return b""
        if path := _executable(f"{self._proc}/{pid}"):
            return path
        with self._changed:
            known = self._known.get(pid)
        return known.executable if known is not None else b""

    def __len__(self) -> int:
        """Return how many processes are known."""
        return len(self._known)

    def _find(self, pid: int, wait_seconds: float = 0.0) -> _Known | None:
        if pid <= 0:
            return None
        if (known := self._look(pid)) is not None:
            return known
        with self._changed:
            self._changed.wait_for(lambda: pid in self._known, wait_seconds or 0.0)
            return self._known.get(pid)

    def _look(self, pid: int) -> _Known | None:
        """Read /proc; None when the process is not there (any more), or is a kernel thread."""
        base = f"{self._proc}/{pid}"
        started = self._started_ticks(pid)
        status = _read(f"{base}/status")
        executable = _executable(base)
        try:
            uid = int(status[status.index(b"\nUid:") + 5 :].split(None, 2)[1])
            parent = int(status[status.index(b"\nPPid:") + 6 :].split(None, 1)[0])
        except (ValueError, IndexError):
            return None
        if not executable or not started:
            return None
        login = _read(f"{base}/loginuid").strip()
        command_line = _read(f"{base}/cmdline", MAX_COMMAND_LINE_BYTES).rstrip(b"\0").replace(b"\0", b" ")
        known = _Known(
            executable=executable,
            parent_pid=parent,
            uid=uid,
            command_line=escape_name(command_line),
            login_user=self._names.user(int(login)) if login.isdigit() and int(login) != _NO_LOGIN else "",
            container=container_in(_read(f"{base}/cgroup")),
            source="proc",
            started_ticks=started,
        )
        if self._started_ticks(pid) != started:
            return None  # it ended meanwhile, and what was read may be of two processes
        self._store(pid, known)
        return known

    def _of_told(self, told: Actor) -> _Known:
        try:
            executable = unescape_name(told.process)
        except ValueError:
            executable = told.process.encode()
        return _Known(
            executable=executable,
            parent_pid=told.parent_pid,
            uid=told.uid if told.uid is not None else 0,
            command_line="",
            login_user=told.login_user,
            container=told.container,
            source=told.source,
        )

    def _store(self, pid: int, known: _Known) -> None:
        with self._changed:
            self._known[pid] = known
            self._known.move_to_end(pid)
            while len(self._known) > self._max_known:
                self._known.popitem(last=False)
            self._changed.notify_all()

    def _started_ticks(self, pid: int) -> int:
        """Return when the process started, in clock ticks since boot; 0 when it is gone or a zombie."""
        fields = _read(f"{self._proc}/{pid}/stat", 2048).rpartition(b") ")[2].split()
        try:
            return 0 if fields[0] in (b"Z", b"X") else max(1, int(fields[19]))
        except (IndexError, ValueError):
            return 0


def _executable(base: str) -> bytes:
    try:
        return os.readlink(os.fsencode(f"{base}/exe")).removesuffix(b" (deleted)")
    except OSError:
        return b""


def _read(path: str, limit: int = _READ_BYTES) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, limit)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
