"""Who runs, from the kernel's own map (bpf/sensor.bpf.c), loaded by libbpf through ctypes.

The map knows a process before it can do anything, and still knows it after it has ended; /proc does not.
"""

import ctypes
import os
import socket
import struct
from dataclasses import dataclass

from keibi.agent.linux.bpf.build import OBJECT
from keibi.agent.linux.libbpf import SAMPLE, load_libbpf
from keibi.errors import TryLaterError

NO_LOGIN = 0xFFFFFFFF
_PATH_BYTES = 512
_PROCESS = struct.Struct(f"=IIIIIIQQ{_PATH_BYTES}s")
_PORT = struct.Struct("=IIIHH16s")
_KIND = struct.Struct("=I")
_STARTED, _ENDED, _OPENED, _CLOSED = 1, 2, 3, 4
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of linux/proc_ns.h
_ALWAYS = (b"note_exec", b"note_fork")
_PROCESSES = (b"tell_exec", b"tell_exit")
_PORTS = (b"tell_port",)


@dataclass(frozen=True)
class KnownProcess:
    """One process as the kernel knew it when it began to run this program."""

    pid: int
    parent: int
    uid: int  # effective
    login_uid: int  # NO_LOGIN: nobody signed in
    since_ns: int
    cgroup_id: int
    path: bytes  # of the executable, as its own mount namespace names it
    is_path_whole: bool  # False: only the innermost part fitted


@dataclass(frozen=True)
class ProcessHappening:
    """A program started or ended."""

    is_start: bool
    process: KnownProcess


@dataclass(frozen=True)
class PortHappening:
    """A TCP port began or ceased to listen. `key` is the entity key, as linux/ports.py writes it."""

    is_open: bool
    key: str
    pid: int


class ExecMap:
    """The loaded programs. `close` must be called by whoever made it; the kernel then forgets all of it."""

    def __init__(self, path: str = OBJECT) -> None:
        """Load and attach.

        Raises:
            TryLaterError: the object or libbpf is not there, or the kernel refuses it; the message has its reason.
        """
        _check_namespace()
        if not os.path.exists(path):
            raise TryLaterError(
                "bpf_absent", "the kernel part was not built", where=path, hint="make up builds it when clang is there"
            )
        self._libbpf = load_libbpf()
        self._links: dict[bytes, int] = {}
        self._ring: int | None = None
        self._told: list[ProcessHappening | PortHappening] = []
        self._net_namespace = os.stat("/proc/self/ns/net").st_ino
        self._on_sample = SAMPLE(self._take_sample)
        self._object = self._open(path)
        try:
            for name in _ALWAYS:
                self._attach(name)
            self._processes_fd = self._map_fd(b"processes")
            self._happenings_fd = self._map_fd(b"happenings")
            self._lost_fd = self._map_fd(b"lost")
        except TryLaterError:
            self.close()
            raise
        self._key = ctypes.c_uint32()
        self._value = ctypes.create_string_buffer(_PROCESS.size)

    def close(self) -> None:
        """Detach and forget everything."""
        for name in list(self._links):
            self._detach(name)
        if self._ring is not None:
            self._libbpf.ring_buffer__free(self._ring)
            self._ring = None
        if self._object:
            self._libbpf.bpf_object__close(self._object)
            self._object = 0

    def find(self, pid: int) -> KnownProcess | None:
        """Return what is known of a process that runs or ended lately; None of one that began before the map, or long ago."""
        self._key.value = pid
        if self._libbpf.bpf_map_lookup_elem(self._processes_fd, ctypes.byref(self._key), self._value) < 0:
            return None
        return _process(self._value.raw)

    def want(self, *, processes: bool, ports: bool) -> int | None:
        """Tell of these from now on, and of nothing else; returns the descriptor to wait on, None when nothing is wanted.

        Raises:
            TryLaterError: the kernel refuses one of them.
        """
        for is_wanted, names in ((processes, _PROCESSES), (ports, _PORTS)):
            for name in names:
                if is_wanted and name not in self._links:
                    self._attach(name)
                elif not is_wanted and name in self._links:
                    self._detach(name)
        if not (processes or ports):
            return None
        if self._ring is None:
            self._ring = self._libbpf.ring_buffer__new(self._happenings_fd, self._on_sample, None, None)
            if not self._ring:
                self._ring = None
                raise TryLaterError("bpf_refused", f"no ring buffer: {os.strerror(ctypes.get_errno())}")
        return int(self._libbpf.ring_buffer__epoll_fd(self._ring))

    def take_happenings(self) -> list[ProcessHappening | PortHappening]:
        """Return what was told since the last call, oldest first."""
        if self._ring is not None:
            self._libbpf.ring_buffer__consume(self._ring)
        told, self._told = self._told, []
        return told

    def lost_count(self) -> int:
        """Return how many happenings found no room, since the start."""
        count = ctypes.c_uint64()
        key = ctypes.c_uint32(0)
        self._libbpf.bpf_map_lookup_elem(self._lost_fd, ctypes.byref(key), ctypes.byref(count))
        return count.value

    def _open(self, path: str) -> int:
        handle = self._libbpf.bpf_object__open(os.fsencode(path))
        if not handle:
            raise TryLaterError("bpf_refused", f"the object cannot be read: {os.strerror(ctypes.get_errno())}", where=path)
        if (outcome := self._libbpf.bpf_object__load(handle)) < 0:
            self._libbpf.bpf_object__close(handle)
            raise TryLaterError("bpf_refused", f"the kernel refuses the programs: {os.strerror(-outcome)}", where=path)
        return int(handle)

    def _attach(self, name: bytes) -> None:
        program = self._libbpf.bpf_object__find_program_by_name(self._object, name)
        link = self._libbpf.bpf_program__attach(program) if program else None
        if not link:
            reason = os.strerror(ctypes.get_errno()) if program else "it is not in the object"
            raise TryLaterError("bpf_refused", f"{name.decode()} cannot be attached: {reason}")
        self._links[name] = int(link)

    def _detach(self, name: bytes) -> None:
        self._libbpf.bpf_link__destroy(self._links.pop(name))

    def _map_fd(self, name: bytes) -> int:
        fd = int(self._libbpf.bpf_object__find_map_fd_by_name(self._object, name))
        if fd < 0:
            raise TryLaterError("bpf_refused", f"the object has no map {name.decode()}")
        return fd

    def _take_sample(self, _: int, data: int, size: int) -> int:
        if (happening := parse_happening(ctypes.string_at(data, size), self._net_namespace)) is not None:
            self._told.append(happening)
        return 0


