"""Scans: the whole of what is watched held against the baseline, one scan after the other, in a thread of its own."""

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from keibi.agent.linux.files import FileState
from keibi.agent.modules.integrity_monitoring.baseline import Baseline, FileChange, VersionKind
from keibi.agent.modules.integrity_monitoring.entities import EntityCollectors
from keibi.agent.modules.integrity_monitoring.examiner import REAL_TIME, Examiner, Policy
from keibi.agent.modules.integrity_monitoring.scan_plan import ScanPlan, ScanProgress, ScanSummary, Trust
from keibi.agent.modules.integrity_monitoring.scanner import Scanner
from keibi.contract.names import new_id
from keibi.errors import KeibiError, TryLaterError
from keibi.protection.base import escape_name
from keibi.protection.integrity_monitoring.engine import FILE_TYPES
from keibi.protection.integrity_monitoring.events import ScanSource
from keibi.protection.integrity_monitoring.rules import EntityType

KEPT_VERSIONS = 5000
_BATCH_CHANGES = 200
_SHARE_SETTING = "share"
_COPIES_WITH_BUILD_SECONDS = 1.5


@dataclass(frozen=True)
class ScanJob:
    """One scan to be run."""

    kind: str  # "build", "keep", "start", "manual", "scheduled", "recovery", "rebuild", "real-time" (a directory that came whole)
    roots: tuple[bytes, ...] = ()  # empty: all that is watched
    reads_everything: bool = False
    command_id: str = ""
    scan_id: str = field(default_factory=new_id)


@dataclass(frozen=True)
class ScanOutcome:
    """How a scan ended."""

    job: ScanJob
    summary: ScanSummary
    event_count: int
    problems: list[str]
    version: int
    generation: int  # of the policy that it was run by


