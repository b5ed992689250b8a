"""What a scan is asked to do, and what it says about itself."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from keibi.agent.linux.files import Wish


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


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """How far a scan is."""

    directory_count: int
    entry_count: int
    hashed_count: int
    hashed_bytes: int
    current: bytes


@dataclass(frozen=True, kw_only=True)
class ScanPlan:
    """What a scan shall do.

    A root that is a symlink to a directory is entered: it was named. Below it, only where the decision says `follow_links`.
    Pseudo filesystems (/proc) are never entered, remote ones (NFS, FUSE) only when a root lies on one; both are reported.
    """

    roots: Sequence[bytes]  # absolute; a root may also be a single file, its wish is what `decide` says of its directory
    decide: Decide
    algorithm: str = "sha256"
    trust: Trust = Trust.CHANGE_TIME
    share_count: int = 7  # with Trust.SHARE: 1/share_count of the files is read again,
    share_number: int = 0  # namely part number 0 to share_count - 1
    cpu_percent: int = 100  # of one core, for this whole process
    max_content_bytes: int = 1 << 40  # larger files are not hashed and have the outcome TOO_LARGE
    is_cancelled: Callable[[], bool] = lambda: False
    on_progress: Callable[[ScanProgress], None] | None = None  # about twice a second


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """Something that could not be looked at. The baseline keeps what it had there."""

    path: bytes
    problem: str


MAX_LISTED_PROBLEMS = 1000


@dataclass(kw_only=True)
class ScanSummary:
    """What a scan did. `problems` holds the first MAX_LISTED_PROBLEMS of them; `problem_count` counts all."""

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

    def add_problem(self, path: bytes, problem: str) -> None:
        """Count a problem, and list it while the list is short enough."""
        self.problem_count += 1
        if len(self.problems) < MAX_LISTED_PROBLEMS:
            self.problems.append(ScanProblem(path, problem))


def share_of(path: bytes, share_count: int) -> int:
    """Return which part, 0 to share_count - 1, a path belongs to."""
    return zlib.crc32(path) % share_count
