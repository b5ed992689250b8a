"""fanotify groups whose events come with a descriptor, and the permission answers. See fanotify(7), fanotify_mark(2).

Own binding of two system calls, standard library only. `keibi.agent.linux.fanotify` is the other kind, which tells names.
"""

import ctypes
import errno
import os
import struct
from typing import Final

CLOSE_WRITE: Final = 0x8
OPEN: Final = 0x20
OPEN_EXEC: Final = 0x1000
OVERFLOW: Final = 0x4000
OPEN_PERMISSION: Final = 0x10000
EXEC_PERMISSION: Final = 0x40000
PERMISSIONS: Final = OPEN_PERMISSION | EXEC_PERMISSION

_CLASS_CONTENT: Final = 0x4
_INIT_FLAGS: Final = 0x1 | 0x2 | 0x20
"""CLOEXEC, NONBLOCK, UNLIMITED_MARKS."""
_UNLIMITED_QUEUE: Final = 0x10
"""For permissions only: what does not fit into a queue goes unjudged. Notifications overflow instead of filling the memory."""
# O_NONBLOCK: the kernel opens the descriptor while it delivers the event. A FIFO without a writer, or a file under a lease, would
# else hold up the reader of the group, and with it everybody.
_EVENT_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOATIME | 0o100000
_ADD, _REMOVE, _IGNORED, _FLUSH, _FILESYSTEM, _EVICTABLE = 0x1, 0x2, 0x20, 0x80, 0x100, 0x200
_EVENT = struct.Struct("=IBBHQii")
_RESPONSE = struct.Struct("=iI")
_ALLOW, _DENY = 1, 2
_READ_BYTES = _EVENT.size * 128
_PROC_DESCRIPTOR = b"/proc/self/fd/%d"


class Group:
    """One group. `close` must be called by whoever made it: the kernel then allows all that waits, and the marks end."""

    def __init__(self, *, asks_permission: bool) -> None:
        """Make the group.

        Raises:
            OSError: this kernel (without CONFIG_FANOTIFY_ACCESS_PERMISSIONS) or this process (not root) cannot have one.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
        self.fd = int(
            self._libc.fanotify_init(_INIT_FLAGS | (_CLASS_CONTENT | _UNLIMITED_QUEUE if asks_permission else 0), _EVENT_FLAGS)
        )
        if self.fd < 0:
            raise _os_error("fanotify_init")
        self._evictable = _EVICTABLE
        self.pinned_count = 0
        """Ignore marks that hold their inode in memory, because this kernel (before 5.19) has no others."""

    def close(self) -> None:
        """End the group."""
        os.close(self.fd)

    def mark_filesystem(self, descriptor: int, mask: int, *, is_added: bool = True) -> None:
        """Add events to, or take them from, what is told of the whole filesystem that the O_PATH descriptor is on.

        Raises:
            OSError: the filesystem cannot, or is gone; ENOENT: it was not marked.
        """
        self._mark((_ADD if is_added else _REMOVE) | _FILESYSTEM, mask, -100, _PROC_DESCRIPTOR % descriptor)

    def mark_file(self, descriptor: int, mask: int) -> None:
        """Have events of this one file told.

        Raises:
            OSError: the file cannot be marked.
        """
        self._mark(_ADD, mask, -100, _PROC_DESCRIPTOR % descriptor)

    def ignore(self, descriptor: int, mask: int) -> None:
        """Have the kernel tell no such events of this file until it is written to; its memory is given back when it is short.

        Raises:
            OSError: the file cannot be marked.
        """
        try:
            self._mark(_ADD | _IGNORED | self._evictable, mask, descriptor, None)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._evictable:
                raise
            self._evictable = 0
            self._mark(_ADD | _IGNORED, mask, descriptor, None)
        if not self._evictable:
            self.pinned_count += 1

    def heed(self, descriptor: int, mask: int) -> bool:
        """Undo `ignore`; returns whether there was anything to undo."""
        try:
            self._mark(_REMOVE | _IGNORED, mask, descriptor, None)
        except OSError:
            return False
        return True

    def heed_all(self) -> None:
        """Undo every `ignore` and `mark_file`."""
        self._mark(_FLUSH, 0, -100, None)
        self.pinned_count = 0

    def read(self) -> list[tuple[int, int, int]]:
        """Return mask, descriptor and pid of the events that wait, at most 128. The descriptors are the caller's to close.

        Raises:
            OSError: the kernel could not open a descriptor for the first event, and has dealt with that one itself.
        """
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        return [(mask, descriptor, pid) for _, _, _, _, mask, descriptor, pid in _EVENT.iter_unpack(data)]

    def answer(self, descriptor: int, *, is_allowed: bool) -> None:
        """Let the process behind a permission event go on, or fail with EPERM. One answer a call: the kernel reads no more."""
        try:
            os.write(self.fd, _RESPONSE.pack(descriptor, _ALLOW if is_allowed else _DENY))
        except OSError as error:
            # The opener was killed while it waited.
            if error.errno != errno.ENOENT:
                raise

    def _mark(self, flags: int, mask: int, directory: int, path: bytes | None) -> None:
        if self._libc.fanotify_mark(self.fd, flags, mask, directory, path) < 0:
            raise _os_error("fanotify_mark")


def _os_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
