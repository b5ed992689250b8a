"""Which programs are interpreters: those that the settings name, and what holds the same content under another name."""

import os

from keibi.agent.gate.judging import FileKey
from keibi.agent.modules.application_control.contents import sha256_of
from keibi.agent.modules.application_control.inventory import Inventory
from keibi.protection.patterns import Patterns

MAX_KNOWN = 4096


class Interpreters:
    """Says under which of the named interpreters a program is known. Any thread may use it."""

    def __init__(self, patterns: Patterns, inventory: Inventory) -> None:
        self._patterns = patterns
        self._inventory = inventory
        self._by_key: dict[FileKey, bytes] = {}

    def name_of(self, path: bytes, sha256: str) -> bytes:
        """Return the path of the named interpreter that a program is; b"" when it is none."""
        if self._patterns.match(path):
            return path
        if not sha256:
            return b""
        return next((one for one in self._inventory.paths_of(sha256) if self._patterns.match(one)), b"")

    def is_run_by(self, pid: int, path: bytes) -> bool:
        """Whether a process, whose program lies at `path`, runs an interpreter."""
        if self._patterns.match(path):
            return True
        link = f"/proc/{pid}/exe"
        try:
            key = FileKey.of(os.stat(link))
            if key not in self._by_key:
                if len(self._by_key) >= MAX_KNOWN:
                    self._by_key = {}
                self._by_key[key] = self.name_of(path, self._inventory.content_of(key) or _content(link))
        except OSError:
            return False
        return bool(self._by_key.get(key))


def _content(link: str) -> str:
    descriptor = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sha256_of(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
