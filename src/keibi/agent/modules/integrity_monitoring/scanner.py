"""Walks the watched directories and says what differs from the baseline.

The scanner knows no rules: `ScanPlan.decide` is asked once for every directory and says what to take of it. Every
subdirectory of a visited directory is kept as an entry, watched or not, so that one that vanishes is found with all that
was below it.

Theory of operation: this thread lists directories and puts those with files to hash into a `HashQueue`, whose own threads
hash while it lists on. A directory that equals its pages is done without a look at its single entries.
"""

import math
import os
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from keibi.agent.linux.file_queue import Answer, FileReader, HashQueue, file_reader
from keibi.agent.linux.files import PACKED_STATE, FileState, FileType, Unreadable, Wish
from keibi.agent.modules.integrity_monitoring.baseline import Baseline, FileChange
from keibi.agent.modules.integrity_monitoring.entries import EntryReader
from keibi.agent.modules.integrity_monitoring.file_pages import (
    SETTLED_OUTCOMES,
    Page,
    has_same_content,
    is_listing,
    join_path,
    split_path,
)
from keibi.agent.modules.integrity_monitoring.scan_plan import ScanPlan, ScanProgress, ScanSummary, Trust
from keibi.agent.modules.integrity_monitoring.walk import Visit, Walk

_MAX_WAITING_DIRECTORIES = 2000
_MAX_WAITING_ENTRIES = 50_000
_PROGRESS_SECONDS = 0.5
_WAIT_SECONDS = 0.2  # between two looks whether the scan was cancelled, while a huge file is read
_COMMIT_PAGES = 4000


@dataclass(frozen=True, slots=True)
class DirectoryDifference:
    """The changes of one directory's entries."""

    directory: bytes
    changes: list[FileChange]


@dataclass(slots=True)
class _Pending:
    visit: Visit
    pages: list[Page]  # what the baseline has
    hashing: bytes  # a wish for each entry: which contents are being read


