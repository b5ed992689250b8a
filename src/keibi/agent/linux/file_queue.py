"""Lists whole directories and hashes many files at once: in C where that part is built, else in Python with the same answers.

A `HashQueue` is filled with directories by one thread while others are in `run`; answers come back by directory, in the
form that a page of the baseline has.
"""

import errno
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import blake3

from keibi.agent.linux.files import (
    PACKED_STATE,
    READ_BYTES,
    ContentOutcome,
    Wish,
    hash_descriptor,
    new_hasher,
    open_regular,
    pack_stat,
)

_PATH_MAX = 4096
_GONE = (FileNotFoundError, NotADirectoryError)


class Listing(NamedTuple):
    """The entries of a directory, sorted by name, `.` and `..` left out."""

    names: bytes  # joined by NUL
    states: bytes  # PACKED_STATE after PACKED_STATE
    directories: list[bytes]  # those of the names that are directories
    mounts: list[bytes]  # those of the directories that lie on another filesystem
    problems: list[tuple[bytes, int]]  # names whose lstat failed, with the errno; they are not among the names


class Answer(NamedTuple):
    """What came of one directory's files."""

    ticket: int
    outcomes: bytes  # a ContentOutcome value for each name
    digests: bytes  # DIGEST_BYTES for each outcome HASHED
    problems: bytes  # an int32 errno for each name; empty when there is none


class HashQueue(Protocol):
    """Hashes the files of directories in any number of threads.

    `share` bounds the processor time of this whole process, in seconds a second (1.0 is one core, 0 no bound).
    """

    def add(
        self, ticket: int, root_descriptor: int, path: bytes, names: bytes, states: bytes, wishes: bytes, is_loose: bool, /
    ) -> None:
        """Ask for the regular files among the names whose wish (one byte each) has Wish.CONTENT."""

    def run(self) -> None:
        """Hash until the queue is closed and empty, or cancelled."""

    def take(self, wait_seconds: float, /) -> list[tuple[int, bytes, bytes, bytes]]:
        """Return the finished directories (as `Answer`); waits so long for the first when work is outstanding."""

    def pace(self) -> None:
        """Sleep while this process has used more than its share."""

    def close(self) -> None:
        """Tell `run` that nothing more will be added."""

    def cancel(self) -> None:
        """Stop soon. What is not answered yet never will be, and what is answered from now on means nothing."""

    def counts(self) -> tuple[int, int, int, int]:
        """Return hashed files, hashed bytes, outstanding directories and bytes that wait."""


class ListDirectory(Protocol):
    """Lists a directory below an open root; see `list_directory`."""

    def __call__(
        self, root_descriptor: int, path: bytes, is_loose: bool, /
    ) -> tuple[bytes, bytes, list[bytes], list[bytes], list[tuple[bytes, int]]]:
        """Return the fields of a `Listing`, or raise OSError."""


class MarkXattrs(Protocol):
    """Finds the entries that have extended attributes; see `mark_xattrs`."""

    def __call__(self, root_descriptor: int, path: bytes, names: bytes, is_loose: bool, /) -> bytes:
        """Return one byte for each name."""


@dataclass(frozen=True, slots=True)
class FileReader:
    """The way this computer lists and hashes: made once by `file_reader`."""

    is_native: bool
    list_directory: ListDirectory
    mark_xattrs: MarkXattrs
    _make_queue: Callable[[str, float, int], HashQueue]

    def new_queue(self, algorithm: str, *, share: float = 0.0, max_content_bytes: int = 0) -> HashQueue:
        """Return an empty queue. SHA-256 is OpenSSL's; BLAKE3 is the `blake3` package's, called by the C part bufferwise.

        Raises:
            ValueError: another algorithm.
        """
        new_hasher(algorithm)
        return self._make_queue(algorithm, share, max_content_bytes)


def file_reader(*, allow_native: bool = True) -> FileReader:
    """Return the C part where it is built, else the Python one."""
    if allow_native:
        try:
            from keibi.agent.linux import _files
        except ImportError:
            pass  # not built here, or no libcrypto: slower, with the same answers
        else:

            def make_native(algorithm: str, share: float, max_content_bytes: int) -> HashQueue:
                return _files.HashQueue(share, max_content_bytes, blake3.blake3 if algorithm == "blake3" else None)

            return FileReader(True, _files.list_directory, _files.mark_xattrs, make_native)

    def make_python(algorithm: str, share: float, max_content_bytes: int) -> HashQueue:
        return PythonHashQueue(algorithm, share=share, max_content_bytes=max_content_bytes)

    return FileReader(False, list_directory, mark_xattrs, make_python)


