"""Whose writing is trusted: package managers, pip in a named environment, named deployment programs, with all they start.

A program is known by its inode and never by its name: the process must run the very file that lies at the path, and root alone
may be able to change that file. The program must still be running; what it left behind in the background is no longer trusted.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

from keibi.agent.modules.application_control.asking import command_line_of, executable_of, is_root_writable_only
from keibi.agent.process_book import ProcessBook
from keibi.protection.application_control.settings import ApplicationControlSettings
from keibi.protection.base import unescape_name

PACKAGE_MANAGERS = (b"/usr/bin/dpkg", b"/usr/bin/rpm", b"/usr/bin/dnf", b"/usr/bin/dnf-3", b"/usr/bin/microdnf", b"/usr/bin/yum")
"""Programs that unpack packages. apt and others have dpkg do it, and bring no software themselves."""


@dataclass(frozen=True, slots=True)
class Updater:
    """Why a writer is trusted."""

    process: str  # path of the program that is trusted, escaped
    package: bool  # it is a package manager


class Patience:
    """How long to wait until the sensor tells of a writer that has ended already; none for a while after waiting in vain.

    Several threads may use it; a count that is off by one does no harm.
    """

    def __init__(self, *, seconds: float = 0.25, most_failures: int = 4, rest_seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._most_failures = most_failures
        self._rest_seconds = rest_seconds
        self._failures = 0
        self._rests_until = 0.0

    @property
    def seconds(self) -> float:
        """How long to wait now."""
        return 0.0 if time.monotonic() < self._rests_until else self._seconds

    def learn(self, *, was_known: bool) -> None:
        """Take note of whether the writer was known in the end."""
        self._failures = 0 if was_known else self._failures + 1
        if self._failures >= self._most_failures:
            self._failures = 0
            self._rests_until = time.monotonic() + self._rest_seconds


class Updaters:
    """Says which writers are trusted under the settings."""

    def __init__(self, settings: ApplicationControlSettings, book: ProcessBook, patience: Patience | None = None) -> None:
        self._book = book
        self._patience = patience or Patience()
        self._managers = frozenset(PACKAGE_MANAGERS) if settings.trust_package_manager else frozenset()
        self._named = frozenset(os.fsencode(path) for path in settings.trusted_updaters)
        self._environments = tuple(os.fsencode(path).rstrip(b"/") for path in settings.trusted_virtual_environments)

    def of(self, pid: int, path: bytes) -> Updater | None:
        """Return why what a process writes to a path is trusted, or None."""
        if not (self._managers or self._named or self._environments):
            return None
        chain = self._book.chain(pid, wait_seconds=self._patience.seconds)
        self._patience.learn(was_known=bool(chain))
        for link in chain:
            program = unescape_name(link["process"])
            if program in self._managers or program in self._named:
                if self._is_genuine(link, program):
                    return Updater(link["process"], program in self._managers)
            elif any(path.startswith(environment + b"/") for environment in self._environments) and self._is_pip(link, path):
                return Updater(f"pip of {link['process']}", False)
        return None

    def _is_genuine(self, link: dict[str, Any], program: bytes) -> bool:
        """Whether the process runs the file at this path now, which root alone can change; a package manager runs as root."""
        pid = link["pid"]
        _, running = executable_of(pid)
        try:
            found = os.stat(program)
            owner = os.stat(f"/proc/{pid}").st_uid
        except OSError:
            return False
        if running != (found.st_dev, found.st_ino):
            return False
        if program in self._managers and owner != 0:
            return False  # anybody can unpack a package into a folder of their own
        return is_root_writable_only(0, program, found)

    def _is_pip(self, link: dict[str, Any], path: bytes) -> bool:
        arguments = command_line_of(link["pid"])
        for environment in self._environments:
            if not path.startswith(environment + b"/") or len(arguments) < 2:
                continue
            _, running = executable_of(link["pid"])
            if running is None or running not in _interpreters(link["pid"], environment):
                continue
            scripts = environment + b"/bin/"
            if arguments[1].startswith(scripts + b"pip") or (
                arguments[0].startswith(scripts + b"python") and arguments[1:3] == (b"-m", b"pip")
            ):
                return True
        return False


def _interpreters(pid: int, environment: bytes) -> set[tuple[int, int]]:
    found = set()
    for name in (b"python", b"python3"):
        try:
            # As the process sees it: it may live in a container.
            status = os.stat(b"/proc/%d/root" % pid + environment + b"/bin/" + name)
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found
