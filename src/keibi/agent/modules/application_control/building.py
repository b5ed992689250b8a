"""Walks the file systems to build the inventory, which trusts what is there, or to check it, which finds drift.

A pass that was cut short begins again and finds at once what it has read already: only new and changed files are read. Software
is told by its first bytes, so every file that could have become software since the last whole pass is opened.
"""

import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from keibi.agent.gate.judging import FileKey
from keibi.agent.linux.file_queue import file_reader, open_directory
from keibi.agent.linux.files import PACKED_STATE, Wish, open_regular
from keibi.agent.modules.application_control.asking import is_root_writable_only
from keibi.agent.modules.application_control.contents import Writers, settled_content
from keibi.agent.modules.application_control.inventory import Inventory, Software
from keibi.agent.modules.application_control.judge import kept_key
from keibi.agent.modules.application_control.packages import Packages
from keibi.agent.modules.application_control.policies import Policy
from keibi.agent.modules.application_control.telling import Teller
from keibi.agent.modules.integrity_monitoring.scan_plan import DirectoryDecision, ScanPlan, ScanSummary
from keibi.agent.modules.integrity_monitoring.walk import Visit, Walk
from keibi.protection.application_control.events import FileKind, PackageRecord, ReasonCode
from keibi.protection.application_control.file_kinds import HEAD_BYTES, kind_of

BUILT_SETTING = "built_at"
_BATCH = 200
_PROGRESS_SECONDS = 0.5
_LOOK_BACK_NS = 2_000_000_000
"""Times of files are a tick behind the clock, and a pass looks at a directory a moment after it began."""


@dataclass(frozen=True, slots=True)
class Job:
    """A pass that is asked for. "build" trusts what is there, "rebuild" also what was seen to appear, "check" nothing new."""

    kind: str  # "build", "rebuild" or "check"
    command_id: str = ""

    @property
    def trusts(self) -> bool:
        """Whether what is there becomes trusted."""
        return self.kind != "check"