def open_directory(root_descriptor: int, path: bytes, is_loose: bool) -> int:
    """Return a descriptor of a directory below an open root; the caller closes it.

    Unless `is_loose`, no part of the path may be a symlink: who can rename a directory that is being walked could otherwise
    lead the walk elsewhere.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
    if len(path) >= _PATH_MAX:  # the kernel's answer, had it been given the path whole
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    if is_loose:
        return os.open(path or b".", flags, dir_fd=root_descriptor)
    descriptor = os.open(b".", flags, dir_fd=root_descriptor)
    for part in path.split(b"/") if path else []:
        try:
            below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def list_directory(root_descriptor: int, path: bytes, is_loose: bool, /) -> Listing:
    """Return the entries of the directory `path`, relative to the open directory `root_descriptor` ("" is that itself).

    Raises:
        OSError: it cannot be opened or read.
    """
    descriptor = open_directory(root_descriptor, path, is_loose)
    try:
        device = os.fstat(descriptor).st_dev
        names: list[bytes] = []
        states: list[bytes] = []
        directories: list[bytes] = []
        mounts: list[bytes] = []
        problems: list[tuple[bytes, int]] = []
        for name in sorted({os.fsencode(name) for name in os.listdir(descriptor)}):
            try:
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                problems.append((name, error.errno or 0))
                continue
            names.append(name)
            states.append(pack_stat(found))
            if stat.S_ISDIR(found.st_mode):
                directories.append(name)
                if found.st_dev != device:
                    mounts.append(name)
        return Listing(b"\0".join(names), b"".join(states), directories, mounts, problems)
    finally:
        os.close(descriptor)


def mark_xattrs(root_descriptor: int, path: bytes, names: bytes, is_loose: bool, /) -> bytes:
    """Return one byte for each name in a directory: 1 where the entry has extended attributes, or they cannot be listed.

    Raises:
        OSError: the directory cannot be opened.
    """
    descriptor = open_directory(root_descriptor, path, is_loose)
    try:
        return bytes(_has_xattrs(b"/proc/self/fd/%d/%s" % (descriptor, name)) for name in names.split(b"\0"))
    finally:
        os.close(descriptor)


def _has_xattrs(path: bytes) -> bool:
    try:
        return bool(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTSUP)


class _CancelledError(Exception):
    """Raised inside a worker to leave a large file."""


@dataclass(slots=True)
class _Directory:
    ticket: int
    root: int
    path: bytes
    is_loose: bool
    names: list[bytes]
    states: bytes
    wanted: deque[int]
    left: int
    outcomes: bytearray
    problems: list[int]
    digests: list[bytes]
    descriptor: int = -1
    open_problem: OSError | None = None

    def state(self, index: int) -> bytes:
        return self.states[index * PACKED_STATE.size : (index + 1) * PACKED_STATE.size]

    def answer(self) -> Answer:
        problems = b"".join(number.to_bytes(4, sys.byteorder, signed=True) for number in self.problems)
        return Answer(self.ticket, bytes(self.outcomes), b"".join(self.digests), problems if any(self.problems) else b"")


@dataclass(slots=True)
class _Pace:
    """Keeps a process within its share of processor time. Idle time is not saved up for long."""

    share: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    window_cpu: float = field(default_factory=time.process_time)
    window_wall: float = field(default_factory=time.monotonic)

    def debt_seconds(self) -> float:
        with self.lock:
            cpu, wall = time.process_time(), time.monotonic()
            debt = (cpu - self.window_cpu) - self.share * (wall - self.window_wall)
            if debt < -0.2 * self.share:
                self.window_cpu, self.window_wall = cpu, wall
            return debt / self.share


class PythonHashQueue:
    """`HashQueue` in Python: the twin of the C part."""

    def __init__(self, algorithm: str, *, share: float = 0.0, max_content_bytes: int = 0) -> None:
        self._algorithm = algorithm
        self._max_content_bytes = max_content_bytes
        self._pace = _Pace(share) if share > 0 else None
        self._changed = threading.Condition()
        self._waiting: deque[_Directory] = deque()
        self._finished: list[Answer] = []
        self._outstanding = 0
        self._is_closed = False
        self._is_cancelled = False
        self._hashed_count = 0
        self._hashed_bytes = 0
        self._waiting_bytes = 0

    def add(
        self, ticket: int, root_descriptor: int, path: bytes, names: bytes, states: bytes, wishes: bytes, is_loose: bool, /
    ) -> None:
        """Ask for a directory's files."""
        split = names.split(b"\0") if wishes else []
        if len(split) != len(wishes) or len(states) != len(wishes) * PACKED_STATE.size:
            raise ValueError(f"{len(wishes)} wishes, {len(split)} names and {len(states)} bytes of states do not fit together")
        modes = [PACKED_STATE.unpack_from(states, index * PACKED_STATE.size)[0] for index in range(len(wishes))]
        wanted = [i for i, wish in enumerate(wishes) if wish & Wish.CONTENT.value and stat.S_ISREG(modes[i])]
        directory = _Directory(
            ticket, root_descriptor, path, is_loose, split, states, deque(wanted), len(wanted),
            bytearray(len(wishes)), [0] * len(wishes), [b""] * len(wishes),
        )  # fmt: skip
        with self._changed:
            if wanted:
                self._outstanding += 1
                self._waiting_bytes += sum(self._size(directory, index) for index in wanted)
                self._waiting.append(directory)
            else:
                self._finished.append(directory.answer())
            self._changed.notify_all()

    def run(self) -> None:
        """Hash until the queue is closed and empty, or cancelled."""
        buffer = memoryview(bytearray(READ_BYTES))
        unpaced = 0
        while taken := self._next():
            directory, index = taken
            outcome, problem, digest = self._hash(directory, index, buffer)
            unpaced += self._size(directory, index) + 16 * 1024
            if unpaced >= READ_BYTES:
                unpaced = 0
                self.pace()
            self._record(directory, index, outcome, problem, digest)

    def take(self, wait_seconds: float, /) -> list[tuple[int, bytes, bytes, bytes]]:
        """Return the finished directories."""
        with self._changed:
            if wait_seconds > 0:
                self._changed.wait_for(lambda: self._finished or not self._outstanding or self._is_cancelled, wait_seconds)
            finished, self._finished = self._finished, []
        return list(finished)

    def pace(self) -> None:
        """Sleep while this process has used more than its share."""
        while self._pace and not self._is_cancelled and (debt := self._pace.debt_seconds()) > 0.002:
            time.sleep(min(debt, 0.05))

    def close(self) -> None:
        """Tell `run` that nothing more will be added."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Stop soon."""
        with self._changed:
            self._is_closed = self._is_cancelled = True
            self._changed.notify_all()

    def counts(self) -> tuple[int, int, int, int]:
        """Return hashed files, hashed bytes, outstanding directories and bytes that wait."""
        with self._changed:
            return self._hashed_count, self._hashed_bytes, self._outstanding, self._waiting_bytes

    @staticmethod
    def _size(directory: _Directory, index: int) -> int:
        return int(PACKED_STATE.unpack_from(directory.states, index * PACKED_STATE.size)[4])

    def _next(self) -> tuple[_Directory, int] | None:
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if self._is_cancelled or not self._waiting:
                return None
            directory = self._waiting[0]
            index = directory.wanted.popleft()
            if not directory.wanted:
                self._waiting.popleft()
            if directory.descriptor < 0 and directory.open_problem is None:
                try:
                    directory.descriptor = open_directory(directory.root, directory.path, directory.is_loose)
                except OSError as error:
                    directory.open_problem = error
            return directory, index

    def _record(self, directory: _Directory, index: int, outcome: ContentOutcome, problem: int, digest: bytes) -> None:
        with self._changed:
            directory.outcomes[index] = outcome.value
            directory.problems[index] = problem
            directory.digests[index] = digest
            if outcome is ContentOutcome.HASHED:
                self._hashed_count += 1
                self._hashed_bytes += self._size(directory, index)
            self._waiting_bytes -= self._size(directory, index)
            directory.left -= 1
            if directory.left == 0:
                if directory.descriptor >= 0:
                    os.close(directory.descriptor)
                self._outstanding -= 1
                self._finished.append(directory.answer())
                self._changed.notify_all()

    def _hash(self, directory: _Directory, index: int, buffer: memoryview) -> tuple[ContentOutcome, int, bytes]:
        expected, size = directory.state(index), self._size(directory, index)
        if self._max_content_bytes and size > self._max_content_bytes:
            return ContentOutcome.TOO_LARGE, 0, b""
        try:
            if directory.open_problem is not None:
                raise directory.open_problem
            descriptor = open_regular(directory.names[index], directory_descriptor=directory.descriptor)
        except OSError as error:
            gone = isinstance(error, _GONE) or error.errno == errno.ELOOP
            return (ContentOutcome.VANISHED if gone else ContentOutcome.UNREADABLE), error.errno or 0, b""
        try:
            found = os.fstat(descriptor)
            if pack_stat(found) != expected:
                return (ContentOutcome.UNSTABLE if stat.S_ISREG(found.st_mode) else ContentOutcome.VANISHED), 0, b""
            digest, count = hash_descriptor(descriptor, self._algorithm, size, buffer=buffer, pause=self._pause)
            if count != size or pack_stat(os.fstat(descriptor)) != expected:
                return ContentOutcome.UNSTABLE, 0, b""
        except OSError as error:
            return ContentOutcome.UNREADABLE, error.errno or 0, b""
        except _CancelledError:
            return ContentOutcome.UNREADABLE, 0, b""
        else:
            return ContentOutcome.HASHED, 0, digest
        finally:
            os.close(descriptor)

    def _pause(self) -> None:
        self.pace()
        if self._is_cancelled:
            raise _CancelledError