def parse_happening(data: bytes, net_namespace: int) -> ProcessHappening | PortHappening | None:
    """Return what a record of the ring says; None when it is of another network namespace, or of no kind known here."""
    if len(data) < _KIND.size:
        return None
    (kind,) = _KIND.unpack_from(data)
    if kind in (_STARTED, _ENDED) and len(data) >= _PROCESS.size:
        return ProcessHappening(kind == _STARTED, _process(data))
    if kind in (_OPENED, _CLOSED) and len(data) >= _PORT.size:
        _, pid, namespace, family, number, address = _PORT.unpack_from(data)
        # A port that was not bound to a number has already given it back when it closes.
        if namespace == net_namespace and number and family in (socket.AF_INET, socket.AF_INET6):
            shown = socket.inet_ntop(family, address[:4] if family == socket.AF_INET else address)
            return PortHappening(kind == _OPENED, f"tcp/{shown}/{number}", pid)
    return None


def _process(data: bytes) -> KnownProcess:
    _, pid, parent, uid, login_uid, length, since_ns, cgroup_id, components = _PROCESS.unpack_from(data)
    is_whole = length < _PATH_BYTES
    names = components[: min(length, _PATH_BYTES)].split(b"\0")
    # Innermost first, each ended by a NUL; of a path that was cut short the outermost part is missing.
    names = names[:-1] if is_whole else names
    path = b"/".join(reversed(names))
    return KnownProcess(pid, parent, uid, login_uid, since_ns, cgroup_id, b"/" + path if is_whole else path, is_whole)


def _check_namespace() -> None:
    if os.stat("/proc/self/ns/pid").st_ino != _INITIAL_PID_NAMESPACE:
        raise TryLaterError(
            "bpf_other_namespace", "the agent runs in a pid namespace of its own, where the kernel's process ids mean nothing"
        )
