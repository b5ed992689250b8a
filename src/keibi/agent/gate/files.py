"""What the gate looks up about a file by the descriptor of an event, without reading from a disk."""

import errno
import os
import struct

from keibi.agent.gate.verdicts import STAMP_BYTES, Stamp

_STAMP = struct.Struct(f"{STAMP_BYTES // 8}q")


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what changes when the file's content does."""
    return _STAMP.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def path_of(descriptor: int) -> bytes:
    """Return the file's path as the kernel tells it; b"" when it cannot."""
    try:
        return os.readlink(b"/proc/self/fd/%d" % descriptor)
    except OSError:
        return b""


def is_below(path: bytes, directories: tuple[bytes, ...]) -> bool:
    """Return whether a path is one of these directories or lies beneath one."""
    return any(
        path.startswith(directory) and path[len(directory) : len(directory) + 1] in (b"/", b"") for directory in directories
    )


def head_of(descriptor: int, *, is_memory: bool) -> bytes | None:
    """Return the first four bytes if they are in memory; None when a disk would have to be read."""
    buffer = bytearray(4)
    try:
        count = os.preadv(descriptor, [buffer], 0, os.RWF_NOWAIT)
    except OSError as error:
        # tmpfs knows no RWF_NOWAIT before Linux 6.6, and needs none.
        if error.errno != errno.EOPNOTSUPP or not is_memory:
            return None
        count = os.preadv(descriptor, [buffer], 0)
    return bytes(buffer[:count])
