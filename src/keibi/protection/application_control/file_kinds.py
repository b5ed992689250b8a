"""What kind of software a file is, by its first bytes, its execute bits and its name."""

import stat
import struct
from collections.abc import Iterable

from keibi.protection.application_control.events import FileKind

HEAD_BYTES = 64
"""How much of a file is looked at: an ELF header (elf(5)) has 64 bytes."""

_ET_REL, _ET_EXEC, _ET_DYN = 1, 2, 3
_EXECUTE_BITS = 0o111


def kind_of(path: bytes, mode: int, head: bytes, script_suffixes: Iterable[str]) -> FileKind | None:
    """Return the kind, or None for what is no software.

    An object file is none, since neither the loader nor the kernel runs it; a kernel module is a library. A file that may be
    executed without saying how is a script: a shell runs it as one.
    """
    is_executable = bool(mode & _EXECUTE_BITS)
    if head.startswith(b"\x7fELF"):
        if len(head) < 18:
            return FileKind.PROGRAM if is_executable else None
        (type_,) = struct.unpack_from(">H" if head[5] == 2 else "<H", head, 16)
        if type_ == _ET_REL:
            return FileKind.LIBRARY if path.endswith(b".ko") else None
        if type_ not in (_ET_EXEC, _ET_DYN):
            return None  # a core file
        name = path.rpartition(b"/")[2]
        # A position-independent program is of the same type as a library, and has no execute bit while it is being written.
        is_library = type_ == _ET_DYN and (name.endswith(b".so") or b".so." in name)
        return FileKind.LIBRARY if is_library else FileKind.PROGRAM
    if head.startswith(b"#!"):
        return FileKind.SCRIPT
    if stat.S_ISREG(mode) and is_executable and head:
        return FileKind.SCRIPT
    return FileKind.SCRIPT if has_suffix(path, script_suffixes) else None


def has_suffix(path: bytes, suffixes: Iterable[str]) -> bool:
    """Whether the name ends in one of the suffixes; a name that is nothing but a suffix does not count."""
    name = path.rpartition(b"/")[2]
    return any(name.endswith(suffix.encode()) and len(name) > len(suffix.encode()) for suffix in suffixes)


def final_path(path: bytes) -> bytes:
    """Return where a package manager moves what it writes: dpkg writes `x.dpkg-new`, rpm `x;5f0c1a2b`."""
    if path.endswith(b".dpkg-new"):
        return path[: -len(b".dpkg-new")]
    name, semicolon, tail = path.rpartition(b";")
    if semicolon and len(tail) == 8 and all(byte in b"0123456789abcdef" for byte in tail):
        return name
    return path