class Scans:
    """The thread that scans. A policy that comes meanwhile cancels the scan; the caller asks for a new one."""

    def __init__(
        self,
        examiner: Examiner,
        collectors: EntityCollectors,
        policy: Callable[[], Policy | None],
        *,
        on_progress: Callable[[ScanJob, ScanProgress, float | None], None],
        on_end: Callable[[ScanJob, ScanOutcome | KeibiError | None], None],
    ) -> None:
        self._examiner = examiner
        self._collectors = collectors
        self._policy = policy
        self._on_progress = on_progress
        self._on_end = on_end
        self._jobs: queue.Queue[ScanJob | None] = queue.Queue()
        self._cancel = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scans", daemon=True)
        self.running: ScanJob | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ask(self, job: ScanJob) -> None:
        """Put a scan in the queue."""
        self._jobs.put(job)

    def cancel_all(self) -> list[ScanJob]:
        """Cancel the running scan and return those that had not begun."""
        left = []
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                left.append(job)
        self._cancel.set()
        return left

    def stop(self, seconds: float) -> None:
        """End the thread."""
        self.cancel_all()
        self._jobs.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._cancel.clear()
            policy = self._policy()
            if policy is None:
                self._on_end(job, None)
                continue
            self.running = job
            outcome: ScanOutcome | KeibiError | None
            try:
                outcome = self._scan(job, policy)
            except KeibiError as error:
                outcome = error
            except (sqlite3.OperationalError, OSError) as error:
                outcome = TryLaterError("baseline_unavailable", f"the baseline cannot be written: {error}")
            finally:
                self.running = None
            self._on_end(job, outcome if not self._cancel.is_set() else None)

    def _scan(self, job: ScanJob, policy: Policy) -> ScanOutcome:
        reading = Baseline.open(self._examiner.baseline.path, is_checked=False)
        try:
            plan = self._plan(job, policy, reading.count())
            if job.kind == "build":
                return self._build(job, policy, reading, plan)
            if job.kind == "keep":
                return self._keep(job, policy, reading)
            scanner = Scanner(reading, plan)
            if policy.former is not None and not job.roots:
                with self._examiner.lock, reading.transaction():
                    scanner.forget_unwatched()
            return self._compare(job, policy, scanner)
        finally:
            reading.close()

    def _build(self, job: ScanJob, policy: Policy, building: Baseline, plan: ScanPlan) -> ScanOutcome:
        scanner = Scanner(building, plan)
        # No observation may move a baseline that is only half there.
        with self._examiner.lock:
            with building.transaction():
                version = building.begin_version(VersionKind.BUILD)
            summary = scanner.build(version)
            problems: list[str] = []
            with building.transaction():
                for type_ in _entity_types(policy):
                    found, told = self._collectors.collect(type_, policy.watching.compiled)
                    problems += told
                    for key, entity in (found or {}).items():
                        building.store_entity(version, type_, key.encode("utf-8", "surrogateescape"), entity, is_logged=False)
                if summary.is_complete:
                    building.finish_version(version)
        if summary.is_complete:
            # Where little is watched its copies are there with the baseline; the job "keep" makes those that take longer.
            end = time.monotonic() + _COPIES_WITH_BUILD_SECONDS
            policy.contents.keep_all(_watched(policy, building), lambda: self._cancel.is_set() or time.monotonic() > end)
        return ScanOutcome(job, summary, 0, problems, version, policy.generation)

    def _keep(self, job: ScanJob, policy: Policy, reading: Baseline) -> ScanOutcome:
        """Copy what small text files hold now. Other scans go first: then it is asked for again, and goes on where it was."""
        is_done = policy.contents.keep_all(_watched(policy, reading), lambda: self._cancel.is_set() or not self._jobs.empty())
        if not is_done and not self._cancel.is_set():
            self.ask(job)
        return ScanOutcome(job, ScanSummary(is_complete=is_done), 0, [], 0, policy.generation)

    def _compare(self, job: ScanJob, policy: Policy, scanner: Scanner) -> ScanOutcome:
        source = REAL_TIME if job.kind == "real-time" else ScanSource(job.kind, job.scan_id)
        is_accepting = job.kind == "rebuild"
        with self._examiner.lock, self._examiner.baseline.transaction():
            version = self._examiner.baseline.begin_version(VersionKind.REBUILD if is_accepting else VersionKind.SCAN)
        count = 0
        waiting: list[FileChange] = []
        for difference in scanner.differences():
            waiting += difference.changes
            if len(waiting) >= _BATCH_CHANGES:
                count += self._consider(source, version, policy, waiting, is_accepting)
                waiting = []
        count += self._consider(source, version, policy, waiting, is_accepting)
        problems: list[str] = []
        if not job.roots and not self._cancel.is_set():
            for type_ in _entity_types(policy):
                found, told = self._collectors.collect(type_, policy.watching.compiled)
                problems += told
                if found is not None:
                    with self._examiner.batch(source, version=version, is_accepting=is_accepting) as batch:
                        self._examiner.consider_entities(batch, policy, type_, found)
                        count += len(batch.events)
        if scanner.summary.is_complete:
            if not job.roots:
                self._examiner.close_vanished_drifts(policy)
            with self._examiner.lock, self._examiner.baseline.transaction():
                if is_accepting:
                    self._examiner.drifts.clear()
                self._examiner.baseline.finish_version(version)
                if job.kind == "real-time":
                    self._examiner.baseline.forget_empty_version(version)
                if job.kind == "scheduled":
                    self._examiner.baseline.put_setting(_SHARE_SETTING, str(scanner.plan.share_number).encode())
                self._examiner.baseline.keep_versions(KEPT_VERSIONS)
        return ScanOutcome(job, scanner.summary, count, problems, version, policy.generation)

    def _consider(self, source: ScanSource, version: int, policy: Policy, changes: list[FileChange], is_accepting: bool) -> int:
        if not changes:
            return 0
        with self._examiner.batch(source, version=version, is_accepting=is_accepting) as batch:
            self._examiner.consider(batch, policy, changes)
            return len(batch.events)

    def _plan(self, job: ScanJob, policy: Policy, known_count: int) -> ScanPlan:
        days = policy.settings.full_rehash_days
        trust, number = Trust.CHANGE_TIME, 0
        if job.reads_everything or (job.kind == "scheduled" and days == 1):
            trust = Trust.NOTHING
        elif job.kind == "scheduled":
            # The share after the one that was read last: a night without a scan delays, and leaves nothing out.
            with self._examiner.lock:
                last = self._examiner.baseline.setting(_SHARE_SETTING)
            trust, number = Trust.SHARE, (int(last) + 1) % days if last else 0

        def told(progress: ScanProgress) -> None:
            share = min(0.99, progress.entry_count / known_count) if known_count and not job.roots else None
            self._on_progress(job, progress, share)

        return ScanPlan(
            roots=list(job.roots) or policy.watching.roots,
            decide=policy.watching.decide,
            algorithm=self._examiner.algorithm,
            trust=trust,
            share_count=days,
            share_number=number,
            cpu_percent=policy.settings.cpu_percent,
            is_cancelled=self._cancel.is_set,
            on_progress=told,
        )


def said_of(outcome: ScanOutcome) -> str:
    """Return one sentence for a person: what the scan looked at and found."""
    summary = outcome.summary
    text = f"{summary.entry_count:,} entries looked at, {summary.hashed_count:,} files read, "
    text += f"{outcome.event_count:,} changes reported"
    if summary.problem_count or outcome.problems:
        first = outcome.problems[0] if outcome.problems else ""
        if not first and summary.problems:
            first = f"{escape_name(summary.problems[0].path)}: {summary.problems[0].problem}"
        text += f"; {summary.problem_count + len(outcome.problems):,} could not be read, the first: {first}"
    return text + "."


def _entity_types(policy: Policy) -> list[EntityType]:
    return sorted(policy.watching.compiled.types - set(FILE_TYPES))


def _watched(policy: Policy, baseline: Baseline) -> Iterator[FileState]:
    for root in policy.watching.roots:
        if own := baseline.file(root):
            yield own
        yield from baseline.files_under(root)
