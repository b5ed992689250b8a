"""Turns what was listed and hashed into states or pages, and reads again what did not hold still."""

import os
import struct
from collections.abc import Iterator
from dataclasses import replace

from keibi.agent.linux.file_queue import Answer, FileReader
from keibi.agent.linux.files import (
    DIGEST_BYTES,
    PACKED_STATE,
    Absent,
    ContentOutcome,
    FileState,
    Unreadable,
    Wish,
    pack_state,
    read_file_state,
    unpack_state,
    with_details,
)
from keibi.agent.modules.integrity_monitoring.file_pages import (
    Extras,
    Page,
    extras_of,
    is_settled,
    join_path,
    packed_pages,
    pages_of,
    symlink_marks,
)
from keibi.agent.modules.integrity_monitoring.scan_plan import ScanPlan, ScanSummary
from keibi.agent.modules.integrity_monitoring.walk import Visit, wish_for

_ERRNO = struct.Struct("=i")


class EntryReader:
    """Gives the entries of visited directories; what could not be read goes to `summary`."""

    def __init__(self, plan: ScanPlan, reader: FileReader, summary: ScanSummary) -> None:
        self._plan = plan
        self._reader = reader
        self._summary = summary

    def root(self, path: bytes) -> FileState | Absent | Unreadable:
        """Return the state of a root that no visited directory lists; Absent also when nobody wants it."""
        wish = wish_for(self._plan, path, is_directory=os.path.isdir(path))
        return self._read(path, wish) if wish else Absent(path)

    def states(self, visit: Visit, answer: Answer, before: dict[bytes, FileState]) -> Iterator[FileState]:
        """Yield the entries as they are now. What was not read again is taken over from `before`."""
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
            if old is not None and (old.asked != wish or pack_state(old) != pack_state(state)):
                old = None  # nothing of it can be trusted
            if old is not None and outcome is ContentOutcome.NOT_ASKED:
                yield old
                continue
            if outcome in (ContentOutcome.UNSTABLE, ContentOutcome.VANISHED):
                again = self._read(state.path, wish)
                if not isinstance(again, Absent):
                    yield again if isinstance(again, FileState) else replace(state, content=outcome, problem=again.problem)
                continue
            problem = _problem(answer, index)
            if problem:
                self._summary.add_problem(state.path, problem)
            if old is None:
                old = with_details(state, wish)
            yield replace(old, content=outcome, content_hash=digest, problem=problem or old.problem)

    def pages(self, visit: Visit, answer: Answer) -> list[Page]:
        """Return the pages of a directory: straight from the packed bytes, where nothing went wrong."""
        if not visit.count:
            return []
        asked = Wish(0)
        for value in set(visit.wishes):
            asked |= Wish(value)
        if answer.problems or not is_settled(answer.outcomes) or asked & (Wish.FLAGS | Wish.ACCESS_TIME):
            return list(pages_of(visit.path, list(self.states(visit, answer, {}))))
        extras = self._extras(visit, has_xattrs=Wish.XATTRS in asked)
        return packed_pages(visit.path, visit.names, visit.states, visit.wishes, answer.outcomes, answer.digests, extras)

    def _extras(self, visit: Visit, *, has_xattrs: bool) -> list[Extras]:
        """Return link targets and xattrs of the few entries that have some."""
        marks = symlink_marks(visit.states)
        if has_xattrs:
            with_xattrs = self._reader.mark_xattrs(visit.root, visit.relative, visit.names, visit.is_loose)
            marks = bytes(map(int.__or__, marks, with_xattrs))
        if not any(marks):
            return []
        names = visit.names.split(b"\0")
        return [
            extras
            for index, mark in enumerate(marks)
            if mark and (extras := extras_of(index, self._detailed(visit, index, names[index])))
        ]

    def _detailed(self, visit: Visit, index: int, name: bytes) -> FileState:
        state = unpack_state(join_path(visit.path, name), visit.states, index * PACKED_STATE.size)
        state = with_details(state, Wish(visit.wishes[index]))
        if state.problem:
            self._summary.add_problem(state.path, state.problem)
        return state

    def _read(self, path: bytes, wish: Wish) -> FileState | Absent | Unreadable:
        found = read_file_state(path, wish, algorithm=self._plan.algorithm, max_content_bytes=self._plan.max_content_bytes)
        if isinstance(found, FileState) and found.is_unstable:
            self._summary.unstable_count += 1
        if not isinstance(found, Absent) and found.problem:
            self._summary.add_problem(path, found.problem)
        return found


def _problem(answer: Answer, index: int) -> str:
    number = _ERRNO.unpack_from(answer.problems, index * _ERRNO.size)[0] if answer.problems else 0
    return f"content: {os.strerror(number)}" if number else ""
