"""fanotify notification groups that tell names (FAN_REPORT_DFID_NAME), by an own binding of two system calls.

Only notifications: nothing here can hold up another process. See fanotify(7), fanotify_mark(2), open_by_handle_at(2).

*Handle*: the bytes by which the kernel names a directory in an event: filesystem id (8), then a `struct file_handle`.
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from keibi.errors import RefusedError

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
OVERFLOW, RENAME, ONDIR = 0x4000, 0x10000000, 0x40000000
_ON_CHILD = 0x08000000

_INIT_FLAGS = 0x1 | 0x2 | 0x10 | 0x20 | 0x400 | 0x800
"""CLOEXEC, NONBLOCK, UNLIMITED_QUEUE, UNLIMITED_MARKS, REPORT_DIR_FID, REPORT_NAME."""
_MARK_ADD, _MARK_REMOVE, _MARK_FLUSH, _MARK_FILESYSTEM = 0x1, 0x2, 0x80, 0x100
_MARK_IGNORE_EVICTABLE = 0x40 | 0x200 | 0x400
"""IGNORED_SURV_MODIFY, EVICTABLE, IGNORE: the mark holds no inode in memory and survives writes."""

_DFID_NAME, _DFID, _OLD_DFID_NAME, _NEW_DFID_NAME = 2, 3, 10, 12
_METADATA = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH")
_U32 = struct.Struct("=I")
_VERSION = 3
_HANDLE_AT = 12  # in a file record: header (4), filesystem id (8), then the file_handle
_MAX_HANDLE_BYTES = 128
_READ_BYTES = 1 << 16

Handle = bytes


class FileEvent(NamedTuple):
    """What happened to a name in a directory. An empty `name` means the directory itself."""

    mask: int
    pid: int
    directory: Handle = b""
    name: bytes = b""
    new_directory: Handle = b""  # of a rename, as `new_name`
    new_name: bytes = b""


class Group:
    """One fanotify group. `close` must be called by whoever made it; the marks end with it."""

    def __init__(self) -> None:
        """Make the group.

        Raises:
            OSError: this kernel (before 5.9) or this process (without CAP_SYS_ADMIN) cannot have one.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
        self.fd = int(self._libc.fanotify_init(_INIT_FLAGS, os.O_RDONLY | os.O_CLOEXEC))
        if self.fd < 0:
            raise _os_error("fanotify_init")
        self.tells_renames = True
        """Whether a rename is one event with both names (5.17); else it is MOVED_FROM and MOVED_TO."""

    def close(self) -> None:
        """End the group and all its marks."""
        os.close(self.fd)

    def mark_filesystem(self, path: bytes) -> None:
        """Have every change of names and content told on the whole filesystem that `path` is on.

        Raises:
            OSError: the filesystem cannot (no file handles, no filesystem id), or the process may not.
        """
        base = MODIFY | ATTRIB | CLOSE_WRITE | CREATE | DELETE | ONDIR
        try:
            self._mark(_MARK_ADD | _MARK_FILESYSTEM, base | (RENAME if self.tells_renames else MOVED_FROM | MOVED_TO), path)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.tells_renames:
                raise
            self._mark(_MARK_ADD | _MARK_FILESYSTEM, base | MOVED_FROM | MOVED_TO, path)
            self.tells_renames = False

    def unmark_filesystem(self, path: bytes) -> None:
        """Undo `mark_filesystem`.

        Raises:
            OSError: it is not marked.
        """
        moves = RENAME if self.tells_renames else MOVED_FROM | MOVED_TO
        mask = MODIFY | ATTRIB | CLOSE_WRITE | CREATE | DELETE | ONDIR | moves
        self._mark(_MARK_REMOVE | _MARK_FILESYSTEM, mask, path)

    def marked_devices(self) -> set[str]:
        """Return the filesystems that are marked now, as "major:minor"; unmounting one ends its mark."""
        devices = set()
        with open(f"/proc/self/fdinfo/{self.fd}", "rb") as file:
            for line in file:
                if line.startswith(b"fanotify sdev:"):
                    number = int(line[14:].split(None, 1)[0], 16)  # the kernel's own way: 12 bits, then 20
                    devices.add(f"{number >> 20}:{number & 0xFFFFF}")
        return devices

    def ignore_content_in(self, directory: bytes) -> None:
        """Have the kernel tell no writes to files that lie directly in this directory; names are told on.

        Raises:
            OSError: this kernel (before 6.0) cannot.
        """
        self._mark(_MARK_ADD | _MARK_IGNORE_EVICTABLE, MODIFY | ATTRIB | CLOSE_WRITE | _ON_CHILD, directory)

    def ignore_nothing(self) -> None:
        """Undo every `ignore_content_in`."""
        self._mark(_MARK_FLUSH, 0, b"/")

    def read(self) -> bytes:
        """Return the records that wait, up to 64 KiB; empty when none do."""
        try:
            return os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return b""

    def _mark(self, flags: int, mask: int, path: bytes) -> None:
        if self._libc.fanotify_mark(self.fd, flags, mask, -100, path) < 0:
            raise _os_error("fanotify_mark", path)


