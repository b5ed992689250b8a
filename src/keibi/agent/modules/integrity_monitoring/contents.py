"""What is inside files: copies for later, differences for events, and which package explains new content."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable

from keibi.agent.linux.files import ContentOutcome, FileState, FileType, new_hasher, read_content
from keibi.agent.linux.software import DpkgFiles
from keibi.agent.modules.integrity_monitoring.content_store import ContentStore, is_text
from keibi.contract.events import Actor
from keibi.protection.base import escape_name
from keibi.protection.integrity_monitoring.difference import ContentDifference, compare_contents
from keibi.protection.integrity_monitoring.events import PackageOrigin
from keibi.protection.integrity_monitoring.packages import Packaged, explain
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings

PACKAGE_MANAGERS = ("/usr/bin/dpkg", "/usr/bin/rpm", "/usr/bin/dnf", "/usr/bin/yum", "/usr/libexec/packagekitd")
_BUSY_SECONDS = 0.2
_FILL = 0.8
MAX_EXPLAINED_BYTES = 256 * 1024 * 1024
"""Largest file that is read again to compare it with the package database."""


class Contents:
    """Keeps and compares file contents, as far as the policy allows it. Safe to be used by several threads."""

    def __init__(self, store: ContentStore, settings: IntegrityMonitoringSettings, algorithm: str) -> None:
        self._store = store
        self._settings = settings
        self._algorithm = algorithm
        self._lock = threading.Lock()

    def keep(self, state: FileState) -> bytes | None:
        """Keep a copy of a small text file as it is now, and return its content; None when it is not kept or has changed."""
        if not self._is_wanted(state):
            return None
        with self._lock:
            if (kept := self._store.get(state.content_hash)) is not None:
                return kept
        found = read_content(state.path, self._settings.content_max_bytes)
        if found is None or not is_text(found[1]):
            return None
        hasher = new_hasher(self._algorithm)
        hasher.update(memoryview(found[1]))
        if hasher.digest() != state.content_hash:
            return None
        with self._lock:
            self._store.put(state.content_hash, found[1])
        return found[1]

    def kept(self, state: FileState) -> bytes | None:
        """Return the copy of a file's content, if there is one."""
        if state.content is not ContentOutcome.HASHED:
            return None
        with self._lock:
            return self._store.get(state.content_hash)

    def keep_all(self, states: Iterable[FileState], is_cancelled: Callable[[], bool]) -> bool:
        """Keep copies of many files until the store is nearly full; return False when it was cancelled."""
        most = self._settings.content_store_max_megabytes * 1024 * 1024 * _FILL
        for state in states:
            if is_cancelled():
                return False
            with self._lock:
                if self._store.use().total_bytes > most:
                    return True  # the rest is for files that change
                is_kept = self._store.holds(state.content_hash)
            if not is_kept:
                self.keep(state)
        return True

    def difference(self, before: FileState | None, after: FileState | None) -> ContentDifference:
        """Return what changed inside the file, or a note that says why it cannot be told."""
        if not self._settings.capture_content:
            return ContentDifference("", note="the policy keeps no content")
        state = after or before
        if state is None or state.type is not FileType.REGULAR:
            return ContentDifference("", note="")
        if max(one.size for one in (before, after) if one) > self._settings.content_max_bytes:
            return ContentDifference("", note=f"larger than {self._settings.content_max_bytes} bytes")
        old = b"" if before is None else self.kept(before)
        new = b"" if after is None else self.keep(after)
        if old is None or new is None:
            missing = "before" if old is None else "after"
            return ContentDifference("", note=f"binary, or no copy of the content {missing} the change")
        return compare_contents(old, new, name=escape_name(state.path), masks_secrets=self._settings.mask_secrets)

    def _is_wanted(self, state: FileState) -> bool:
        return (
            self._settings.capture_content
            and state.content is ContentOutcome.HASHED
            and state.size <= self._settings.content_max_bytes
        )


class PackageKnowledge:
    """Which package a changed file belongs to, looked up only among packages whose lists changed lately."""

    def __init__(self, files: DpkgFiles | None = None) -> None:
        self._files = files or DpkgFiles()
        self._is_busy = False
        self._looked_at = 0.0

    def is_at_work(self, actor: Actor) -> bool:
        """Whether the change comes from a package manager that has not finished: its lists are not written yet."""
        if actor.process not in PACKAGE_MANAGERS:
            return False
        if time.monotonic() - self._looked_at > _BUSY_SECONDS:
            self._is_busy, self._looked_at = self._files.is_busy(), time.monotonic()
        return self._is_busy

    def origin(self, state: FileState, previous_version: Callable[[str], str], now: float) -> PackageOrigin | None:
        """Return the package whose recent installation or upgrade explains the file's content."""
        if state.type is not FileType.REGULAR or state.size > MAX_EXPLAINED_BYTES:
            return None
        recorded = self._files.lookup({state.path}, since=now - 3600).get(state.path)
        if recorded is None:
            return None
        try:
            with open(state.path, "rb") as file:
                digest = hashlib.file_digest(file, recorded.algorithm).hexdigest()
        except OSError:
            return None
        previous = self._files.previous_version(recorded.package) or previous_version(recorded.package)
        return explain(Packaged(recorded.package, recorded.version, recorded.digest), digest, previous)
