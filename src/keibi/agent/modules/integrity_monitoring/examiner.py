"""Holds what is now against the baseline, tells what matters, and moves the baseline on: all in one transaction.

Scans and real-time observations come here alike, from two threads; one lock makes them one after the other. What a scan saw may
be old by then: where the baseline has moved since, the file is read again.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from keibi.agent.linux.accounts import AccountNames
from keibi.agent.linux.files import (
    Absent,
    ContentOutcome,
    FileState,
    FileType,
    Unreadable,
    Wish,
    hash_prefix,
    read_file_state,
)
from keibi.agent.modules.integrity_monitoring.attributes import attributes_of, entity_type_of
from keibi.agent.modules.integrity_monitoring.baseline import FILE, Baseline, FileChange, VersionKind
from keibi.agent.modules.integrity_monitoring.contents import Contents, PackageKnowledge
from keibi.agent.modules.integrity_monitoring.drifts import Drifts, State
from keibi.agent.modules.integrity_monitoring.file_pages import split_path
from keibi.agent.modules.integrity_monitoring.records import integrity_event, with_drift
from keibi.agent.modules.integrity_monitoring.watching import Watching
from keibi.agent.outbox import Outbox
from keibi.contract.events import Actor, Event
from keibi.protection.integrity_monitoring.difference import ContentDifference
from keibi.protection.integrity_monitoring.engine import PREFIX_INTACT, CompiledRules, CompiledSet, Verdict, judge
from keibi.protection.integrity_monitoring.events import PackageOrigin, ScanSource
from keibi.protection.integrity_monitoring.rules import Change, EntityType
from keibi.protection.integrity_monitoring.settings import BaselineMode, IntegrityMonitoringSettings

REAL_TIME = ScanSource("real-time")
RESTORE_SECONDS = 60.0
"""How long after a restore was handed to the core the change of that file counts as the restore."""


@dataclass(frozen=True)
class Policy:
    """What is in force."""

    generation: int
    settings: IntegrityMonitoringSettings
    watching: Watching
    contents: Contents
    former: CompiledRules | None = None  # what was watched before: what is watched only now is taken into the baseline silently


@dataclass
class Batch:
    """One transaction of changes: its source, and the version it becomes."""

    source: ScanSource
    version: int | None = None  # of a scan; a real-time batch gets one when it needs it
    is_accepting: bool = False  # a rebuild: take everything as it is, tell nothing
    events: list[Event] = field(default_factory=list)
    waiting: dict[bytes, tuple[FileChange, bool]] = field(default_factory=dict)
    """Changes by path, with whether they are logged: stored together, because one page of the baseline holds many files."""


class Examiner:
    """The only writer of the baseline while rules are in force."""

    def __init__(self, baseline: Baseline, names: AccountNames, packages: PackageKnowledge) -> None:
        self.lock = threading.RLock()
        self.baseline = baseline
        self.outbox = Outbox(baseline.connection)
        self.drifts = Drifts(baseline.connection)
        self.names = names
        self.packages = packages
        self.algorithm = "sha256"
        self._restores: dict[bytes, tuple[bytes, float]] = {}

    @contextmanager
    def batch(self, source: ScanSource, *, version: int | None = None, is_accepting: bool = False) -> Iterator[Batch]:
        """Run the body in one transaction: the baseline's changes and the events about them, or nothing."""
        with self.lock, self.baseline.transaction() as connection:
            batch = Batch(source, version, is_accepting)
            yield batch
            self._store_waiting(batch)
            self.outbox.append(batch.events)
            if version is None and batch.version is not None:
                # `finish_version` would count all entries, which is too much work for one changed file.
                connection.execute(
                    "UPDATE version SET finished_at = ?,"
                    " change_count = (SELECT count(*) FROM change WHERE change.version = version.version) WHERE version = ?",
                    (time.time(), batch.version),
                )

    # --- files

    def consider(self, batch: Batch, policy: Policy, changes: Iterable[FileChange], actor: Actor = Actor()) -> None:
        """Take what a scan found. Call inside `batch`."""
        for change in changes:
            before = self._before(batch, change.path)
            if before == change.before:
                self._file(batch, policy, change.path, before, change.after, actor)
            else:
                self.examine(batch, policy, change.path, actor)

    def examine(self, batch: Batch, policy: Policy, path: bytes, actor: Actor, at: float | None = None) -> FileState | None:
        """Read one path now and take what became of it; returns its state, None when it is gone or cannot be read."""
        before = self._before(batch, path)
        if self._is_mere_growth(policy, path, before):
            return before
        found = self.read(policy, path)
        if isinstance(found, Unreadable):
            return None
        after = found if isinstance(found, FileState) else None
        self._file(batch, policy, path, before, after, actor, at)
        return after

    def read(self, policy: Policy, path: bytes) -> FileState | Absent | Unreadable:
        """Return a path's state as the rules want to know it; what no rule wants to know counts as absent."""
        if os.path.isdir(path) and not os.path.islink(path):
            decision = policy.watching.decide(split_path(path)[0])
            wish = (decision.directories if decision else Wish.NOTHING) | Wish.STATE
        else:
            wish = policy.watching.wish_of(path)
            if not wish:
                return Absent(path)
        found = read_file_state(path, wish, algorithm=self.algorithm)
        is_gone = isinstance(found, FileState) and found.content is ContentOutcome.VANISHED
        return Absent(path) if is_gone else found

    def rename(self, batch: Batch, policy: Policy, old_path: bytes, path: bytes, actor: Actor, at: float) -> None:
        """Take a rename: one event when the thing is known and watched, else whatever became of both names."""
        before, target = self._before(batch, old_path), self._before(batch, path)
        after = self.read(policy, path) if before is not None else None
        is_same = (
            isinstance(after, FileState)
            and before is not None
            and target is None
            and (after.inode, after.device, after.type) == (before.inode, before.device, before.type)
        )
        if not is_same or not isinstance(after, FileState) or before is None or os.path.lexists(old_path):
            self.examine(batch, policy, old_path, actor, at)
            self.examine(batch, policy, path, actor, at)
            return
        type_ = entity_type_of(after)
        compiled = policy.watching.compiled
        sets = compiled.sets_for(type_, path)
        old_sets = compiled.sets_for(type_, old_path)
        if not sets or not old_sets or policy.settings.baseline_mode is BaselineMode.APPROVAL:
            # Approval is given for single names: the old one is gone and the new one appeared.
            self._file(batch, policy, old_path, before, None, actor, at)
            self._file(batch, policy, path, None, after, actor, at)
            return
        if not _is_real_time([*sets, *old_sets]) and batch.source == REAL_TIME:
            return
        attributes = (attributes_of(before, self.names), attributes_of(after, self.names))
        verdict = judge([*sets, *old_sets], path, *attributes, previous_key=old_path)
        changes = [FileChange(old_path, before, None), FileChange(path, None, after)]
        if verdict is not None:
            self._tell(batch, policy, verdict, before, after, actor, at)
        self._store(batch, changes, is_logged=verdict is not None)

    def forget_below(self, batch: Batch, policy: Policy, directory: bytes, actor: Actor, at: float | None = None) -> None:
        """Take it that everything below a directory is gone."""
        for state in self.files_under(batch, directory):
            self._file(batch, policy, state.path, state, None, actor, at)

    def _file(
        self,
        batch: Batch,
        policy: Policy,
        path: bytes,
        before: FileState | None,
        after: FileState | None,
        actor: Actor,
        at: float | None = None,
    ) -> None:
        if before is None and after is None:
            return
        if before is not None and after is not None:
            if before == after and before.asked == after.asked:
                self._settle(policy, path, before, after)
                return
            if entity_type_of(before) is not entity_type_of(after):
                self._file(batch, policy, path, before, None, actor, at)
                self._file(batch, policy, path, None, after, actor, at)
                return
        known = after or before
        if known is None:
            return
        type_ = entity_type_of(known)
        sets = policy.watching.compiled.sets_for(type_, path)
        if batch.source == REAL_TIME and sets and not _is_real_time(sets):
            return
        is_adopted = before is None and _is_new_to_the_rules(policy, type_, path)
        old = attributes_of(before, self.names) if before else None
        new = attributes_of(after, self.names) if after else None
        if before and after and new is not None and any(one.append_only for one in sets):
            new[PREFIX_INTACT] = self._prefix_is_intact(path, before, after)
        verdict = None if batch.is_accepting or is_adopted else judge(sets, path, old, new)
        change = FileChange(path, before, after)
        if verdict is None:
            self._store(batch, [change], is_logged=batch.is_accepting and bool(sets) and before != after)
            self.drifts.close(FILE, path)
        elif policy.settings.baseline_mode is BaselineMode.APPROVAL:
            if not self._is_known_drift(sets, path, after):
                event = self._tell(batch, policy, verdict, before, after, actor, at)
                self._wait_for_decision(batch, FILE, path, after, event)
        else:
            self._tell(batch, policy, verdict, before, after, actor, at)
            self._store(batch, [change], is_logged=True)

    def _settle(self, policy: Policy, path: bytes, before: FileState, after: FileState) -> None:
        """Close the drift of a file that is as the baseline has it again."""
        if policy.settings.baseline_mode is BaselineMode.APPROVAL and before == after:
            self.drifts.close(FILE, path)

    def _is_mere_growth(self, policy: Policy, path: bytes, before: FileState | None) -> bool:
        """Whether only logs' rules watch it and it only grew: a scan checks its beginning; writing must not cost a read."""
        if before is None:
            return False
        sets = policy.watching.compiled.sets_for(EntityType.FILE, path)
        if not sets or not all(one.append_only for one in sets):
            return False
        try:
            found = os.lstat(path)
        except OSError:
            return False
        same = (found.st_ino, found.st_dev, found.st_mode, found.st_uid, found.st_gid) == (
            before.inode, before.device, before.mode, before.uid, before.gid,
        )  # fmt: skip
        return same and found.st_size >= before.size

    def _prefix_is_intact(self, path: bytes, before: FileState, after: FileState) -> bool | None:
        if before.content is not ContentOutcome.HASHED:
            return None
        if after.size < before.size:
            return False
        if after.content_hash == before.content_hash:
            return True
        prefix = hash_prefix(path, before.size, algorithm=self.algorithm)
        return None if prefix is None else prefix == before.content_hash

    # --- other entities

    def consider_entities(
        self, batch: Batch, policy: Policy, type_: EntityType, found: dict[str, dict[str, Any]], *, only_new: bool = False
    ) -> None:
        """Take all entities of a type as they are now. With `only_new` those that are missing are not taken for gone."""
        known = {key.decode("utf-8", "surrogateescape"): entity for key, entity in self.baseline.entities(type_).items()}
        for key in sorted(known.keys() | found.keys()):
            if only_new and key not in found:
                continue
            self.consider_entity(batch, policy, type_, key, known.get(key), found.get(key))

    def consider_entity(
        self,
        batch: Batch,
        policy: Policy,
        type_: EntityType,
        key: str,
        before: dict[str, Any] | None,
        after: dict[str, Any] | None,
        actor: Actor = Actor(),
    ) -> None:
        """Take one entity as it is now."""
        raw = key.encode("utf-8", "surrogateescape")
        if before == after:
            self.drifts.close(type_, raw)
            return
        sets = policy.watching.compiled.sets_for(type_, raw)
        if batch.source == REAL_TIME and sets and not _is_real_time(sets):
            return
        is_adopted = before is None and _is_new_to_the_rules(policy, type_, raw)
        verdict = None if batch.is_accepting or is_adopted else judge(sets, raw, before, after)
        is_waiting = policy.settings.baseline_mode is BaselineMode.APPROVAL and verdict is not None
        if is_waiting and verdict is not None:
            if not self._is_known_drift(sets, raw, after, type_):
                event = self._tell(batch, policy, verdict, None, None, actor, None)
                self._wait_for_decision(batch, type_, raw, after, event)
            return
        if verdict is not None:
            self._tell(batch, policy, verdict, None, None, actor, None)
        is_logged = verdict is not None or (batch.is_accepting and bool(sets))
        self.baseline.store_entity(self._version(batch, is_logged=is_logged), type_, raw, after, is_logged=is_logged)
        self.drifts.close(type_, raw)

    # --- decisions of people

    def approve(self, drift_ids: Iterable[str]) -> tuple[int, list[str]]:
        """Make drifts the baseline; return how many, and the ids that are no open drift."""
        done, unknown = 0, []
        with self.lock, self.baseline.transaction():
            version = self.baseline.begin_version(VersionKind.APPROVE)
            for drift_id in drift_ids:
                drift = self.drifts.get(drift_id)
                if drift is None:
                    unknown.append(drift_id)
                    continue
                if drift.type == FILE:
                    after = drift.after if isinstance(drift.after, FileState) else None
                    self.baseline.store_files(version, [FileChange(drift.key, self.baseline.file(drift.key), after)])
                else:
                    entity = drift.after if isinstance(drift.after, dict) else None
                    self.baseline.store_entity(version, drift.type, drift.key, entity)
                self.drifts.close(drift.type, drift.key)
                done += 1
            self.baseline.finish_version(version)
        return done, unknown

    def reject(self, drift_ids: Iterable[str]) -> tuple[int, list[str]]:
        """Note that drifts are not accepted; return how many, and the ids that are no open drift."""
        done, unknown = 0, []
        with self.lock, self.baseline.transaction():
            for drift_id in drift_ids:
                if self.drifts.get(drift_id) is None:
                    unknown.append(drift_id)
                else:
                    self.drifts.reject(drift_id)
                    done += 1
        return done, unknown

    def close_vanished_drifts(self, policy: Policy) -> None:
        """Forget the drifts of files that are as the baseline has them again, which a scan passes over."""
        with self.lock, self.baseline.transaction():
            for drift in list(self.drifts.all()):
                if drift.type != FILE:
                    continue
                before, found = self.baseline.file(drift.key), self.read(policy, drift.key)
                if isinstance(found, Unreadable):
                    continue
                now = found if isinstance(found, FileState) else None
                known = now or before
                if known is None:
                    self.drifts.close(FILE, drift.key)
                    continue
                sets = policy.watching.compiled.sets_for(entity_type_of(known), drift.key)
                old = attributes_of(before, self.names) if before else None
                new = attributes_of(now, self.names) if now else None
                if judge(sets, drift.key, old, new) is None:
                    self.drifts.close(FILE, drift.key)

    def expect_restore(self, path: bytes, content_hash: bytes) -> None:
        """Note that the core is about to put this content there, so that its event says so."""
        self._restores[path] = (content_hash, time.monotonic())

    # --- parts

    def _tell(
        self,
        batch: Batch,
        policy: Policy,
        verdict: Verdict,
        before: FileState | None,
        after: FileState | None,
        actor: Actor,
        at: float | None,
    ) -> Event:
        is_file = verdict.type is EntityType.FILE
        difference = policy.contents.difference(before, after) if is_file else ContentDifference("")
        package: PackageOrigin | None = None
        if is_file and after is not None and verdict.change in (Change.CREATED, Change.UPDATED):
            package = self.packages.origin(after, self._known_version_of, time.time())
        event = integrity_event(
            verdict,
            batch.source,
            actor=actor,
            changed_at=_change_time(before, after, at),
            policy_generation=policy.generation,
            baseline_version=self._current_version(batch),
            difference=difference,
            package=package,
            can_restore=self._can_restore(policy, before, after),
            is_restored=self._was_restored(after),
            masks_secrets=policy.settings.mask_secrets,
        )
        batch.events.append(event)
        return event

    def _known_version_of(self, package: str) -> str:
        entity = self.baseline.entity(EntityType.SOFTWARE, package.encode())
        return str(entity.get("version", "")) if entity else ""

    def _can_restore(self, policy: Policy, before: FileState | None, after: FileState | None) -> bool:
        if before is None or before.type is not FileType.REGULAR:
            return False
        if after is not None and after.type is FileType.REGULAR and after.content_hash == before.content_hash:
            return True
        return policy.contents.kept(before) is not None

    def _was_restored(self, after: FileState | None) -> bool:
        if after is None or (expected := self._restores.get(after.path)) is None:
            return False
        del self._restores[after.path]
        return expected[0] == after.content_hash and time.monotonic() - expected[1] < RESTORE_SECONDS

    def _is_known_drift(self, sets: list[CompiledSet], key: bytes, after: State, type_: str = FILE) -> bool:
        known = self.drifts.find(type_, key)
        if known is None:
            return False
        return judge(sets, key, self._attributes(known.after), self._attributes(after)) is None

    def _attributes(self, state: State) -> dict[str, Any] | None:
        return attributes_of(state, self.names) if isinstance(state, FileState) else state

    def _wait_for_decision(self, batch: Batch, type_: str, key: bytes, after: State, event: Event) -> None:
        drift_id = self.drifts.put(type_, key, after, event.detected_at, event.event_id)
        batch.events[-1] = with_drift(event, drift_id)

    def files_under(self, batch: Batch, directory: bytes) -> list[FileState]:
        """Return what the baseline has below a directory, with what this batch has changed."""
        self._store_waiting(batch)
        return list(self.baseline.files_under(directory))

    def _before(self, batch: Batch, path: bytes) -> FileState | None:
        waiting = batch.waiting.get(path)
        return waiting[0].after if waiting is not None else self.baseline.file(path)

    def _store(self, batch: Batch, changes: list[FileChange], *, is_logged: bool) -> None:
        for change in changes:
            former = batch.waiting.get(change.path)
            if former is not None:
                change = FileChange(change.path, former[0].before, change.after)
                is_logged = is_logged or former[1]
            batch.waiting[change.path] = (change, is_logged)

    def _store_waiting(self, batch: Batch) -> None:
        for is_logged in (True, False):
            changes = [change for change, one_is_logged in batch.waiting.values() if one_is_logged is is_logged]
            if changes:
                self.baseline.store_files(self._version(batch, is_logged=is_logged), changes, is_logged=is_logged)
        batch.waiting.clear()

    def _version(self, batch: Batch, *, is_logged: bool) -> int:
        """Return the version to store under; what is not logged belongs to none, and makes none."""
        if not is_logged and batch.version is None:
            return 0
        if batch.version is None:
            batch.version = self.baseline.begin_version(VersionKind.REAL_TIME)
        return batch.version

    def _current_version(self, batch: Batch) -> int:
        """Return the version that the present baseline is, before this batch."""
        row = self.baseline.connection.execute(
            "SELECT max(version) FROM version WHERE version < coalesce(?, 9223372036854775807)", (batch.version,)
        ).fetchone()
        return int(row[0] or 0)


def _is_real_time(sets: Iterable[CompiledSet]) -> bool:
    return any(one.rule.is_real_time for one in sets)


def _is_new_to_the_rules(policy: Policy, type_: EntityType, key: bytes) -> bool:
    return policy.former is not None and not policy.former.sets_for(type_, key)


def _change_time(before: FileState | None, after: FileState | None, at: float | None) -> float | None:
    """Return when it changed: by the change time, which only the kernel sets; for what is gone, when its folder changed."""
    if after is not None:
        return after.changed_ns / 1e9
    if before is None or at is not None:
        return at
    try:
        return os.lstat(split_path(before.path)[0] or b"/").st_mtime_ns / 1e9
    except OSError:
        return None
