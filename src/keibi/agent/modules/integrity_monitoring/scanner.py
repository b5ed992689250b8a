"""Walks the watched directories and says what differs from the baseline.

The scanner knows no rules: `ScanPlan.decide` is asked once for every directory and says what to take of it. Every
subdirectory of a visited directory is kept as an entry, watched or not, so that one that vanishes is found with all that
was below it.

Theory of operation: this thread lists directories and puts those with files to hash into a `HashQueue`, whose own threads
hash while it lists on. A directory that equals its pages is done without a look at its single entries.
"""

import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from keibi.agent.linux.file_queue import Answer, FileReader, HashQueue, file_reader
from keibi.agent.linux.files import (
    DIGEST_BYTES,
    PACKED_STATE,
    Absent,
    ContentOutcome,
    FileState,
    FileType,
    Unreadable,
    Wish,
    read_file_state,
    unpack_state,
    with_details,
)
from keibi.agent.modules.integrity_monitoring.baseline import Baseline, FileChange
from keibi.agent.modules.integrity_monitoring.file_pages import Page, join_path, pages_of, split_path
from keibi.agent.modules.integrity_monitoring.scan_plan import ScanPlan, ScanProgress, ScanSummary, Trust
from keibi.agent.modules.integrity_monitoring.walk import Visit, Walk, wish_for

