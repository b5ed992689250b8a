"""Observations on their way to the examiner: brought together for each path, held back while a package is being installed."""

import os
import sqlite3
import time
from collections import deque
from dataclasses import dataclass

from keibi.agent.linux.files import ContentOutcome, FileState, FileType
from keibi.agent.modules.integrity_monitoring.contents import PackageKnowledge
from keibi.agent.modules.integrity_monitoring.examiner import REAL_TIME, Batch, Examiner, Policy
from keibi.agent.ports import Happening, Observation
from keibi.protection.integrity_monitoring.rules import EntityType

SETTLE_SECONDS = 0.12
"""How long a path rests after its first observation, so that create, write and chmod of one file are one event."""
HELD_SECONDS = 120.0
"""How long a change by a package manager waits at most for the package's list, which explains it."""
BATCH_PATHS = 500
_UNSTABLE_TRIES = 5
_ARRIVALS = (Happening.CREATED, Happening.RENAMED)
_REST_FACTOR = 10.0


@dataclass
class _Pending:
    first_at: float  # monotonic
    observation: Observation
    tries: int = 0


class RealTime:
    """The queue between sensor and examiner. One thread uses it."""

    def __init__(self, examiner: Examiner, packages: PackageKnowledge) -> None:
        self._examiner = examiner
        self._packages = packages
        self._pending: dict[bytes, _Pending] = {}
        self._renames: deque[_Pending] = deque()
        self._held: dict[bytes, _Pending] = {}
        self._resting: dict[bytes, float] = {}
        self.new_directories: set[bytes] = set()
        """Directories that came with something in them; whoever scans them takes them out."""

    def observe(self, observations: list[Observation]) -> None:
        """Take observations, oldest first."""
        now = time.monotonic()
        for observation in observations:
            if observation.happening is Happening.RENAMED:
                # A rename moves what is known of the old name, so what was seen before it must be looked at first.
                self._renames.append(_Pending(now, observation))
                continue
            known = self._pending.get(observation.path)
            if known is None:
                self._pending[observation.path] = _Pending(now, observation)
            elif observation.actor.process or not known.observation.actor.process:
                known.observation = observation

    def next_due_seconds(self) -> float | None:
        """Return how long until something is due; None when nothing waits."""
        if not self._pending and not self._renames and not self._held:
            return None
        if self._held and not self._pending and not self._renames:
            return 0.5
        oldest = min(
            next(iter(self._pending.values())).first_at if self._pending else float("inf"),
            self._renames[0].first_at if self._renames else float("inf"),
        )
        return max(0.0, oldest + SETTLE_SECONDS - time.monotonic())

    def run_due(self, policy: Policy) -> int:
        """Examine what has rested long enough; return how many events that gave."""
        now = time.monotonic()
        due = self._take_due(now)
        renames: list[_Pending] = []
        while self._renames and self._renames[0].first_at + SETTLE_SECONDS <= now and len(renames) < BATCH_PATHS:
            pending = self._renames.popleft()
            if self._packages.is_at_work(pending.observation.actor):
                self._held[pending.observation.path] = pending
            else:
                renames.append(pending)
        if not due and not renames:
            return 0
        try:
            with self._examiner.batch(REAL_TIME) as batch:
                for pending in renames:
                    self._rename(batch, policy, pending.observation)
                for pending in due:
                    self._examine(batch, policy, pending)
                return len(batch.events)
        except (sqlite3.OperationalError, OSError):
            # Nothing of it was written: all of it is looked at again.
            self._renames.extendleft(reversed(renames))
            self._pending = {pending.observation.path: pending for pending in due} | self._pending
            raise

    def _take_due(self, now: float) -> list[_Pending]:
        due: list[_Pending] = []
        for path, pending in list(self._pending.items()):
            if pending.first_at + SETTLE_SECONDS > now or len(due) >= BATCH_PATHS:
                break
            del self._pending[path]
            if self._resting.get(path, 0.0) > now:
                self._pending[path] = _Pending(self._resting[path], pending.observation, pending.tries)
            elif self._packages.is_at_work(pending.observation.actor):
                self._held.setdefault(path, pending)
            else:
                due.append(pending)
        if self._held:
            for path, pending in list(self._held.items()):
                is_late = pending.first_at + HELD_SECONDS < now
                if len(due) >= BATCH_PATHS or not (is_late or not self._packages.is_at_work(pending.observation.actor)):
                    break
                del self._held[path]
                due.append(pending)
        return due

    def _examine(self, batch: Batch, policy: Policy, pending: _Pending) -> None:
        observation = pending.observation
        path = observation.path
        if observation.happening is Happening.PROCESS_STARTED:
            self._process(batch, policy, observation)
            return
        if observation.happening is Happening.RENAMED and observation.old_path and path:
            self._rename(batch, policy, observation)
            return
        if observation.happening in (Happening.PROCESS_ENDED, Happening.PORT_OPENED, Happening.PORT_CLOSED):
            return
        if policy.watching.is_own(path):
            return
        started = time.monotonic()
        state = self._examiner.examine(batch, policy, path, observation.actor, observation.at)
        spent = time.monotonic() - started
        if spent > 0.1:
            # A large file that is written all the time is read for a tenth of the time at most.
            self._resting[path] = time.monotonic() + spent * _REST_FACTOR
            self._resting = {one: until for one, until in self._resting.items() if until > started}
        if state is not None and state.type is FileType.DIRECTORY and observation.happening in _ARRIVALS and _has_entries(path):
            self.new_directories.add(path)
        if observation.is_directory and state is None:
            self._examiner.forget_below(batch, policy, path, observation.actor, observation.at)
        if isinstance(state, FileState) and state.content is ContentOutcome.UNSTABLE and pending.tries < _UNSTABLE_TRIES:
            self._pending.setdefault(path, _Pending(time.monotonic() + 1.0, observation, pending.tries + 1))

    def _rename(self, batch: Batch, policy: Policy, observation: Observation) -> None:
        old_path, path, actor, at = observation.old_path, observation.path, observation.actor, observation.at
        for name in (old_path, path):
            if (waiting := self._pending.pop(name, None)) is not None and name == old_path and path not in self._pending:
                actor = actor if actor.process else waiting.observation.actor
        if not old_path or not path:
            self._examine(batch, policy, _Pending(0.0, observation if path else _renamed_away(observation)))
            return
        if observation.is_directory and _has_entries(path):
            self.new_directories.add(path)
        below = self._examiner.files_under(batch, old_path) if observation.is_directory else []
        self._examiner.rename(batch, policy, old_path, path, actor, at)
        for state in below:
            self._examiner.rename(batch, policy, state.path, path + state.path[len(old_path) :], actor, at)

    def _process(self, batch: Batch, policy: Policy, observation: Observation) -> None:
        key = observation.path.decode("utf-8", "surrogateescape")
        if self._examiner.baseline.entity(EntityType.PROCESS, observation.path) is not None:
            return
        if not policy.watching.compiled.sets_for(EntityType.PROCESS, observation.path):
            return
        actor = observation.actor
        entity = {"user": actor.user, "parent": actor.parent, "pid": actor.pid}
        self._examiner.consider_entity(batch, policy, EntityType.PROCESS, key, None, entity, actor)


def _has_entries(directory: bytes) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _renamed_away(observation: Observation) -> Observation:
    return Observation(Happening.DELETED, observation.old_path, observation.at, observation.is_directory, b"", observation.actor)
