"""When a verdict may be remembered, and when a mark in the kernel may stand for it.

A verdict is remembered for a file that nobody has open for writing and that has been at rest for a while: its times then tell
any later change (times of two changes in quick succession can be equal). A store through a shared mapping does not
clear an ignore mark of the kernel. So one is set only where root alone could make such a store.
"""

import fcntl
import os
import stat
from typing import Final

SETTLED_SECONDS: Final = 2.0
"""Some file systems note whole seconds only, or every other one."""
FINE_SETTLED_SECONDS: Final = 0.1
"""Where parts of a second are noted, they are of a clock that ticks at least a hundred times a second."""


def has_no_writer(descriptor: int) -> bool:
    """Return whether nobody has this file open for writing or mapped shared and writable; False where that cannot be known.

    The kernel grants a read lease only then. It is given back at once; a writer who comes between waits for microseconds.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def is_settled(status: os.stat_result, now: float, seconds: float = SETTLED_SECONDS) -> bool:
    """Return whether the file's last change is long enough ago to be told from the next one."""
    if status.st_ctime_ns % 1_000_000_000:
        seconds = min(seconds, FINE_SETTLED_SECONDS)
    return status.st_ctime < now - seconds


def may_be_ignored(status: os.stat_result, path: bytes) -> bool:
    """Return whether only root can change a settled file or put another in its place: file and directory are root's alone."""
    if not _is_roots(status) or not path.startswith(b"/"):
        return False
    try:
        found = os.stat(path, follow_symlinks=False)
        # A path of another mount namespace may name something else here.
        if (found.st_dev, found.st_ino) != (status.st_dev, status.st_ino):
            return False
        return _is_roots(os.stat(os.path.dirname(path) or b"/", follow_symlinks=False))
    except OSError:
        return False


def _is_roots(status: os.stat_result) -> bool:
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
