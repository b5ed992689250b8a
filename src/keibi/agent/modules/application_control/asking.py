"""What /proc says of whoever opens or executes a file while the kernel holds it.

A held process cannot move, so what is read here is true of it; another thread of the same process may still write into its
memory. Where /proc says nothing, because the process has gone or may not be looked at, the answer is empty and never an error.
"""

import os
import platform
import stat
import struct
import time
from dataclasses import dataclass

MAX_ARGUMENTS = 64
MAX_ARGUMENT_BYTES = 4096
_READ_BYTES = 64 * 1024
_TRIES, _TRY_SECONDS = 100, 0.001
_POINTER = struct.Struct("<Q")
# execve(path, argv, envp) and execveat(dirfd, path, argv, envp, flags): number -> which argument is argv.
_EXEC_CALLS = {"x86_64": {59: 1, 322: 2}, "aarch64": {221: 1, 281: 2}}.get(platform.machine(), {})
# open(path, flags), openat(dirfd, path, flags): number -> which argument are the flags. openat2 has them in memory.
_OPEN_CALLS = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}}.get(platform.machine(), {})
_OPEN_HOW_CALL, _CREAT_CALL = 437, {"x86_64": 85}.get(platform.machine(), -1)
_LOADER_VARIABLES = (b"LD_PRELOAD=", b"LD_AUDIT=", b"LD_LIBRARY_PATH=")


@dataclass(frozen=True, slots=True)
class ExecCall:
    """What a process asked execve for: the path as it was written, and the arguments as far as they were read."""

    path: bytes
    arguments: tuple[bytes, ...]


def executable_of(pid: int) -> tuple[bytes, tuple[int, int] | None]:
    """Return the path of the program that a process runs, and its device and inode; both empty when it is gone."""
    link = f"/proc/{pid}/exe"
    try:
        found = os.stat(link)
        return os.readlink(os.fsencode(link)).removesuffix(b" (deleted)"), (found.st_dev, found.st_ino)
    except OSError:
        return b"", None


def identity_of(path: bytes) -> tuple[int, int] | None:
    """Return device and inode of what lies at a path of this computer; None when there is nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_loader_directed(pid: int) -> bool:
    """Whether the process's environment tells the dynamic loader to load something; True when that cannot be read."""
    environment = _read(f"/proc/{pid}/environ")
    if environment is None:
        return True
    return any(variable.startswith(_LOADER_VARIABLES) for variable in environment.split(b"\0"))


def command_line_of(pid: int) -> tuple[bytes, ...]:
    """Return the arguments that a running process was started with."""
    content = _read(f"/proc/{pid}/cmdline")
    return tuple(content.rstrip(b"\0").split(b"\0")[:MAX_ARGUMENTS]) if content else ()


def exec_call_of(pid: int) -> ExecCall | None:
    """Return what a process that is held in execve asked for; None when it is not in such a call or may not be looked at."""
    call = _call_of(pid)
    if call is None or (place := _EXEC_CALLS.get(call[0])) is None:
        return None
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return ExecCall(_string(memory, call[place]), tuple(_strings(memory, call[place + 1])))
    except OSError:
        return None
    finally:
        os.close(memory)


def open_flags_of(pid: int) -> int | None:
    """Return the flags with which a held process opens a file; None when they are not known (io_uring, a 32-bit process)."""
    call = _call_of(pid)
    if call is None:
        return None
    number = call[0]
    if number == _CREAT_CALL:
        return os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if (place := _OPEN_CALLS.get(number)) is not None:
        return call[1 + place]
    if number != _OPEN_HOW_CALL:
        return None
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # struct open_how of linux/openat2.h begins with the flags.
        return int(_POINTER.unpack(os.pread(memory, 8, call[3]))[0])
    except (OSError, struct.error):
        return None
    finally:
        os.close(memory)


def _call_of(pid: int) -> list[int] | None:
    """Return the number of the system call in which a process waits, and its six arguments; None when it is in none.

    A held process wakes for a moment whenever any other one is answered, and the kernel then says no more than that it runs.
    """
    for _ in range(_TRIES):
        try:
            with open(f"/proc/{pid}/syscall", "rb") as file:
                fields = file.read(512).split()
            if fields[:1] == [b"running"]:
                time.sleep(_TRY_SECONDS)
                continue
            return [int(fields[0]), *(int(field, 16) for field in fields[1:7])]
        except (OSError, ValueError, IndexError):
            return None
    return None


def descriptor_kind(pid: int, number: int) -> str:
    """Return what a descriptor of a process is: "terminal", "null", "other", or "" when it has none."""
    try:
        target = os.readlink(f"/proc/{pid}/fd/{number}")
    except OSError:
        return ""
    if target.startswith(("/dev/pts/", "/dev/tty", "/dev/console")):
        return "terminal"
    return "null" if target == "/dev/null" else "other"


def open_of(pid: int, path: bytes) -> int | None:
    """Open a regular file as the process would find it, relative to its working directory; None when it is not there.

    The caller closes the descriptor.
    """
    base = b"/proc/%d/root" % pid if path.startswith(b"/") else b"/proc/%d/cwd/" % pid
    try:
        descriptor = os.open(base + path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def is_root_writable_only(pid: int, path: bytes, found: os.stat_result) -> bool:
    """Whether root alone can change the file or put another one at its path: it and every directory above it.

    The path is looked up as the process sees it; one that leads to another file there proves nothing.
    """
    if not _is_roots(found):
        return False
    base = b"/proc/%d/root" % pid if pid > 0 else b""
    try:
        there = os.lstat(base + path)
        if (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino):
            return False
        directory = path
        while directory != b"/":
            directory = os.path.dirname(directory)
            if not _is_roots(os.stat(base + directory)):
                return False
    except OSError:
        return False
    return True


def _is_roots(found: os.stat_result) -> bool:
    return found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _strings(memory: int, pointer: int) -> list[bytes]:
    found: list[bytes] = []
    while pointer and len(found) < MAX_ARGUMENTS:
        (address,) = _POINTER.unpack(os.pread(memory, 8, pointer).ljust(8, b"\0"))
        if not address:
            break
        found.append(_string(memory, address))
        pointer += 8
    return found


def _string(memory: int, address: int) -> bytes:
    """Return a string that ends in NUL. Read up to the end of each page, since the next one need not be there."""
    found = b""
    while address and len(found) < MAX_ARGUMENT_BYTES:
        part = os.pread(memory, 4096 - address % 4096, address)
        if not part:
            break
        text, end, _ = part.partition(b"\0")
        found += text
        if end:
            break
        address += len(part)
    return found[:MAX_ARGUMENT_BYTES]


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)
