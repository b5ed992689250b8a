"""What is let pass although no judge says so and the terms deny: what signing in and the package manager need.

A file belongs to it by where it lies *and* by who could have put it there: file and directory are root's alone. Programs are
named one by one; of what is only opened, such as libraries and configuration, the system's own directories count whole.
"""

import os
from typing import Final

from keibi.agent.gate.judging import EXEC
from keibi.agent.gate.remembering import may_be_ignored

_PROGRAM_DIRECTORIES: Final = (b"/usr/bin/", b"/usr/sbin/", b"/bin/", b"/sbin/")
_PROGRAMS: Final = frozenset({
    b"init", b"systemd", b"sshd", b"login", b"su", b"sudo", b"agetty", b"getty", b"sulogin", b"unix_chkpwd", b"bash", b"dash",
    b"sh",
})  # fmt: skip
_PROGRAM_PREFIXES: Final = (b"dpkg", b"apt", b"rpm", b"dnf", b"yum")
_EXECUTED_BELOW: Final = (
    b"/usr/lib/systemd/", b"/lib/systemd/", b"/usr/lib/openssh/", b"/usr/libexec/openssh/", b"/usr/lib/apt/", b"/usr/lib/rpm/",
)  # fmt: skip
_LOADER_PREFIXES: Final = (b"ld-linux", b"ld-musl")
_LIBRARY_DIRECTORIES: Final = (b"/usr/lib", b"/lib")  # lib, lib32, lib64, and what lies below
_OPENED_BELOW: Final = (
    *_PROGRAM_DIRECTORIES, b"/usr/libexec/", b"/usr/share/", b"/etc/", b"/root/.ssh/", b"/var/lib/dpkg/", b"/var/lib/apt/",
    b"/var/lib/rpm/",
)  # fmt: skip


def is_needed(event: str, path: bytes, status: os.stat_result) -> bool:
    """Return whether a file is part of the floor; looks it up by its path."""
    is_named = _is_program(path) if event == EXEC else path.startswith((*_OPENED_BELOW, *_LIBRARY_DIRECTORIES))
    return is_named and may_be_ignored(status, path)


def _is_program(path: bytes) -> bool:
    directory, _, name = path.rpartition(b"/")
    if directory + b"/" in _PROGRAM_DIRECTORIES:
        return name in _PROGRAMS or name.startswith(_PROGRAM_PREFIXES)
    if path.startswith(_LIBRARY_DIRECTORIES) and name.startswith(_LOADER_PREFIXES):
        return True
    return path.startswith(_EXECUTED_BELOW)
