"""The kernel guard as the gate uses it: fills its maps and reads what it refused, with bpf(2) and mmap alone.

The programs (`agent/linux/bpf/guard.bpf.c`) are loaded by a short-lived process (`guard_loader.py`), which hands their
descriptors over. They allow everything unless `keep_alive` was called in the last seconds.
"""

import array
import contextlib
import ctypes
import json
import mmap
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Final

ALIVE_SECONDS: Final = 3.0
APPROVED: Final = 1
REFUSED: Final = 4
GATED: Final = 1
MEMORY: Final = 2
REPORT: Final = 1
ENFORCE: Final = 2
KINDS: Final = {1: "exec", 2: "map", 3: "signal", 4: "trace"}
_SETTINGS: Final = struct.Struct("=QQIIII")
_FILE: Final = struct.Struct("=QII")
_HAPPENING: Final = struct.Struct("=IIQII64s")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_BPF: Final = {"x86_64": 321, "aarch64": 280}
_UPDATE, _DELETE = 2, 3
_RING_BYTES: Final = 1 << 18
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_LOAD_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Refusal:
    """Something that the guard refused, or would have refused if it only reports."""

    kind: str  # "exec", "map", "signal" or "trace"
    pid: int
    device: int  # as os.stat tells it
    inode: int
    name: bytes
    was_refused: bool


class Map:
    """One of the guard's maps, by its descriptor. Whoever made it closes the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        self._call = _BPF[platform.machine()]

    def put(self, key: bytes, value: bytes) -> None:
        """Let a value stand for a key.

        Raises:
            OSError: E2BIG or ENOMEM, the map is full.
        """
        self._bpf(_UPDATE, key, value)

    def drop(self, key: bytes) -> None:
        """Let nothing stand for a key."""
        with contextlib.suppress(FileNotFoundError):
            self._bpf(_DELETE, key, b"")

    def _bpf(self, command: int, key: bytes, value: bytes) -> None:
        key_buffer, value_buffer = (ctypes.create_string_buffer(data, len(data)) for data in (key, value))
        attributes = struct.pack(
            "=IxxxxQQQ", self._fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer) if value else 0, 0
        )
        if self._libc.syscall(ctypes.c_long(self._call), ctypes.c_long(command), attributes, ctypes.c_long(len(attributes))) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the guard's map: {os.strerror(number)}")


class FileStates:
    """What the guard holds of single files. `device` is the file system's own number, as mountinfo names it."""

    def __init__(self, descriptor: int) -> None:
        self._map = Map(descriptor)

    def set(self, device: int, inode: int, state: int) -> None:
        """Say that a file is APPROVED or REFUSED; 0 forgets it.

        Raises:
            OSError: the map is full.
        """
        key = _FILE.pack(inode, kernel_device(device), 0)
        if state:
            self._map.put(key, _U32.pack(state))
        else:
            self._map.drop(key)


class Guard:
    """The loaded guard. `close` must be called by whoever made it; the programs end with it."""

    def __init__(self, level: str, descriptors: dict[str, int]) -> None:
        """Take over the descriptors of a loader."""
        self.level = level
        self._fds = descriptors
        self._maps = {name: Map(descriptors[name]) for name in ("settings", "devices", "own")}
        self.files = FileStates(descriptors["files"])
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

    def configure(self, mode: int, *, judges_maps: bool, protects: bool = False, scope: tuple[int, int] = (0, 0)) -> None:
        """Set what the guard does while it is kept alive. `scope`: id and depth of the only cgroup it looks at; 0 for all."""
        self._settings = (scope[0], scope[1], mode, int(judges_maps), int(protects))
        self.keep_alive()

    def keep_alive(self) -> None:
        """Say that the gate lives; must be called more often than every ALIVE_SECONDS."""
        until = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(ALIVE_SECONDS * 1e9)
        self._maps["settings"].put(_U32.pack(0), _SETTINGS.pack(until, *self._settings))

    def set_device(self, device: int, state: int) -> None:
        """Say that the gate answers for a file system (GATED), or that it is that of memfd_create (MEMORY); 0 forgets it."""
        key = _U32.pack(kernel_device(device))
        if state:
            self._maps["devices"].put(key, _U32.pack(state))
        else:
            self._maps["devices"].drop(key)

    def set_own(self, pid: int, *, is_own: bool) -> None:
        """Say that a process is the agent's, or no longer."""
        if is_own:
            self._maps["own"].put(_U32.pack(pid), _U32.pack(1))
        else:
            self._maps["own"].drop(_U32.pack(pid))

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


def kernel_device(device: int) -> int:
    """Return a device number as the kernel keeps it: 12 bits of major number, 20 of minor."""
    return os.major(device) << 20 | os.minor(device)


def memory_device() -> int:
    """Return the device number of files made by memfd_create."""
    descriptor = os.memfd_create("keibi", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def _refusal(fields: tuple[int, int, int, int, int, bytes]) -> Refusal:
    kind, pid, inode, device, was_refused, name = fields
    told = os.makedev(device >> 20, device & 0xFFFFF)
    return Refusal(KINDS.get(kind, str(kind)), pid, told, inode, name.partition(b"\0")[0], bool(was_refused))