_MAX_WAITING_DIRECTORIES = 2000
_MAX_WAITING_ENTRIES = 50_000
_PROGRESS_SECONDS = 0.5
_COMMIT_PAGES = 4000
_DETAILS = Wish.XATTRS | Wish.FLAGS | Wish.ACCESS_TIME
_HASH = Wish.CONTENT.value.to_bytes(1, "little")
_ERRNO = struct.Struct("=i")


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
        self._plan = plan
        self._reader = reader or file_reader()
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
            batch += self._pages(pending.visit, answer)
            if len(batch) >= _COMMIT_PAGES:
                self._commit(batch)
        self._commit(batch)
        if self.summary.is_complete:
            roots = [FileChange(path, None, state) for path in self._entry_roots() if (state := self._read_root(path))]
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
        parents = {split_path(root)[0] for root in self._plan.roots}
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
        while self._plan.decide(path) is not None:
            if path in self._plan.roots:
                return True
            if path in (b"", b"/"):
                break
            path = split_path(path)[0]
        return False

    # --- the pipeline

    def _answers(self, *, is_comparing: bool) -> Iterator[tuple[_Pending, Answer]]:
        """Yield every visited directory with its hashes, except those that were found unchanged."""
        started = time.monotonic()
        walk = Walk(self._plan, self._reader, self.summary)
        try:
            with self._hashing() as queue:
                for ticket, visit in enumerate(walk.visits()):
                    if self._plan.is_cancelled():
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
                while self._pending and not self._plan.is_cancelled():
                    yield from self._take(queue, is_last=True)
                    self._tell(queue, b"")
                self.summary.is_complete = not self._plan.is_cancelled()
        finally:
            walk.close()
            self.summary.wall_seconds = time.monotonic() - started

    @contextmanager
    def _hashing(self) -> Iterator[HashQueue]:
        """Run hash threads during the body; when it is left early they are cancelled."""
        cores = os.cpu_count() or 1
        percent = self._plan.cpu_percent
        queue = self._reader.new_queue(
            self._plan.algorithm,
            share=0.0 if percent >= 100 * cores else percent / 100,
            max_content_bytes=self._plan.max_content_bytes,
        )
        threads = [
            threading.Thread(target=queue.run, name=f"hash-{number}", daemon=True)
            for number in range(max(1, min(cores, math.ceil(percent / 100))))
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
        is_full = len(self._pending) >= _MAX_WAITING_DIRECTORIES or self._pending_entries >= _MAX_WAITING_ENTRIES
        if not is_full and not is_last and len(self._pending) % 64:
            return
        for answer in map(Answer._make, queue.take(is_full or is_last)):
            pending = self._pending.pop(answer.ticket)
            self._pending_entries -= pending.visit.count
            yield pending, answer

    def _tell(self, queue: HashQueue, current: bytes) -> None:
        if self.summary.directory_count % 64 == 0:
            queue.pace()
        if self._plan.on_progress is None or time.monotonic() - self._last_progress < _PROGRESS_SECONDS:
            return
        self._last_progress = time.monotonic()
        count, size, _, _ = queue.counts()
        self._plan.on_progress(ScanProgress(self.summary.directory_count, self.summary.entry_count, count, size, current))

    # --- what to hash

    def _look_at(self, visit: Visit, is_comparing: bool) -> _Pending | None:
        """Return what is to be done about a directory; None when it is as the baseline has it and is trusted."""
        if not is_comparing:
            return _Pending(visit, [], visit.wishes)
        pages = self._baseline.pages(visit.path)
        if not pages:
            return _Pending(visit, [], visit.wishes)
        if _is_listing(pages, visit) and all(page.is_settled for page in pages):
            if self._plan.trust is Trust.CHANGE_TIME:
                return None
            hashing = self._again(visit)
            return _Pending(visit, pages, hashing) if any(hashing) else None
        return _Pending(visit, pages, self._not_trusted(visit, pages))

    def _again(self, visit: Visit) -> bytes:
        """Return which contents are read again though nothing says that they changed."""
        match self._plan.trust:
            case Trust.CHANGE_TIME:
                return bytes(visit.count)
            case Trust.NOTHING:
                return visit.wishes
        prefix = zlib.crc32(join_path(visit.path, b"") if visit.path != b"/" else b"/")
        number, count = self._plan.share_number, self._plan.share_count
        return bytes(
            wish if zlib.crc32(name, prefix) % count == number else 0
            for wish, name in zip(visit.wishes, visit.names.split(b"\0"), strict=False)
        )

    def _not_trusted(self, visit: Visit, pages: list[Page]) -> bytes:
        known: dict[bytes, tuple[bytes, bool]] = {}
        size = PACKED_STATE.size
        for page in pages:
            for index, name in enumerate(page.entry_names()):
                is_read = bool(page.wishes[index] & Wish.CONTENT.value) and page.outcomes[index] in (0, 1, 5)
                known[name] = (page.states[index * size : (index + 1) * size], is_read)
        hashing = bytearray(self._again(visit))
        for index, name in enumerate(visit.names.split(b"\0") if visit.count else []):
            if known.get(name) != (visit.states[index * size : (index + 1) * size], True):
                hashing[index] |= visit.wishes[index] & Wish.CONTENT.value
        return bytes(hashing)

    # --- what became of it

    def _compare(self, pending: _Pending, answer: Answer) -> Iterator[DirectoryDifference]:
        visit, pages = pending.visit, pending.pages
        if pages and _is_listing(pages, visit) and _has_same_content(pages, answer):
            return
        before = {state.path: state for page in pages for state in page.entries()}
        after = {state.path: state for state in self._states(visit, answer, before)}
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
        before, after = self._baseline.file(root), self._read_root(root)
        if after is None and (self.summary.problems and self.summary.problems[-1].path == root):
            return
        if before != after:
            change = FileChange(root, before, after)
            self.summary.change_count += 1
            yield DirectoryDifference(split_path(root)[0], [change])
            yield from self._lost_directories(change)

    def _entry_roots(self) -> list[bytes]:
        """Return the roots that no visited directory has as an entry."""
        return [root for root in sorted(set(self._plan.roots)) if root == b"/" or not self._is_visited(split_path(root)[0])]

    def _read_root(self, root: bytes) -> FileState | None:
        wish = wish_for(self._plan, root, is_directory=os.path.isdir(root))
        match read_file_state(root, wish, algorithm=self._plan.algorithm, max_content_bytes=self._plan.max_content_bytes):
            case FileState() as state:
                return state
            case Absent():
                return None
            case Unreadable(problem=problem):
                self.summary.add_problem(root, problem)
                return None

    def _states(self, visit: Visit, answer: Answer, before: dict[bytes, FileState]) -> Iterator[FileState]:
        """Yield the entries as they are now, with what need not be read again taken over from before."""
        digest_at = 0
        for index, name in enumerate(visit.names.split(b"\0") if visit.count else []):
            state = unpack_state(join_path(visit.path, name), visit.states, index * PACKED_STATE.size)
            wish = Wish(visit.wishes[index])
            outcome = ContentOutcome(answer.outcomes[index])
            digest = b""
            if outcome is ContentOutcome.HASHED:
                digest = answer.digests[digest_at : digest_at + DIGEST_BYTES]
                digest_at += DIGEST_BYTES
            old = before.get(state.path)
            is_as_before = old is not None and _packed_equal(old, state) and old.asked == wish
            if is_as_before and old is not None and outcome is ContentOutcome.NOT_ASKED:
                yield old
                continue
            if outcome in (ContentOutcome.UNSTABLE, ContentOutcome.VANISHED):
                if again := self._read_again(state.path, wish):
                    yield again
                continue
            state = replace(state, content=outcome, content_hash=digest, problem=_problem(answer, index))
            if state.problem:
                self.summary.add_problem(state.path, state.problem)
            if is_as_before and old is not None:
                yield replace(old, content=outcome, content_hash=digest, problem=state.problem)
            else:
                yield with_details(state, wish)

    def _read_again(self, path: bytes, wish: Wish) -> FileState | None:
        match read_file_state(path, wish, algorithm=self._plan.algorithm, max_content_bytes=self._plan.max_content_bytes):
            case FileState() as state:
                if state.is_unstable:
                    self.summary.unstable_count += 1
                    self.summary.add_problem(path, state.problem)
                return state
            case Unreadable(problem=problem):
                self.summary.add_problem(path, problem)
        return None

    # --- pages of a build

    def _pages(self, visit: Visit, answer: Answer) -> list[Page]:
        """Return the pages of a directory, straight from the packed bytes where nothing went wrong."""
        if visit.count:
            states = list(self._states(visit, answer, {}))
            return list(pages_of(visit.path, states))
        return []

    def _commit(self, pages: list[Page]) -> None:
        if pages:
            with self._baseline.transaction():
                self._baseline.add_pages(pages)
            pages.clear()


def _problem(answer: Answer, index: int) -> str:
    number = _ERRNO.unpack_from(answer.problems, index * _ERRNO.size)[0] if answer.problems else 0
    return f"content: {os.strerror(number)}" if number else ""


def _packed_equal(old: FileState, new: FileState) -> bool:
    return replace(new, content=old.content, content_hash=old.content_hash, problem=old.problem, link_target=old.link_target,
                   xattrs=old.xattrs, flags=old.flags, accessed_ns=old.accessed_ns) == old  # fmt: skip


def _is_listing(pages: list[Page], visit: Visit) -> bool:
    """Return whether the pages hold exactly these names, lstat results and wishes."""
    if len(pages) == 1:
        page = pages[0]
        return page.states == visit.states and page.names == visit.names and page.wishes == visit.wishes
    return (
        b"".join(page.states for page in pages) == visit.states
        and b"\0".join(page.names for page in pages) == visit.names
        and b"".join(page.wishes for page in pages) == visit.wishes
    )


def _has_same_content(pages: list[Page], answer: Answer) -> bool:
    """Return whether what was hashed again equals what the pages hold."""
    outcomes = b"".join(page.outcomes for page in pages)
    digests = b"".join(page.digests for page in pages)
    if outcomes == answer.outcomes:
        return digests == answer.digests
    hashed = ContentOutcome.HASHED.value
    digest_at = 0
    for index, outcome in enumerate(answer.outcomes):
        if outcome == ContentOutcome.NOT_ASKED.value:
            continue
        if outcome != outcomes[index]:
            return False
        if outcome == hashed:
            rank = outcomes.count(hashed, 0, index) * DIGEST_BYTES
            if digests[rank : rank + DIGEST_BYTES] != answer.digests[digest_at : digest_at + DIGEST_BYTES]:
                return False
            digest_at += DIGEST_BYTES
    return True
