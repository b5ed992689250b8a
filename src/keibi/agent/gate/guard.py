"""The kernel guard as the gate uses it: fills its maps and reads what it refused, with bpf(2) and mmap alone.

The programs (`agent/linux/bpf/guard.bpf.c`) are loaded by a short-lived process (`guard_loader.py`), which hands their
descriptors over. They allow everything unless `keep_alive` was called in the last seconds.
"""

import array
import json
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Final

from keibi.agent.gate.guard_maps import FILE_KEY_BYTES, REFUSED, TAINTED, FileStates, Map, file_key, kernel_device, map_id

ALIVE_SECONDS: Final = 3.0
GATED: Final = 1
MEMORY: Final = 2
LEFT: Final = 3
REPORT: Final = 1
ENFORCE: Final = 2
KINDS: Final = {1: "exec", 2: "map", 3: "signal", 4: "trace", 5: "write", 6: "control"}
AGENTS: Final = frozenset(("signal", "trace", "write", "control"))
"""What was tried against the agent itself."""
_OWN: Final = 1
_CORE: Final = 2
_SETTINGS: Final = struct.Struct("=QQIIII")
_HAPPENING: Final = struct.Struct("=IIQIHH64s")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_RING_BYTES: Final = 1 << 18
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_LOAD_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Refusal:
    """Something that the guard refused, or would have refused if it only reports."""

    kind: str  # a value of KINDS
    pid: int
    device: int  # as os.stat tells it
    inode: int
    name: bytes
    was_refused: bool
    flags: int = 0  # the file's state, or the signal's number

    @property
    def is_against_agent(self) -> bool:
        """Whether it was tried against the agent itself."""
        return self.kind in AGENTS

    @property
    def is_tainted(self) -> bool:
        """Whether it is a file for no other reason than that somebody has opened it for writing."""
        return not self.is_against_agent and self.flags & (TAINTED | REFUSED) == TAINTED


