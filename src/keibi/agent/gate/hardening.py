"""What makes a process of the gate dependable: bound to its parent, in memory, first in line, last to be killed for memory."""

import contextlib
import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
MOST_DESCRIPTORS = 65536
"""A permission event for which no descriptor is left is denied by the kernel: so the limit is far above what may be held."""


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; ends it when that has happened already."""
    parent = os.getppid()
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
        os._exit(1)


def be_called(name: bytes) -> None:
    """Show as this name (15 bytes) in lists of processes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)


def come_first(*, nice: int) -> list[str]:
    """Take what this process needs to answer in time; returns what was refused, as a person reads it."""
    refused = []
    with contextlib.suppress(ValueError, OSError):
        most = min(MOST_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        refused.append(f"priority {nice}: {error.strerror}")
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"-1000")
        finally:
            os.close(descriptor)
    except OSError as error:
        refused.append(f"protection from the out-of-memory killer: {error.strerror}")
    return refused


def stay_in_memory() -> str:
    """Lock in memory what this process has touched and will touch; returns why not, or "" when it is.

    Pages that it shares with its parent stay shared, which locking everything at once would undo.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return f"mlockall: {os.strerror(ctypes.get_errno())}"
    return ""


def enter_own_mounts() -> None:
    """Give this process a mount namespace of its own, of which nothing reaches others.

    Raises:
        OSError: not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None) != 0:
        raise _os_error("own mount namespace")


def mount_memory(point: bytes, options: bytes) -> None:
    """Mount a fresh tmpfs.

    Raises:
        OSError: not allowed, or no such directory.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"keibi", point, b"tmpfs", ctypes.c_ulong(0), options) != 0:
        raise _os_error(f"mount tmpfs at {os.fsdecode(point)}")


def mount_overlay(directory: bytes) -> None:
    """Mount an overlay of the directories `lower`, `upper` and `work` in a directory at its `merged`.

    Raises:
        OSError: not allowed, or the kernel has none.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    layers = b",".join(name + b"dir=" + directory + b"/" + name for name in (b"lower", b"upper", b"work"))
    if libc.mount(b"keibi", directory + b"/merged", b"overlay", ctypes.c_ulong(0), layers) != 0:
        raise _os_error(f"mount an overlay in {os.fsdecode(directory)}")


def join_mounts_of(pid: int) -> None:
    """Enter another process's mount namespace; this process must have one thread.

    Raises:
        OSError: no such process, or not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNS) != 0:
            raise _os_error(f"mount namespace of {pid}")
    finally:
        os.close(descriptor)


def _os_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
