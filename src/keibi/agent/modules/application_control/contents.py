"""Reads a file by its descriptor: what it holds, and whether somebody could still change that without being seen."""

import fcntl
import hashlib
import os
import time
from enum import Enum

from keibi.agent.gate.judging import FileKey

_BUFFER_BYTES = 1024 * 1024
MAX_BYTES = 4 * 1024 * 1024 * 1024
"""Largest file that is judged by its content; larger ones are never recognised."""
TRIES = 2


class TooSlowError(Exception):
    """The file could not be read in the time that was left."""


class Writers(Enum):
    """Whether somebody has a file open for writing, or mapped for writing."""

    NONE = "none"
    SOME = "some"
    UNKNOWN = "unknown"  # the filesystem grants no leases, so the kernel does not say


def writers_of(descriptor: int) -> Writers:
    """Return whether the file has writers: a read lease is granted only when it has none (fcntl(2)); it is given back at once."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return Writers.SOME
    except OSError:
        return Writers.UNKNOWN
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return Writers.SOME
    return Writers.NONE


def sha256_of(descriptor: int, size: int, *, until: float | None = None) -> str:
    """Return the SHA-256 of an open file; "" when it is too large or changes its size meanwhile.

    Raises:
        TooSlowError: the monotonic clock passed `until`.
        OSError: it cannot be read.
    """
    if size > MAX_BYTES:
        return ""
    digest = hashlib.sha256()
    offset = 0
    # By position: the descriptor's own offset is shared with whoever sent it.
    while True:
        data = os.pread(descriptor, min(_BUFFER_BYTES, max(size - offset, 0) + 1), offset)
        if not data:
            break
        digest.update(data)
        offset += len(data)
        if offset > size:
            return ""
        if until is not None and time.monotonic() > until:
            raise TooSlowError
    return digest.hexdigest() if offset == size else ""


def settled_content(descriptor: int, *, until: float | None = None) -> tuple[FileKey, str, Writers]:
    """Return a file's key, the SHA-256 of what it holds, and whether a writer could have changed it meanwhile.

    The content belongs to the key: it is read again when the key changed during the reading, and "" when it keeps changing.

    Raises:
        TooSlowError: the monotonic clock passed `until`.
        OSError: it cannot be read.
    """
    for _ in range(TRIES):
        writers = writers_of(descriptor)
        before = FileKey.of(os.fstat(descriptor))
        content = sha256_of(descriptor, before.size, until=until)
        after = FileKey.of(os.fstat(descriptor))
        if before == after:
            return after, content, writers if writers is not Writers.NONE else writers_of(descriptor)
    return after, "", Writers.SOME