@dataclass
class Outcome:
    """What a pass did."""

    is_complete: bool = False
    software_count: int = 0
    read_count: int = 0
    drift_count: int = 0
    gone_count: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Pass:
    """One pass over `roots`. Used once."""

    def __init__(
        self,
        inventory: Inventory,
        packages: Packages,
        teller: Teller,
        policy: Policy,
        job: Job,
        *,
        roots: Sequence[bytes],
        own_directory: bytes,
        is_cancelled: Callable[[], bool],
        on_progress: Callable[[int, float | None, bytes], None],
    ) -> None:
        self._inventory = inventory
        self._packages = packages
        self._teller = teller
        self._policy = policy
        self._job = job
        self._roots = roots
        self._own = own_directory.rstrip(b"/") + b"/"
        self._is_cancelled = is_cancelled
        self._on_progress = on_progress
        self._known = inventory.fingerprints()
        built_at = float(inventory.setting(BUILT_SETTING) or b"0")
        # What was no software then, and has not changed, is none now.
        self._since_ns = 0 if job.kind == "rebuild" or not built_at else int(built_at * 1e9) - _LOOK_BACK_NS
        self._batch: list[Software] = []
        self._drift: list[tuple[Software, str]] = []
        self._entry_count = 0
        self._told_at = 0.0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Walk, and return what was done; a cancelled pass keeps what it found."""
        started_at, started = time.time(), time.monotonic()
        self._packages.refresh()
        expected = sum(_entries_expected(root) for root in self._roots)
        plan = ScanPlan(roots=self._roots, decide=self._decide)
        summary = ScanSummary()
        walk = Walk(plan, file_reader(), summary)
        budget = _Budget(self._policy.settings.inventory_cpu_percent)
        try:
            for visit in walk.visits():
                if self._is_cancelled():
                    break
                self._visit(visit)
                self._entry_count += visit.count
                self._tell(expected, visit.path)
                budget.pace()
            else:
                self.outcome.is_complete = True
        finally:
            walk.close()
        self._commit()
        if self.outcome.is_complete:
            self._finish(started_at)
        self.outcome.problems += [
            f"{os.fsdecode(one.path)}: {one.problem}" for one in summary.problems if "pseudo" not in one.problem
        ]
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def _decide(self, directory: bytes) -> DirectoryDecision | None:
        below = directory.rstrip(b"/") + b"/"
        if below == self._own or self._policy.is_excluded(below):
            return None
        return DirectoryDecision(files=Wish.STATE, directories=Wish.NOTHING)

    def _visit(self, visit: Visit) -> None:
        directory = -1
        try:
            for index, name in enumerate(visit.names.split(b"\0") if visit.count else []):
                mode, _, _, _, size, modified, changed, inode, device, _ = PACKED_STATE.unpack_from(
                    visit.states, index * PACKED_STATE.size
                )
                if not stat.S_ISREG(mode) or not size:
                    continue
                path = visit.path.rstrip(b"/") + b"/" + name
                known = self._known.pop(hash(path), None)
                key = FileKey(device, inode, size, modified, changed)
                if known is not None and known >> 1 == hash(key) and (known & 1 or self._job.kind != "rebuild"):
                    self.outcome.software_count += 1
                    continue
                if known is None and changed < self._since_ns:
                    continue
                if directory < 0:
                    directory = open_directory(visit.root, visit.relative, visit.is_loose)
                self._read(directory, name, path)
            if len(self._batch) >= _BATCH:
                self._commit()
        except OSError as error:
            self.outcome.problems.append(f"{os.fsdecode(visit.path)}: {error.strerror}")
        finally:
            if directory >= 0:
                os.close(directory)

    def _read(self, directory: int, name: bytes, path: bytes) -> None:
        try:
            descriptor = open_regular(name, directory_descriptor=directory)
        except OSError:
            return  # gone, or no regular file any more
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return
            head = os.pread(descriptor, HEAD_BYTES, 0)
            kind = kind_of(path, status.st_mode, head, self._policy.settings.script_suffixes)
            if kind is None:
                return
            key, content, writers = settled_content(descriptor)
            self.outcome.read_count += 1
            if not content:
                self.outcome.problems.append(f"{os.fsdecode(path)}: it changes all the time, or is too large")
                return
            is_roots = is_root_writable_only(0, path, status)
            package = self._packages.verified(path, content, descriptor, key.size)
        except OSError as error:
            self.outcome.problems.append(f"{os.fsdecode(path)}: {error.strerror}")
            return
        finally:
            os.close(descriptor)
        self._take(path, key, content, writers, kind, package if is_roots else None)

    def _take(
        self, path: bytes, key: FileKey, content: str, writers: Writers, kind: FileKind, package: PackageRecord | None
    ) -> None:
        before = self._inventory.at(path)
        known = self._inventory.trusted(content)
        trusted_by = self._trusted_by(before, known, package)
        former = "" if before is None else before.sha256 if before.is_trusted else before.previous_sha256
        is_same = before is not None and before.sha256 == content
        software = Software(
            path=path,
            key=kept_key(key, writers),
            sha256=content,
            kind=kind,
            is_trusted=trusted_by is not None,
            trusted_by=trusted_by or ReasonCode.UNRECOGNISED,
            package=package or (known.package if known is not None else None),
            first_seen_at=before.first_seen_at if before is not None and is_same else time.time(),
            user=before.user if before is not None and is_same else "",
            process=before.process if before is not None and is_same else "",
            previous_sha256="" if trusted_by is not None or former == content else former,
        )
        self.outcome.software_count += 1
        self._batch.append(software)
        if not software.is_trusted and not is_same:
            self.outcome.drift_count += 1
            if self._policy.settings.report_drift:
                self._drift.append((software, software.previous_sha256))

    def _trusted_by(self, before: Software | None, known: Software | None, package: PackageRecord | None) -> ReasonCode | None:
        if known is not None:
            return known.trusted_by
        if package is not None and self._policy.settings.trust_package_manager:
            return ReasonCode.TRUSTED_UPDATER if not self._job.trusts else ReasonCode.INVENTORY
        # What appeared while the first inventory was being built was seen to come, and is for a person to decide.
        if self._job.kind == "rebuild" or (self._job.trusts and (before is None or before.is_trusted)):
            return ReasonCode.INVENTORY
        return None

    def _commit(self) -> None:
        with self._inventory.transaction():
            self._inventory.put(self._batch)
            for software, former in self._drift:
                self._teller.drift(software, former, None, 0, source="inventory")
        self._batch, self._drift = [], []

    def _finish(self, started_at: float) -> None:
        with self._inventory.transaction():
            for path in self._inventory.paths(self._known) if self._known else []:
                # What lies on a file system that is not mounted now, or came meanwhile, was only not walked.
                if not os.path.lexists(path):
                    self._inventory.remove(path)
                    self.outcome.gone_count += 1
            self._inventory.put_setting(BUILT_SETTING, str(started_at).encode())

    def _tell(self, expected: int, path: bytes) -> None:
        if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            share = min(0.99, self._entry_count / expected) if expected else None
            self._on_progress(self.outcome.software_count, share, path)


class _Budget:
    """Keeps this thread below a share of one core."""

    def __init__(self, percent: int) -> None:
        self._share = percent / 100
        self._wall, self._used = time.monotonic(), time.thread_time()

    def pace(self) -> None:
        """Sleep until the share is kept again."""
        if self._share >= 1:
            return
        used = time.thread_time() - self._used
        wait = used / self._share - (time.monotonic() - self._wall)
        if wait > 0.005:
            time.sleep(min(wait, 1.0))


def _entries_expected(root: bytes) -> int:
    """Return about how many entries lie on a root's file system; 0 where it does not count them (btrfs)."""
    try:
        found = os.statvfs(root)
    except OSError:
        return 0
    return max(0, found.f_files - found.f_ffree)