class HandleOpener:
    """Opens directories by their handle."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.open_by_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        self._libc.name_to_handle_at.argtypes = [
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_int),
            ctypes.c_int,
        ]

    def open(self, mount_fd: int, handle: Handle) -> int:
        """Return an O_PATH descriptor of the directory, which the caller closes. `mount_fd` is of the same filesystem.

        Raises:
            OSError: ESTALE when the directory is no more.
        """
        fd = int(self._libc.open_by_handle_at(mount_fd, handle[8:], os.O_PATH | os.O_CLOEXEC))
        if fd < 0:
            raise _os_error("open_by_handle_at")
        return fd

    def check(self, directory_fd: int) -> None:
        """Return if directories of this filesystem can be opened by their handles.

        Raises:
            OSError: the kernel's reason why not; then events of this filesystem could not be given a path.
        """
        buffer = ctypes.create_string_buffer(_U32.pack(_MAX_HANDLE_BYTES), 8 + _MAX_HANDLE_BYTES)
        mount_id = ctypes.c_int()
        if self._libc.name_to_handle_at(directory_fd, b"", buffer, ctypes.byref(mount_id), 0x1000) < 0:  # AT_EMPTY_PATH
            raise _os_error("name_to_handle_at")
        os.close(self.open(directory_fd, bytes(8) + buffer.raw))


def parse_events(data: bytes) -> list[FileEvent]:
    """Return the events in what was read from a group, in order.

    Raises:
        RefusedError: these are not records of fanotify.
    """
    events: list[FileEvent] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < _METADATA.size:
            raise _malformed(f"{end - at} bytes are left, fewer than a record's head")
        length, version, _, head, mask, _, pid = _METADATA.unpack_from(data, at)
        if version != _VERSION:
            raise _malformed(f"records of version {version}, not {_VERSION}")
        if length < head or head < _METADATA.size or length > end - at:
            raise _malformed(f"a record of {length} bytes with a head of {head}, where {end - at} are left")
        events.append(_event(data, at + head, at + length, mask, pid))
        at += length
    return events


def _event(data: bytes, at: int, end: int, mask: int, pid: int) -> FileEvent:
    directory = name = new_directory = new_name = b""
    while at < end:
        if end - at < _INFO.size:
            raise _malformed(f"{end - at} bytes are left, fewer than an information record's head")
        kind, _, length = _INFO.unpack_from(data, at)
        if length < _INFO.size or length > end - at:
            raise _malformed(f"an information record of {length} bytes, where {end - at} are left")
        if kind in (_DFID_NAME, _DFID, _OLD_DFID_NAME, _NEW_DFID_NAME):
            if length < _HANDLE_AT + 8:
                raise _malformed(f"a file record of {length} bytes")
            (handle_bytes,) = _U32.unpack_from(data, at + _HANDLE_AT)
            handle_end = _HANDLE_AT + 8 + handle_bytes
            if handle_end > length:
                raise _malformed(f"a handle of {handle_bytes} bytes in a record of {length}")
            handle = data[at + _INFO.size : at + handle_end]
            told = b"" if kind == _DFID else data[at + handle_end : at + length].partition(b"\0")[0]
            if told == b".":
                told = b""
            if kind == _NEW_DFID_NAME:
                new_directory, new_name = handle, told
            else:
                directory, name = handle, told
        at += length
    return FileEvent(mask, pid, directory, name, new_directory, new_name)


def _malformed(what: str) -> RefusedError:
    return RefusedError("fanotify_malformed", f"the kernel's file events cannot be read: {what}")


def _os_error(call: str, path: bytes = b"") -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}", *((os.fsdecode(path),) if path else ()))
