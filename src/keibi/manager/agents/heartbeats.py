"""Heartbeats: what an agent has, answered with what it should have.

Theory of operation. Most heartbeats say what the last one said. For those, a memo of each computer in memory tells that
nothing has changed, and only the time is noted: times are gathered and written for all computers together once a second.
Everything else (a new status, results, a policy or commands to fetch, a memo that is old or was invalidated) goes through
one transaction. A memo is invalidated by signals and by age, so a lost signal costs `MEMO_SECONDS` at most.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import update
from sqlalchemy.orm import Session

from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse
from keibi.contract.policy import EffectivePolicy
from keibi.errors import KeibiError
from keibi.manager.access.model import NotSignedInError
from keibi.manager.agents.access_tokens import Claims
from keibi.manager.agents.commands import CommandService
from keibi.manager.agents.reports import keep_facts, keep_status, storable
from keibi.manager.agents.signals import SignalKind, Signals
from keibi.manager.computers.alarms import AlarmService
from keibi.manager.computers.tables import ComputerRecord, ReportRecord
from keibi.manager.database import Database, Scope

MEMO_SECONDS = 300.0
FLUSH_ROWS = 2000
MAX_GENERATION = 2**31 - 1

logger = logging.getLogger("keibi.heartbeats")


class Policies(Protocol):
    """Whoever knows what each computer should have."""

    def effective(self, session: Session, computer_id: str, declared: Mapping[str, int] | None = None) -> EffectivePolicy:
        """Return the computer's policy under its generation; `declared` is what the agent understands."""
        ...


@dataclass(frozen=True)
class _Memo:
    tenant_id: str
    status_digest: str
    facts_digest: str
    settings_versions: Mapping[str, int]
    generation: int
    heartbeat_seconds: int
    old_at: float


class Heartbeats:
    """Answers heartbeats, from worker threads."""

    def __init__(
        self,
        database: Database,
        policies: Policies,
        commands: CommandService,
        alarms: AlarmService,
        signals: Signals,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._policies = policies
        self._commands = commands
        self._alarms = alarms
        self._clock = clock
        self._memos: dict[str, _Memo] = {}
        self._making: dict[str, object] = {}
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()
        signals.subscribe(SignalKind.DUE, self._forget)
        signals.subscribe(SignalKind.REVOKED, self._forget)
        signals.subscribe(SignalKind.POLICIES, self._forget_tenants)

    def take(self, claims: Claims, request: HeartbeatRequest) -> HeartbeatResponse:
        """Note what the agent says and return what it should have.

        Raises:
            NotSignedInError: the computer was removed or disabled.
        """
        now = self._clock()
        memo = self._memos.get(claims.computer_id)
        if memo is not None and memo.old_at > now and _says_nothing_new(memo, request):
            with self._lock:
                self._seen[claims.computer_id] = now
            return HeartbeatResponse(server_at=now, heartbeat_seconds=memo.heartbeat_seconds)
        return self._take_whole(claims, request, now)

    def flush(self) -> int:
        """Write the gathered times in one statement; returns how many. For a background task, once a second."""
        with self._lock:
            seen, self._seen = self._seen, {}
        rows = [{"id": computer_id, "last_heartbeat_at": at} for computer_id, at in sorted(seen.items())]
        try:
            for start in range(0, len(rows), FLUSH_ROWS):
                with self._database.session(Scope.system("heartbeats")) as session:
                    session.execute(update(ReportRecord), rows[start : start + FLUSH_ROWS])
        except KeibiError as error:
            # Not lost: whoever sends a heartbeat in the next second is written then, and a computer is online for three
            # intervals.
            logger.warning("the times of %d heartbeats were not written: %s", len(rows), error)
        return len(rows)

    def _take_whole(self, claims: Claims, request: HeartbeatRequest, now: float) -> HeartbeatResponse:
        computer_id = claims.computer_id
        # Forgotten before reading: a signal that comes while this runs must find no memo made from what was there before.
        token = object()
        with self._lock:
            self._memos.pop(computer_id, None)
            self._seen.pop(computer_id, None)
            self._making[computer_id] = token
        with self._database.session(Scope(frozenset({claims.tenant_id}), f"agent:{computer_id}")) as session:
            computer = session.get(ComputerRecord, computer_id)
            report = session.get(ReportRecord, computer_id)
            if computer is None or report is None or not computer.is_enabled:
                raise NotSignedInError("computer_disabled", "this computer was disabled or removed at the manager")
            self._keep(session, computer, report, request, now)
            policy = self._policies.effective(session, computer_id, request.settings_versions or None)
            if policy.generation != report.generation_wanted:
                report.generation_wanted, report.generation_wanted_at = policy.generation, now
            report.heartbeat_seconds = policy.heartbeat_seconds
            commands = list(self._commands.deliver(session, computer_id))
            want_status = request.status is None and report.status_digest != request.status_digest
            want_facts = request.facts is None and report.facts_digest != request.facts_digest
        is_current = policy.generation == request.policy_generation
        if is_current and not commands and not want_status and not want_facts:
            memo = _Memo(
                claims.tenant_id,
                request.status_digest,
                request.facts_digest,
                dict(request.settings_versions),
                policy.generation,
                policy.heartbeat_seconds,
                # Spread, so that memos made in one storm do not all end in the same second.
                now + MEMO_SECONDS * random.uniform(0.7, 1.0),  # noqa: S311 - no secret
            )
            with self._lock:
                if self._making.get(computer_id) is token:
                    self._memos[computer_id] = memo
        with self._lock:
            if self._making.get(computer_id) is token:
                del self._making[computer_id]
        return HeartbeatResponse(
            server_at=now,
            policy=None if is_current else policy,
            commands=commands,
            want_status=want_status,
            want_facts=want_facts,
            heartbeat_seconds=policy.heartbeat_seconds,
        )

    def _keep(
        self, session: Session, computer: ComputerRecord, report: ReportRecord, request: HeartbeatRequest, now: float
    ) -> None:
        report.last_heartbeat_at = now
        report.generation_received = max(0, min(request.policy_generation, MAX_GENERATION))
        if request.status is not None:
            keep_status(report, request.status, request.status_digest, now)
        if request.facts is not None:
            keep_facts(report, request.facts, request.facts_digest)
            machine_id = storable(request.facts.machine_id, 64)
            if machine_id != computer.machine_id:
                detail = f"The agent runs on machine {machine_id} ({report.hostname}) now."
                self._alarms.raise_in(session, computer, "machine_id_changed", detail)
        self._commands.take_results(session, computer.id, request.results)

    def _forget(self, ids: tuple[str, ...]) -> None:
        with self._lock:
            for computer_id in ids:
                self._memos.pop(computer_id, None)
                self._making.pop(computer_id, None)

    def _forget_tenants(self, tenant_ids: tuple[str, ...]) -> None:
        with self._lock:
            self._memos = {key: memo for key, memo in self._memos.items() if memo.tenant_id not in tenant_ids}
            self._making.clear()


def _says_nothing_new(memo: _Memo, request: HeartbeatRequest) -> bool:
    return (
        request.status is None
        and request.facts is None
        and not request.results
        and request.policy_generation == memo.generation
        and request.status_digest == memo.status_digest
        and request.facts_digest == memo.facts_digest
        and request.settings_versions == memo.settings_versions
    )