class Scanner:
    """One scan. Use it once: `build` or `differences`, then read `summary`."""

    def __init__(self, baseline: Baseline, plan: ScanPlan, *, reader: FileReader | None = None) -> None:
        self.summary = ScanSummary()
        self._baseline = baseline
        self.plan = plan
        self._reader = reader or file_reader()
        self._entries = EntryReader(plan, self._reader, self.summary)
        self._pending: dict[int, _Pending] = {}
        self._pending_entries = 0
        self._last_progress = time.monotonic()

    # --- the three things that can be asked

    def build(self, version: int) -> ScanSummary:
        """Replace all pages by what is there now, in several transactions of its own.

        The caller made `version` (kind BUILD) and finishes it afterwards when `is_complete`: a version that is not finished
        says that the agent was stopped in mid-build, and the build must be done again.
        """
        with self._baseline.transaction():
            self._baseline.forget_files()
        batch: list[Page] = []
        for pending, answer in self._answers(is_comparing=False):
            batch += self._entries.pages(pending.visit, answer)
            if len(batch) >= _COMMIT_PAGES:
                self._commit(batch)
        self._commit(batch)
        if self.summary.is_complete:
            found = [self._entries.root(path) for path in self._entry_roots()]
            roots = [FileChange(state.path, None, state) for state in found if isinstance(state, FileState)]
            with self._baseline.transaction():
                self._baseline.store_files(version, roots, is_logged=False)
        return self.summary

    def differences(self) -> Iterator[DirectoryDifference]:
        """Yield what differs from the baseline, directory by directory, in no promised order.

        The caller may write to the baseline between two of them (`store_files`), also on the same connection.
        """
        for root in self._entry_roots():
            yield from self._root_difference(root)
        for pending, answer in self._answers(is_comparing=True):
            yield from self._compare(pending, answer)

    def forget_unwatched(self) -> int:
        """Drop the pages of directories that the plan does not visit (any more); return how many directories.

        For the caller's transaction, after the rules changed: what is watched no longer must not look deleted later.
        """
        parents = {split_path(root)[0] for root in self.plan.roots}
        unwatched = [
            directory
            for directory in self._baseline.all_directories()
            if directory not in parents and not self._is_visited(directory)
        ]
        for directory in unwatched:
            self._baseline.put_pages(directory, [])
        return len(unwatched)

    def _is_visited(self, directory: bytes) -> bool:
        """Return whether a walk could come to the directory: from a root, and let through at every step."""
        path = directory
        while self.plan.decide(path) is not None:
            if path in self.plan.roots:
                return True
            if path in (b"", b"/"):
                break
            path = split_path(path)[0]
        return False

    # --- the pipeline

    def _answers(self, *, is_comparing: bool) -> Iterator[tuple[_Pending, Answer]]:
        """Yield every visited directory with its hashes, except those that were found unchanged."""
        started = time.monotonic()
        walk = Walk(self.plan, self._reader, self.summary)
        try:
            with self._hashing() as queue:
                for ticket, visit in enumerate(walk.visits()):
                    if self.plan.is_cancelled():
                        return
                    self.summary.directory_count += 1
                    self.summary.entry_count += visit.count
                    if pending := self._look_at(visit, is_comparing):
                        self._pending[ticket] = pending
                        self._pending_entries += visit.count
                        queue.add(ticket, visit.root, visit.relative, visit.names, visit.states, pending.hashing, visit.is_loose)
                    yield from self._take(queue)
                    self._tell(queue, visit.path)
                queue.close()
                while self._pending and not self.plan.is_cancelled():
                    yield from self._take(queue, is_last=True)
                    self._tell(queue, b"")
                self.summary.is_complete = not self.plan.is_cancelled()
        finally:
            walk.close()
            self.summary.wall_seconds = time.monotonic() - started

    @contextmanager
    def _hashing(self) -> Iterator[HashQueue]:
        """Run hash threads during the body; when it is left early they are cancelled."""
        cores = os.cpu_count() or 1
        percent = self.plan.cpu_percent
        queue = self._reader.new_queue(
            self.plan.algorithm,
            share=0.0 if percent >= 100 * cores else percent / 100,
            max_content_bytes=self.plan.max_content_bytes,
        )
        threads = [
            threading.Thread(target=queue.run, name=f"hash-{number}", daemon=True)
            # Twice as many as can compute at once: on a cold disk half of them wait. The share holds all the same.
            for number in range(2 * max(1, min(cores, math.ceil(percent / 100))))
        ]
        for thread in threads:
            thread.start()
        try:
            yield queue
        finally:
            queue.cancel()
            for thread in threads:
                thread.join()
            self.summary.hashed_count, self.summary.hashed_bytes, _, _ = queue.counts()

    def _take(self, queue: HashQueue, *, is_last: bool = False) -> Iterator[tuple[_Pending, Answer]]:
        """Yield what is hashed. Waits only when too much is under way, and at the end, for a moment."""
        while self._pending and not self.plan.is_cancelled():
            is_full = len(self._pending) >= _MAX_WAITING_DIRECTORIES or self._pending_entries >= _MAX_WAITING_ENTRIES
            if not is_full and not is_last and len(self._pending) % 64:
                return
            for answer in map(Answer._make, queue.take(_WAIT_SECONDS if is_full or is_last else 0.0)):
                pending = self._pending.pop(answer.ticket)
                self._pending_entries -= pending.visit.count
                yield pending, answer
            if not is_full:
                return

    def _tell(self, queue: HashQueue, current: bytes) -> None:
        if self.summary.directory_count % 64 == 0:
            queue.pace()
        if self.plan.on_progress is None or time.monotonic() - self._last_progress < _PROGRESS_SECONDS:
            return
        self._last_progress = time.monotonic()
        count, size, _, _ = queue.counts()
        self.plan.on_progress(ScanProgress(self.summary.directory_count, self.summary.entry_count, count, size, current))

    # --- what to hash

    def _look_at(self, visit: Visit, is_comparing: bool) -> _Pending | None:
        """Return what is to be done about a directory; None when it is as the baseline has it and is trusted."""
        if not is_comparing:
            return _Pending(visit, [], visit.wishes)
        pages = self._baseline.pages(visit.path)
        if not pages:
            return _Pending(visit, [], visit.wishes)
        if is_listing(pages, visit.names, visit.states, visit.wishes) and all(page.is_settled for page in pages):
            if self.plan.trust is Trust.CHANGE_TIME:
                return None
            hashing = self._again(visit)
            return _Pending(visit, pages, hashing) if any(hashing) else None
        return _Pending(visit, pages, self._not_trusted(visit, pages))

    def _again(self, visit: Visit) -> bytes:
        """Return which contents are read again though nothing says that they changed."""
        match self.plan.trust:
            case Trust.CHANGE_TIME:
                return bytes(visit.count)
            case Trust.NOTHING:
                return visit.wishes
        prefix = zlib.crc32(join_path(visit.path, b"") if visit.path != b"/" else b"/")
        number, count = self.plan.share_number, self.plan.share_count
        return bytes(
            wish if zlib.crc32(name, prefix) % count == number else 0
            for wish, name in zip(visit.wishes, visit.names.split(b"\0"), strict=False)
        )

    def _not_trusted(self, visit: Visit, pages: list[Page]) -> bytes:
        known: dict[bytes, tuple[bytes, bool]] = {}
        size = PACKED_STATE.size
        for page in pages:
            for index, name in enumerate(page.entry_names()):
                is_read = bool(page.wishes[index] & Wish.CONTENT.value) and page.outcomes[index] in SETTLED_OUTCOMES
                known[name] = (page.states[index * size : (index + 1) * size], is_read)
        hashing = bytearray(self._again(visit))
        for index, name in enumerate(visit.names.split(b"\0") if visit.count else []):
            if known.get(name) != (visit.states[index * size : (index + 1) * size], True):
                hashing[index] |= visit.wishes[index] & Wish.CONTENT.value
        return bytes(hashing)

    # --- what became of it

    def _compare(self, pending: _Pending, answer: Answer) -> Iterator[DirectoryDifference]:
        visit, pages = pending.visit, pending.pages
        if (
            pages
            and is_listing(pages, visit.names, visit.states, visit.wishes)
            and has_same_content(pages, answer.outcomes, answer.digests)
        ):
            return
        before = {state.path: state for page in pages for state in page.entries()}
        after = {state.path: state for state in self._entries.states(visit, answer, before)}
        changes = [
            FileChange(path, before.get(path), after.get(path))
            for path in sorted(before.keys() | after.keys())
            if before.get(path) != after.get(path) or before[path].asked != after[path].asked
            if path in after or split_path(path)[1] not in visit.unknown
        ]
        if changes:
            self.summary.change_count += len(changes)
            yield DirectoryDifference(visit.path, changes)
        for change in changes:
            yield from self._lost_directories(change)

    def _lost_directories(self, change: FileChange) -> Iterator[DirectoryDifference]:
        """Yield everything that was below an entry that is no directory (or followed symlink) any more."""
        was = change.before.type if change.before else None
        if was not in (FileType.DIRECTORY, FileType.SYMLINK) or (change.after and change.after.type is was):
            return
        for directory in self._baseline.directories_under(change.path):
            gone = [FileChange(state.path, state, None) for page in self._baseline.pages(directory) for state in page.entries()]
            self.summary.change_count += len(gone)
            yield DirectoryDifference(directory, gone)

    def _root_difference(self, root: bytes) -> Iterator[DirectoryDifference]:
        before, found = self._baseline.file(root), self._entries.root(root)
        if isinstance(found, Unreadable):
            return
        after = found if isinstance(found, FileState) else None
        if before != after:
            change = FileChange(root, before, after)
            self.summary.change_count += 1
            yield DirectoryDifference(split_path(root)[0], [change])
            yield from self._lost_directories(change)

    def _entry_roots(self) -> list[bytes]:
        """Return the roots that no visited directory has as an entry."""
        return [root for root in sorted(set(self.plan.roots)) if root == b"/" or not self._is_visited(split_path(root)[0])]

    def _commit(self, pages: list[Page]) -> None:
        if pages:
            with self._baseline.transaction():
                self._baseline.add_pages(pages)
            pages.clear()