class Guard:
    """The loaded guard. `close` must be called by whoever made it; the programs end with it."""

    def __init__(self, level: str, descriptors: dict[str, int]) -> None:
        """Take over the descriptors of a loader."""
        self.level = level
        self._fds = descriptors
        self._settings_map = Map(descriptors["settings"], _U32.size, _SETTINGS.size)
        self._devices = Map(descriptors["devices"], _U32.size, _U32.size)
        self._own = Map(descriptors["own"], _U32.size, _U32.size)
        self._guarded = Map(descriptors["guarded"], FILE_KEY_BYTES, _U32.size)
        self.files = FileStates(descriptors["files"], descriptors["epoch"])
        ring, page = descriptors["happenings"], mmap.PAGESIZE
        self._consumed = mmap.mmap(ring, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The kernel maps the data twice in a row, so that no record is cut at the end.
        self._produced = mmap.mmap(ring, page + 2 * _RING_BYTES, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._settings = (0, 0, 0, 0, 0)

    @classmethod
    def load(cls, levels: tuple[str, ...] = ("A", "B")) -> tuple["Guard | None", str]:
        """Load the best of these levels; returns the guard, if any, and why a better one is not to be had."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            command = [sys.executable, "-m", "keibi.agent.linux.bpf.guard_loader", *levels]
            try:
                loader = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            except OSError as error:
                return None, f"the guard's loader cannot be started: {error}"
            theirs.close()
            ours.settimeout(_LOAD_SECONDS)
            try:
                data, rights, _, _ = ours.recvmsg(65536, socket.CMSG_SPACE(32 * 4), socket.MSG_CMSG_CLOEXEC)
            except OSError as error:
                data, rights = b"", []
                loader.kill()
                reason = f"the guard's loader did not answer: {error}"
            else:
                reason = "the guard's loader ended without an answer"
            loader.wait()
        if not data:
            return None, reason
        message = json.loads(data)
        descriptors = array.array("i")
        for _, _, payload in rights:
            descriptors.frombytes(payload)
        if not message["level"]:
            return None, str(message["reason"])
        return cls(message["level"], dict(zip(message["descriptors"], descriptors, strict=True))), str(message["reason"])

    def close(self) -> None:
        """Detach the programs and forget the maps."""
        self._consumed.close()
        self._produced.close()
        for descriptor in self._fds.values():
            os.close(descriptor)
        self._fds = {}

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when something was refused."""
        return self._fds["happenings"]

    @property
    def file_descriptors(self) -> tuple[int, int]:
        """The descriptors from which another process makes `FileStates`."""
        return self._fds["files"], self._fds["epoch"]

    def configure(self, mode: int, *, judges_maps: bool, protects: bool = False, scope: tuple[int, int] = (0, 0)) -> None:
        """Set what the guard does while it is kept alive. `scope`: id and depth of the only cgroup it looks at; 0 for all."""
        self._settings = (scope[0], scope[1], mode, int(judges_maps), int(protects))
        self.keep_alive()

    def keep_alive(self) -> None:
        """Say that the gate lives; must be called more often than every ALIVE_SECONDS."""
        until = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(ALIVE_SECONDS * 1e9)
        self._settings_map.put(_U32.pack(0), _SETTINGS.pack(until, *self._settings))

    def set_device(self, device: int, state: int) -> None:
        """Say that the gate watches a device (GATED) or not (LEFT), or that memfd_create owns it (MEMORY); 0: unknown."""
        key = _U32.pack(kernel_device(device))
        if state:
            self._devices.put(key, _U32.pack(state))
        else:
            self._devices.drop(key)

    def own(self, pid: int, *, may_be_stopped: bool = False) -> None:
        """Say that a process is the agent's; the children that it has from now on become so by themselves."""
        self._own.put(_U32.pack(pid), _U32.pack(_OWN | _CORE if may_be_stopped else _OWN))

    def guard_path(self, path: str) -> None:
        """Let nobody but the agent's processes and PID 1 change what lies at or beneath a path, as far as `protects` is on.

        Raises:
            OSError: there is no such path.
        """
        status = os.stat(path)
        self._guarded.put(file_key(status.st_dev, status.st_ino), _U32.pack(1))

    def guard_itself(self) -> None:
        """Let nobody but the agent's processes get at these maps."""
        own_maps = Map(self._fds["own_maps"], _U32.size, _U32.size)
        for name, descriptor in self._fds.items():
            if not name.startswith("link."):
                own_maps.put(_U32.pack(map_id(descriptor)), _U32.pack(1))

    def take_refusals(self) -> list[Refusal]:
        """Return what was refused since the last call, oldest first; never waits."""
        found = []
        position = _U64.unpack_from(self._consumed)[0]
        end = _U64.unpack_from(self._produced)[0]
        while position < end:
            at = mmap.PAGESIZE + position % _RING_BYTES
            (header,) = _U32.unpack_from(self._produced, at)
            if header & _BUSY:
                break
            length = header & ~_DISCARDED
            if not header & _DISCARDED and length >= _HAPPENING.size:
                found.append(_refusal(_HAPPENING.unpack_from(self._produced, at + 8)))
            position += (length + 8 + 7) & ~7
            self._consumed[:8] = _U64.pack(position)
        return found

    def wait(self, seconds: float) -> bool:
        """Wait until something was refused; False when nothing was in that time."""
        with select.epoll() as poll:
            poll.register(self.fileno(), select.EPOLLIN)
            return bool(poll.poll(seconds))


def memory_device() -> int:
    """Return the device number of files made by memfd_create."""
    descriptor = os.memfd_create("keibi", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def _refusal(fields: tuple[int, int, int, int, int, int, bytes]) -> Refusal:
    kind, pid, inode, device, was_refused, flags, name = fields
    told = os.makedev(device >> 20, device & 0xFFFFF)
    return Refusal(KINDS.get(kind, str(kind)), pid, told, inode, name.partition(b"\0")[0], bool(was_refused), flags)
