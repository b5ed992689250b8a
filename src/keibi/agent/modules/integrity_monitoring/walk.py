"""Visits the watched directories, one listing each, without recursion and without leaving them by a symlink."""

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from keibi.agent.linux.file_queue import FileReader
from keibi.agent.linux.files import PACKED_STATE, Wish
from keibi.agent.linux.filesystems import FilesystemKind, MountTable
from keibi.agent.modules.integrity_monitoring.file_pages import join_path, split_path
from keibi.agent.modules.integrity_monitoring.scan_plan import DirectoryDecision, ScanPlan, ScanSummary


@dataclass(slots=True)
class Visit:
    """One directory as it was listed, reduced to the entries that are wanted."""

    path: bytes
    root: int  # descriptor, open until the walk ends
    relative: bytes  # of `path`, below the root
    is_loose: bool  # reached by a followed symlink
    names: bytes
    states: bytes
    wishes: bytes
    unknown: frozenset[bytes]  # names that are there, though lstat failed

    @property
    def count(self) -> int:
        """How many entries are wanted."""
        return len(self.wishes)


@dataclass(slots=True)
class _Stop:
    path: bytes
    root: int
    relative: bytes
    is_loose: bool
    decision: DirectoryDecision
    is_remote: bool


class Walk:
    """One walk over the roots of a plan. Problems go to `summary`; `close` gives the descriptors back."""

    def __init__(self, plan: ScanPlan, reader: FileReader, summary: ScanSummary) -> None:
        self._plan = plan
        self._reader = reader
        self._summary = summary
        self._mounts = MountTable()
        self._descriptors: list[int] = []
        self._followed: set[tuple[int, int]] = set()
        self._roots_left = set(plan.roots)

    def close(self) -> None:
        """Close the roots' descriptors: nothing that came out of `visits` may be read after that."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def visits(self) -> Iterator[Visit]:
        """Yield every watched directory once, each before those below it."""
        for root in sorted(self._plan.roots):
            if root in self._roots_left and (first := self._enter_root(root)):
                yield from self._below(first)

    def _enter_root(self, root: bytes) -> _Stop | None:
        decision = self._plan.decide(root)
        if decision is None or not os.path.isdir(root):
            return None
        try:
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._summary.add_problem(root, f"open: {error.strerror}")
            return None
        self._descriptors.append(descriptor)
        found = os.fstat(descriptor)
        kind = self._mounts.kind_of(found.st_dev)
        if kind is FilesystemKind.PSEUDO:
            self._summary.add_problem(root, f"not entered: {self._mounts.type_of(found.st_dev)} is a pseudo filesystem")
            return None
        self._followed.add((found.st_dev, found.st_ino))
        return _Stop(root, descriptor, b"", False, decision, kind is FilesystemKind.REMOTE)

    def _below(self, first: _Stop) -> Iterator[Visit]:
        stops = [first]
        while stops:
            stop = stops.pop()
            self._roots_left.discard(stop.path)
            try:
                names, states, directories, mounts, problems = self._reader.list_directory(
                    stop.root, stop.relative, stop.is_loose
                )
            except FileNotFoundError:
                continue  # gone since its parent was listed: the next scan finds it gone
            except OSError as error:
                self._summary.add_problem(stop.path, f"cannot be listed: {error.strerror}")
                continue
            for name, number in problems:
                self._summary.add_problem(join_path(stop.path, name), f"lstat: {os.strerror(number)}")
            below = [self._next_stop(stop, name, name in mounts) for name in directories]
            if stop.decision.follow_links:
                below += self._linked(stop, names, states)
            stops += reversed([found for found in below if found])
            names, states, wishes = _wanted(stop.decision, names, states, directories)
            unknown = frozenset(name for name, _ in problems)
            yield Visit(stop.path, stop.root, stop.relative, stop.is_loose, names, states, wishes, unknown)

    def _next_stop(self, stop: _Stop, name: bytes, is_mount: bool) -> _Stop | None:
        path = join_path(stop.path, name)
        decision = self._plan.decide(path)
        if decision is None:
            return None
        is_remote = stop.is_remote
        if is_mount:
            if not stop.decision.cross_filesystems:
                return None
            device = os.lstat(path).st_dev
            kind = self._mounts.kind_of(device)
            is_remote = kind is FilesystemKind.REMOTE
            if kind is FilesystemKind.PSEUDO or (is_remote and not stop.is_remote):
                self._summary.add_problem(path, f"not entered: {self._mounts.type_of(device)} is a {kind} filesystem")
                return None
        relative = stop.relative + b"/" + name if stop.relative else name
        return _Stop(path, stop.root, relative, stop.is_loose, decision, is_remote)

    def _linked(self, stop: _Stop, names: bytes, states: bytes) -> Iterator[_Stop | None]:
        """Yield the directories that symlinks of this one lead to; each directory is followed to once, so loops end."""
        for index, name in enumerate(names.split(b"\0")):
            if not states or not stat.S_ISLNK(_mode(states, index)):
                continue
            path = join_path(stop.path, name)
            try:
                found = os.stat(path)
            except OSError:
                continue  # dangling, or a loop of symlinks: the entry itself is kept all the same
            if not stat.S_ISDIR(found.st_mode):
                continue
            if (found.st_dev, found.st_ino) in self._followed:
                self._summary.add_problem(path, "not followed: its directory was entered before in this scan")
                continue
            self._followed.add((found.st_dev, found.st_ino))
            following = self._next_stop(stop, name, False)
            if following and self._mounts.kind_of(found.st_dev) is FilesystemKind.ORDINARY:
                following.is_loose = True
                yield following


def wish_for(plan: ScanPlan, path: bytes, *, is_directory: bool) -> Wish:
    """Return what is wanted of a single path, by the decision on the directory that it lies in."""
    directory, name = split_path(path)
    decision = plan.decide(directory)
    if is_directory:
        return (decision.directories if decision else Wish.NOTHING) | Wish.STATE
    if decision is None:
        return Wish.STATE | Wish.CONTENT
    return decision.select(name) if decision.select else decision.files


def _mode(states: bytes, index: int) -> int:
    return int.from_bytes(states[index * PACKED_STATE.size : index * PACKED_STATE.size + 4], sys.byteorder)


def _wanted(decision: DirectoryDecision, names: bytes, states: bytes, directories: list[bytes]) -> tuple[bytes, bytes, bytes]:
    """Return names, states and wishes of the entries to keep. Subdirectories are always kept."""
    count = len(states) // PACKED_STATE.size
    if decision.select is None and decision.files is not Wish.NOTHING:
        if not directories or decision.directories == decision.files:
            return names, states, bytes([decision.files.value]) * count
        are_directories = frozenset(directories)
        ours, theirs = decision.directories.value | Wish.STATE.value, decision.files.value
        return names, states, bytes(ours if name in are_directories else theirs for name in names.split(b"\0"))
    are_directories = frozenset(directories)
    kept_names: list[bytes] = []
    kept_states: list[bytes] = []
    wishes = bytearray()
    for index, name in enumerate(names.split(b"\0") if count else []):
        if name in are_directories:
            wish = decision.directories | Wish.STATE
        else:
            wish = decision.select(name) if decision.select else decision.files
        if wish:
            kept_names.append(name)
            kept_states.append(states[index * PACKED_STATE.size : (index + 1) * PACKED_STATE.size])
            wishes.append(wish.value)
    return b"\0".join(kept_names), b"".join(kept_states), bytes(wishes)
