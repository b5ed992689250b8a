"""Maps of the kernel guard, by bpf(2) alone: what the warden and the decider tell it (`agent/linux/bpf/guard.bpf.c`)."""

import ctypes
import errno
import os
import platform
import struct
import time
from typing import Final

APPROVED: Final = 1
TAINTED: Final = 2
REFUSED: Final = 4
_FILE: Final = struct.Struct("=QII")
_STATE: Final = struct.Struct("=QII")
FILE_KEY_BYTES: Final = _FILE.size
_ATTRIBUTES: Final = struct.Struct("=IxxxxQQQ")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_BPF: Final = {"x86_64": 321, "aarch64": 280}
_LOOK_UP, _UPDATE, _DELETE = 1, 2, 3


class Map:
    """One of the guard's maps, by its descriptor. Whoever made it closes the descriptor."""

    def __init__(self, descriptor: int, key_bytes: int, value_bytes: int) -> None:
        self._fd = descriptor
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        self._call = ctypes.c_long(_BPF[platform.machine()])
        self._key, self._value = ctypes.create_string_buffer(key_bytes), ctypes.create_string_buffer(value_bytes)
        self._with_value = _attributes(descriptor, self._key, self._value)
        self._with_key = _attributes(descriptor, self._key, None)

    def get(self, key: bytes) -> bytes | None:
        """Return what stands for a key."""
        return None if self._bpf(_LOOK_UP, key) else self._value.raw

    def put(self, key: bytes, value: bytes) -> None:
        """Let a value stand for a key.

        Raises:
            OSError: E2BIG or ENOMEM, the map is full.
        """
        self._value.raw = value
        self._bpf(_UPDATE, key)

    def drop(self, key: bytes) -> None:
        """Let nothing stand for a key."""
        self._bpf(_DELETE, key)

    def _bpf(self, command: int, key: bytes) -> bool:
        """Carry out a command; returns whether there is no such key."""
        self._key.raw = key
        # The kernel refuses a value where it takes none.
        attributes = self._with_key if command == _DELETE else self._with_value
        if self._libc.syscall(self._call, ctypes.c_long(command), attributes, ctypes.c_long(_ATTRIBUTES.size)) >= 0:
            return False
        number = ctypes.get_errno()
        # The end of every writer drops a file that is hardly ever known: an exception would be most of what that costs.
        if number == errno.ENOENT and command != _UPDATE:
            return True
        raise OSError(number, f"the guard's map {self._fd}: {os.strerror(number)}")


def _attributes(
    descriptor: int, key: "ctypes.Array[ctypes.c_char]", value: "ctypes.Array[ctypes.c_char] | None"
) -> "ctypes.Array[ctypes.c_char]":
    packed = _ATTRIBUTES.pack(descriptor, ctypes.addressof(key), 0 if value is None else ctypes.addressof(value), 0)
    return ctypes.create_string_buffer(packed, len(packed))


class FileStates:
    """What the guard holds of single files. `device` is the file system's own number, as mountinfo names it."""

    def __init__(self, files: int, epoch: int) -> None:
        """Take the descriptors of two maps; what was said of files before stands."""
        self._files = Map(files, FILE_KEY_BYTES, _STATE.size)
        self._epochs = Map(epoch, _U32.size, _U64.size)
        said = self._epochs.get(_U32.pack(0))
        self._epoch: int = _U64.unpack(said)[0] if said is not None else 0

    def of(self, device: int, inode: int) -> int:
        """Return a file's state: APPROVED, TAINTED, REFUSED in any combination, 0 when nothing was said of it."""
        found = self._files.get(file_key(device, inode))
        if found is None:
            return 0
        epoch, flags, _ = _STATE.unpack(found)
        return int(flags) if epoch == self._epoch else 0

    def set(self, device: int, inode: int, state: int) -> None:
        """Say that a file is APPROVED or REFUSED; 0 forgets it.

        Raises:
            OSError: the kernel has no memory for it.
        """
        key = file_key(device, inode)
        if state:
            self._files.put(key, _STATE.pack(self._epoch, state, 0))
        else:
            self._files.drop(key)

    def forget_all(self) -> None:
        """Forget every file, at once and whatever their number."""
        self._epoch = max(self._epoch + 1, time.monotonic_ns())
        self._epochs.put(_U32.pack(0), _U64.pack(self._epoch))


def kernel_device(device: int) -> int:
    """Return a device number as the kernel keeps it: 12 bits of major number, 20 of minor."""
    return os.major(device) << 20 | os.minor(device)


def file_key(device: int, inode: int) -> bytes:
    """Return by which key the guard's maps know a file; `device` is the file system's own number."""
    return _FILE.pack(inode, kernel_device(device), 0)


def map_id(descriptor: int) -> int:
    """Return the number by which the kernel knows a map; 0 when it does not say."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb", buffering=0) as file:
        for line in file.read(4096).splitlines():
            if line.startswith(b"map_id:"):
                return int(line.split()[1])
    return 0
