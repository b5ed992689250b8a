"""Who did it: from a process id to an actor that a person can read."""

import os

from keibi.agent.linux.accounts import AccountNames
from keibi.agent.linux.containers import ControlGroups, container_in
from keibi.agent.linux.exec_map import NO_LOGIN, ExecMap, KnownProcess
from keibi.contract.events import Actor
from keibi.protection.base import escape_name

MAX_KNOWN = 2048


class Who:
    """Finds actors. `begin` must be called before each batch of events: a process id means the same within one batch only."""

    def __init__(self, names: AccountNames, groups: ControlGroups, exec_map: ExecMap | None) -> None:
        self._names = names
        self._groups = groups
        self._map = exec_map
        self._batch: dict[int, Actor] = {}
        self._known: dict[tuple[int, int], Actor] = {}

    def begin(self) -> None:
        """Forget what held for the batch before."""
        self._batch.clear()

    def find(self, pid: int) -> Actor:
        """Return the actor behind a process id; an empty one for 0, which stands for the kernel or another namespace."""
        actor = self._batch.get(pid)
        if actor is None:
            actor = self._batch[pid] = self._find(pid)
        return actor

    def describe(self, process: KnownProcess, *, is_alive: bool = True) -> Actor:
        """Return the actor that a record of the kernel's map describes."""
        key = (process.pid, process.since_ns)
        # Root alone can become somebody else without running another program, as servers do; so it is asked each time.
        is_fixed = process.uid != 0 or not is_alive
        if is_fixed and (known := self._known.get(key)) is not None:
            return known
        uid = process.uid if is_fixed else _live_uid(process.pid, process.uid)
        container = self._groups.container(process.cgroup_id)
        if not container and is_alive:
            container = container_in(_read(process.pid, "cgroup"))
        path = process.path
        if not process.is_path_whole:
            path = _executable(process.pid) or b"\xe2\x80\xa6/" + path
        actor = Actor(
            process=escape_name(path),
            pid=process.pid,
            parent=escape_name(self._path_of(process.parent)),
            user=self._names.user(uid),
            uid=uid,
            login_user="" if process.login_uid == NO_LOGIN else self._names.user(process.login_uid),
            container=container,
            source="bpf",
            parent_pid=process.parent,
        )
        if is_fixed:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = actor
        return actor

    def _find(self, pid: int) -> Actor:
        if pid <= 0:
            return Actor()
        if self._map is not None and (process := self._map.find(pid)) is not None:
            return self.describe(process)
        executable = _executable(pid)
        status = _status(pid)
        if not executable or status is None:
            return Actor(pid=pid, source="fanotify")
        uid, parent = status
        login = _read(pid, "loginuid").strip()
        return Actor(
            process=escape_name(executable),
            pid=pid,
            parent=escape_name(self._path_of(parent)),
            user=self._names.user(uid),
            uid=uid,
            login_user=self._names.user(int(login)) if login.isdigit() and int(login) != NO_LOGIN else "",
            container=container_in(_read(pid, "cgroup")),
            source="proc",
            parent_pid=parent,
        )

    def _path_of(self, pid: int) -> bytes:
        if pid <= 0:
            return b""
        if self._map is not None and (process := self._map.find(pid)) is not None:
            return process.path
        return _executable(pid)


def _live_uid(pid: int, otherwise: int) -> int:
    status = _status(pid)
    return otherwise if status is None else status[0]


def _status(pid: int) -> tuple[int, int] | None:
    """Return effective uid and parent; None when the process has ended."""
    text = _read(pid, "status")
    try:
        uid = int(text[text.index(b"\nUid:") + 5 :].split(None, 2)[1])
        parent = int(text[text.index(b"\nPPid:") + 6 :].split(None, 1)[0])
    except (ValueError, IndexError):
        return None
    return uid, parent


def _executable(pid: int) -> bytes:
    try:
        return os.readlink(b"/proc/%d/exe" % pid).removesuffix(b" (deleted)")
    except OSError:
        return b""


def _read(pid: int, name: str) -> bytes:
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)
