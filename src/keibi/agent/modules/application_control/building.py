"""Walks the file systems to build the inventory, which trusts what is there, or to check it, which finds drift.

What becomes trusted because it is there, and is no unchanged file of a package, is scanned for malware first (`examination.py`):
until then it is held back. Where that cannot be done it is trusted all the same, and said to be unscanned.

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
from keibi.agent.modules.application_control.examination import Examination
from keibi.agent.modules.application_control.examined import Examinations
from keibi.agent.modules.application_control.examiner_link import ExaminerLink
from keibi.agent.modules.application_control.inventory import Inventory, Software
from keibi.agent.modules.application_control.judge import kept_key
from keibi.agent.modules.application_control.packages import Packages
from keibi.agent.modules.application_control.places import Stage, stages_of
from keibi.agent.modules.application_control.policies import Policy
from keibi.agent.modules.application_control.telling import Teller
from keibi.agent.modules.integrity_monitoring.scan_plan import DirectoryDecision, ScanPlan, ScanSummary
from keibi.agent.modules.integrity_monitoring.walk import Visit, Walk
from keibi.protection.application_control.events import FileKind, PackageRecord, ReasonCode
from keibi.protection.application_control.file_kinds import HEAD_BYTES, kind_of
from keibi.protection.base import escape_name

BUILT_SETTING = "built_at"
EXAMINE_SECONDS = 900.0
"""So long a pass waits for scans; the rest is trusted then, and scanned afterwards."""
_BATCH = 200
_PROGRESS_SECONDS = 0.5
_LOOK_BACK_NS = 2_000_000_000
"""Times of files are a tick behind the clock, and a pass looks at a directory a moment after it began."""


@dataclass(frozen=True, slots=True)
class Job:
    """A pass that is asked for. "build" trusts what is there, "rebuild" also what was seen to appear, "check" nothing new.

    "examine" walks nowhere: it has scanned what is trusted without having been.
    """

    kind: str  # "build", "rebuild", "check" or "examine"
    command_id: str = ""

    @property
    def trusts(self) -> bool:
        """Whether what is there becomes trusted."""
        return self.kind in ("build", "rebuild")


@dataclass
class Outcome:
    """What a pass did."""

    is_complete: bool = False
    software_count: int = 0
    read_count: int = 0
    drift_count: int = 0
    gone_count: int = 0
    examined_count: int = 0
    threat_count: int = 0
    trusted_count: int = 0  # files that were held back until now
    unexamined: str = ""  # why some were not scanned for malware
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
        link: ExaminerLink,
        *,
        on_trust_changed: Callable[[], None],
        roots: Sequence[bytes],
        own_directory: bytes,
        is_cancelled: Callable[[], bool],
        on_progress: Callable[[str, float | None], None],
    ) -> None:
        self._inventory = inventory
        self._packages = packages
        self._teller = teller
        self._policy = policy
        self._job = job
        self._link = link
        self._examinations = Examinations(inventory)
        self._on_trust_changed = on_trust_changed
        self._roots = roots
        self._own = own_directory.rstrip(b"/") + b"/"
        self._is_cancelled = is_cancelled
        self._on_progress = on_progress
        self._known = inventory.fingerprints() if job.kind != "examine" else {}
        built_at = float(inventory.setting(BUILT_SETTING) or b"0")
        # What was no software then, and has not changed, is none now.
        self._since_ns = 0 if job.kind == "rebuild" or not built_at else int(built_at * 1e9) - _LOOK_BACK_NS
        self._batch: list[Software] = []
        self._drift: list[tuple[Software, str]] = []
        self._entry_count = 0
        self._told_at = 0.0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Walk, have scanned what is to be trusted, and return what was done; a cancelled pass keeps what it found."""
        started_at, started = time.time(), time.monotonic()
        if self._job.kind == "examine" or self._walk():
            self.outcome.is_complete = self._job.kind == "check" or self._examine()
        if self.outcome.is_complete and self._job.kind != "examine":
            self._finish(started_at)
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def _walk(self) -> bool:
        """Look at everything, where programs lie first; False when it was cut short."""
        self._packages.refresh()
        expected = sum(_entries_expected(root) for root in self._roots)
        summary = ScanSummary()
        budget = _Budget(self._policy.settings.inventory_cpu_percent)
        is_whole = all(self._walk_stage(stage, summary, budget, expected) for stage in stages_of(self._roots))
        self._commit()
        self.outcome.problems += [
            f"{os.fsdecode(one.path)}: {one.problem}" for one in summary.problems if "pseudo" not in one.problem
        ]
        return is_whole

    def _walk_stage(self, stage: Stage, summary: ScanSummary, budget: "_Budget", expected: int) -> bool:
        plan = ScanPlan(
            roots=stage.roots, decide=lambda directory: None if directory in stage.left_out else self._decide(directory)
        )
        walk = Walk(plan, file_reader(), summary)
        try:
            for visit in walk.visits():
                if self._is_cancelled():
                    return False
                self._visit(visit)
                self._entry_count += visit.count
                self._tell(expected, visit.path)
                budget.pace()
        finally:
            walk.close()
        return True

    def _examine(self) -> bool:
        """Have scanned what is to be; then nothing is held back any more but threats. False when it was cut short."""
        outcome, link = self.outcome, self._link
        self._told_at = 0.0
        examination = Examination(
            self._inventory,
            self._examinations,
            link,
            self._teller,
            on_changed=self._on_trust_changed,
            is_cancelled=self._is_cancelled,
            on_progress=self._tell_examined,
        )
        result = examination.run(with_threats=self._job.kind == "rebuild", within_seconds=EXAMINE_SECONDS)
        outcome.examined_count, outcome.threat_count = result.examined_count, result.threat_count
        if not result.is_whole:
            outcome.unexamined = link.reason or "not all was scanned yet"
        if self._is_cancelled():
            return False
        outcome.trusted_count = self._examinations.trust_the_rest()
        return True

    def _tell_examined(self, count: int, total: int) -> None:
        if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            self._on_progress(f"scanning for malware what no package owns, {count:,} of {total:,}", 0.99)

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
        threat = self._inventory.threat_of(content)
        is_held_back = trusted_by is ReasonCode.INVENTORY and known is None and package is None
        is_held_back = is_held_back and not self._examinations.has(content)
        former = "" if before is None else before.sha256 if before.is_trusted else before.previous_sha256
        is_same = before is not None and before.sha256 == content
        software = Software(
            path=path,
            key=kept_key(key, writers),
            sha256=content,
            kind=kind,
            is_trusted=trusted_by is not None and not threat and not is_held_back,
            trusted_by=trusted_by or ReasonCode.UNRECOGNISED,
            package=package or (known.package if known is not None else None),
            first_seen_at=before.first_seen_at if before is not None and is_same else time.time(),
            user=before.user if before is not None and is_same else "",
            process=before.process if before is not None and is_same else "",
            previous_sha256="" if trusted_by is not None or former == content else former,
            threat=threat,
        )
        self.outcome.software_count += 1
        self._batch.append(software)
        if not software.is_trusted and not is_held_back and not is_same:
            self.outcome.drift_count += 1
            if self._policy.settings.report_drift:
                self._drift.append((software, software.previous_sha256))

    def _trusted_by(self, before: Software | None, known: Software | None, package: PackageRecord | None) -> ReasonCode | None:
        if known is not None:
            return known.trusted_by
        if package is not None and self._policy.settings.trust_package_manager:
            return ReasonCode.TRUSTED_UPDATER if not self._job.trusts else ReasonCode.INVENTORY
        # What appeared while the first inventory was being built was seen to come, and is for a person to decide.
        if self._job.kind == "rebuild" or (self._job.trusts and (before is None or before.is_trusted or before.is_held_back)):
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
        self._examinations.forget_gone()

    def _tell(self, expected: int, path: bytes) -> None:
        if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            share = min(0.99, self._entry_count / expected) if expected else None
            where = escape_name(path)
            self._on_progress(f"{self.outcome.software_count:,} programs, libraries and scripts, now {where}", share)


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
