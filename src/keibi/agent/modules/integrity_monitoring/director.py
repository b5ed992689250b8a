"""The worker's one decider: policy, real time, schedule, commands, status. Everything comes to it through one inbox."""

import os
import queue
import resource
import sqlite3
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from keibi.agent.due_times import next_time
from keibi.agent.modules.integrity_monitoring import commands, policies
from keibi.agent.modules.integrity_monitoring.baseline import VersionKind
from keibi.agent.modules.integrity_monitoring.content_store import ContentStore
from keibi.agent.modules.integrity_monitoring.contents import Contents, PackageKnowledge
from keibi.agent.modules.integrity_monitoring.entities import EntityCollectors
from keibi.agent.modules.integrity_monitoring.examiner import REAL_TIME, Examiner, Policy
from keibi.agent.modules.integrity_monitoring.real_time import RealTime
from keibi.agent.modules.integrity_monitoring.records import recovery_event
from keibi.agent.modules.integrity_monitoring.scan_plan import ScanProgress
from keibi.agent.modules.integrity_monitoring.scans import ScanJob, ScanOutcome, Scans, said_of
from keibi.agent.modules.integrity_monitoring.status import Condition, status_of
from keibi.agent.modules.integrity_monitoring.watching import Watching
from keibi.agent.ports import (
    Answer,
    Applied,
    Configure,
    FromWorker,
    Happening,
    Observed,
    Overflowed,
    Report,
    Run,
    Stop,
    Stored,
    ToWorker,
    Watch,
    WatchRoots,
)
from keibi.contract.commands import Command, CommandKind, CommandResult, CommandState
from keibi.contract.policy import ModulePolicy, ModuleState
from keibi.contract.status import ModuleStatus
from keibi.errors import InputError, KeibiError
from keibi.protection.base import escape_name, outermost
from keibi.protection.integrity_monitoring.engine import FILE_TYPES, CompiledRules, compile_rules
from keibi.protection.integrity_monitoring.rules import EntityType

ENTITY_SECONDS = 10.0
SOFTWARE_SECONDS = 600.0
REPEAT_SECONDS = 5.0
MAX_NEW_DIRECTORIES = 200
REPORT_SECONDS = 10.0
_POLICY_SETTING = "policy"
_ALGORITHM_SETTING = "algorithm"
_PORT_HAPPENINGS = (Happening.PORT_OPENED, Happening.PORT_CLOSED)


class ScanEnded(msgspec.Struct, frozen=True):
    """A scan is over; put into the inbox by the scans' thread."""

    job: Any
    outcome: Any


class Director:
    """Runs until `Stop`."""

    def __init__(
        self,
        examiner: Examiner,
        collectors: EntityCollectors,
        packages: PackageKnowledge,
        send: Callable[[FromWorker], None],
        inbox: "queue.Queue[ToWorker | None]",
        *,
        state_directory: str,
        damage: str = "",
    ) -> None:
        self.exit_code = 0
        self._examiner = examiner
        self._collectors = collectors
        self._send = send
        self._inbox = inbox
        self._ended: deque[ScanEnded] = deque()
        self._state_directory = state_directory
        self._damage = damage
        self._policy: Policy | None = None
        self._state = ModuleState.OFF
        self._generation = 0
        self._real_time = RealTime(examiner, packages)
        self._scans = Scans(
            examiner, collectors, lambda: self._policy, on_progress=self._scan_goes_on, on_end=self._scan_has_ended
        )
        self._is_baseline_there = False
        self._trouble = ""
        self._again: ToWorker | None = None
        self._stored_through = 0
        self._covered: CompiledRules | None = None
        self._policy_text = b""
        self._is_looking_into_new = False
        self._scans_to_repeat: list[tuple[float, ScanJob]] = []
        self._scan_trouble = ""
        self._scan_problems: list[str] = []
        self._last_scan: ScanOutcome | None = None
        self._last_scan_at = 0.0
        self._progress = ""
        self._next_scan_at: float | None = None
        self._next_entities_at = 0.0
        self._next_software_at = time.monotonic() + SOFTWARE_SECONDS
        self._next_report_at = 0.0
        self._reported: ModuleStatus | None = None

    def run(self) -> None:
        """Work until told to stop. A disk that is full or read-only is said and waited for; anything else ends the worker."""
        self._scans.start()
        try:
            while self._step():
                pass
        except Exception:  # noqa: BLE001  the edge of the thread: whoever is on call must see why
            traceback.print_exc()
            self.exit_code = 1
        finally:
            self._scans.stop(5.0)
        if self.exit_code:
            os._exit(self.exit_code)

    def _step(self) -> bool:
        message, self._again = self._again or self._next_message(), None
        try:
            if message is not None and not self._take(message):
                return False
            message = None
            while self._ended:
                self._end_scan(self._ended[0])
                self._ended.popleft()
            self._look()
            self._forget_stored()
            self._send_events()
            if self._trouble:
                self._trouble = ""
                self._report()
        except (sqlite3.OperationalError, OSError) as error:
            # Nothing is half done: the transaction was rolled back. What was asked is tried again, what changed is found again.
            self._again = message
            self._trouble = f"the baseline cannot be written: {error}"
            self._report()
            time.sleep(1.0)
        if time.monotonic() >= self._next_report_at:
            self._report()
        return True

    def _next_message(self) -> ToWorker | None:
        due = self._real_time.next_due_seconds()
        wait = min(0.5 if due is None else due, 0.5) if not self._is_building() else 0.2
        try:
            message = self._inbox.get(timeout=max(0.005, wait))
        except queue.Empty:
            return None
        return Stop() if message is None else message

    def _take(self, message: ToWorker) -> bool:
        match message:
            case Configure():
                self._configure(message.generation, message.policy)
            case Observed():
                self._observe(message)
            case Overflowed():
                self._recover(message)
            case Run():
                self._command(message.command)
            case Stored():
                self._stored_through = max(self._stored_through, message.through)
            case Stop():
                return False
            case WatchRoots():
                return True
        return True

    # --- policy

    def _configure(self, generation: int, policy: ModulePolicy) -> None:
        try:
            compiled_policy = self._compile(generation, policy)
        except KeibiError as error:
            self._send(Applied(generation, str(error)))
            return
        except msgspec.DecodeError as error:
            self._send(Applied(generation, f"the policy cannot be read: {error}"))
            return
        for job in self._scans.cancel_all():
            self._answer(job.command_id, CommandState.FAILED, "a new policy came before the scan began; ask again")
        self._scans_to_repeat = []
        with self._examiner.lock:
            self._policy, self._state, self._generation = compiled_policy, policy.state, generation
        self._policy_text = msgspec.json.encode(policy)
        self._send(Applied(generation))
        self._plan_schedule()
        self._tell_sensor()
        if policy.state is not ModuleState.OFF:
            self._begin()
        self._report()

    def _compile(self, generation: int, policy: ModulePolicy) -> Policy:
        settings, rules = policies.read_policy(policy)
        watching = Watching(compile_rules(rules, settings), [os.fsencode(os.path.dirname(self._state_directory))])
        stored = self._examiner.baseline.setting(_ALGORITHM_SETTING)
        self._examiner.algorithm = stored.decode() if stored else str(settings.hash_algorithm)
        store = ContentStore(
            os.path.join(self._state_directory, "contents"), max_total_bytes=settings.content_store_max_megabytes * 1024 * 1024
        )
        contents = Contents(store, settings, self._examiner.algorithm)
        # What the rules by which the baseline was last compared as a whole do not watch is not in it.
        self._covered = self._covered or policies.covered_rules(self._examiner.baseline.setting(_POLICY_SETTING))
        return Policy(generation, settings, watching, contents, self._covered)

    def _look_at_software(self) -> None:
        """Take the policy up again when software came or went that a rule is meant for."""
        if self._policy is None or not self._policy_text or time.monotonic() < self._next_software_at:
            return
        self._next_software_at = time.monotonic() + SOFTWARE_SECONDS
        policy = msgspec.json.decode(self._policy_text, type=ModulePolicy)
        if policies.fitting_ids(policy) != {rule.id for rule in self._policy.watching.compiled.rules}:
            self._configure(self._generation, policy)

    def _cover(self, policy: Policy) -> None:
        """Note that the baseline holds everything that this policy watches."""
        whole = msgspec.json.decode(self._policy_text, type=ModulePolicy)
        covered = policies.only_rules(whole, (rule.id for rule in policy.watching.compiled.rules))
        with self._examiner.lock:
            self._examiner.baseline.put_setting(_POLICY_SETTING, msgspec.json.encode(covered))
        self._covered = policy.watching.compiled
        self._policy = replace(policy, former=None)

    def _begin(self) -> None:
        """Build the baseline if there is none that is whole; else look for what changed while nobody watched."""
        with self._examiner.lock:
            versions = self._examiner.baseline.versions()
        was_cut_short = any(one.kind is VersionKind.BUILD and one.finished_at is None for one in versions[-1:])
        self._is_baseline_there = not was_cut_short and any(
            one.finished_at is not None and one.kind is not VersionKind.REAL_TIME for one in versions
        )
        self._scans.ask(ScanJob("start" if self._is_baseline_there else "build"))

    def _tell_sensor(self) -> None:
        if self._policy is None or self._state is not ModuleState.REAL_TIME:
            self._send(Watch([]))
            return
        compiled = self._policy.watching.compiled
        wants = {
            type_: any(one.rule.is_real_time for one in compiled.of_type(type_))
            for type_ in (EntityType.PROCESS, EntityType.PORT)
        }
        self._send(Watch(self._policy.watching.real_time_roots, wants[EntityType.PROCESS], wants[EntityType.PORT]))

    # --- real time

    def _observe(self, message: Observed) -> None:
        if self._state is not ModuleState.REAL_TIME:
            return
        if any(one.happening in _PORT_HAPPENINGS for one in message.observations):
            self._next_entities_at = 0.0
        self._real_time.observe(message.observations)

    def _recover(self, message: Overflowed) -> None:
        if self._policy is None or self._state is not ModuleState.REAL_TIME or not self._is_baseline_there:
            return
        with self._examiner.batch(REAL_TIME) as batch:
            batch.events.append(recovery_event(message.since, message.until, message.reason, self._generation))
        self._scans.ask(ScanJob("recovery"))

    def _look(self) -> None:
        policy = self._policy
        if policy is None or self._state is ModuleState.OFF:
            return
        now = time.time()
        if self._next_scan_at is not None and now >= self._next_scan_at:
            self._plan_schedule()
            self._scans.ask(ScanJob("scheduled"))
        while self._scans_to_repeat and self._scans_to_repeat[0][0] <= time.monotonic():
            self._scans.ask(self._scans_to_repeat.pop(0)[1])
        if not self._is_baseline_there or self._is_building():
            return
        self._look_at_software()
        if self._state is ModuleState.REAL_TIME:
            self._real_time.run_due(policy)
            self._look_into_new_directories()
            if time.monotonic() >= self._next_entities_at and self._scans.running is None:
                self._next_entities_at = time.monotonic() + ENTITY_SECONDS
                self._look_at_entities(policy)

    def _look_into_new_directories(self) -> None:
        """Scan directories that came with something in them: what they held before is told of by no observation."""
        if not self._real_time.new_directories or self._is_looking_into_new:
            return
        roots = outermost(self._real_time.new_directories)
        self._real_time.new_directories.clear()
        self._is_looking_into_new = True
        self._scans.ask(ScanJob("real-time", tuple(roots) if len(roots) <= MAX_NEW_DIRECTORIES else ()))

    def _look_at_entities(self, policy: Policy) -> None:
        compiled = policy.watching.compiled
        for type_ in sorted(compiled.types - set(FILE_TYPES)):
            if not any(one.rule.is_real_time for one in compiled.of_type(type_)):
                continue
            if not self._collectors.may_have_changed(type_):
                continue
            found, _ = self._collectors.collect(type_, compiled)
            if found is None:
                continue
            with self._examiner.batch(REAL_TIME) as batch:
                # A program that has ended is still a known program: only scans take it for gone.
                self._examiner.consider_entities(batch, policy, type_, found, only_new=type_ is EntityType.PROCESS)

    def _is_building(self) -> bool:
        return self._scans.running is not None and self._scans.running.kind == "build"

    # --- scans

    def _plan_schedule(self) -> None:
        self._next_scan_at = None
        if self._policy is None or not (schedule := self._policy.settings.scan_schedule.strip()):
            return
        self._next_scan_at = next_time(schedule)

    def _scan_goes_on(self, job: ScanJob, progress: ScanProgress, share: float | None) -> None:
        said = f"{progress.entry_count:,} entries, {progress.hashed_count:,} files read, now {escape_name(progress.current)}"
        self._progress = said
        if job.command_id:
            self._send(Answer(CommandResult(job.command_id, CommandState.RUNNING, said, share, at=time.time())))

    def _scan_has_ended(self, job: ScanJob, outcome: ScanOutcome | KeibiError | None) -> None:
        self._ended.append(ScanEnded(job, outcome))

    def _end_scan(self, ended: ScanEnded) -> None:
        job: ScanJob = ended.job
        outcome: ScanOutcome | KeibiError | None = ended.outcome
        self._progress = ""
        if job.kind == "real-time":
            self._is_looking_into_new = False
        if outcome is None:
            self._answer(job.command_id, CommandState.FAILED, "the scan was cancelled by a new policy or a stop")
            return
        if isinstance(outcome, KeibiError):
            self._scan_trouble = str(outcome)
            self._answer(job.command_id, CommandState.FAILED, str(outcome))
            if not job.command_id or not self._is_baseline_there:
                self._scans_to_repeat.append((time.monotonic() + REPEAT_SECONDS, replace(job, command_id="")))
            self._report()
            return
        self._scan_trouble = ""
        if job.kind == "keep":
            return
        self._last_scan, self._last_scan_at = outcome, time.time()
        self._scan_problems = outcome.problems + [
            f"{escape_name(one.path)}: {one.problem}" for one in outcome.summary.problems[:50]
        ]
        policy = self._policy
        is_whole = outcome.summary.is_complete and not job.roots
        if is_whole and policy is not None and policy.generation == outcome.generation:
            if job.kind == "build":
                with self._examiner.lock:
                    self._examiner.baseline.put_setting(_ALGORITHM_SETTING, self._examiner.algorithm.encode())
            self._cover(policy)
        if is_whole and job.kind == "build":
            self._is_baseline_there = True
            self._scans.ask(ScanJob("keep"))
        self._send_events()
        result = {
            "scan_id": job.scan_id,
            "entry_count": outcome.summary.entry_count,
            "hashed_count": outcome.summary.hashed_count,
            "change_count": outcome.event_count,
            "problem_count": outcome.summary.problem_count,
            "seconds": round(outcome.summary.wall_seconds, 3),
            "baseline_version": outcome.version,
        }
        self._answer(job.command_id, CommandState.DONE, said_of(outcome), result)
        self._report()

    # --- commands

    def _command(self, command: Command) -> None:
        try:
            self._carry_out(command)
        except KeibiError as error:
            self._answer(command.command_id, CommandState.FAILED, str(error))

    def _carry_out(self, command: Command) -> None:
        policy, arguments = self._policy, command.arguments
        if policy is None or self._state is ModuleState.OFF:
            raise InputError("module_off", "integrity monitoring is off on this computer", hint="turn it on in the policy")
        match command.kind:
            case CommandKind.SCAN | CommandKind.REBUILD_BASELINE:
                self._ask_scan(command, policy)
                return
            case _ if self._is_building() or not self._is_baseline_there:
                raise InputError("baseline_building", "the baseline is being built; ask again when it is there")
            case CommandKind.LIST_BASELINE:
                result = commands.list_baseline(self._examiner, policy, arguments)
            case CommandKind.COMPARE_BASELINE:
                result = commands.compare_baseline(self._examiner, arguments)
            case CommandKind.PREVIEW_RESTORE:
                result = commands.preview_restore(self._examiner, policy, arguments)
            case CommandKind.RESTORE:
                result = commands.prepare_restore(self._examiner, policy, arguments)
            case CommandKind.DECIDE_DRIFT:
                result = self._decide(arguments)
            case _:
                self._answer(command.command_id, CommandState.REFUSED, f"integrity monitoring cannot {command.kind}")
                return
        self._answer(command.command_id, CommandState.DONE, "", result)

    def _ask_scan(self, command: Command, policy: Policy) -> None:
        paths = command.arguments.get("paths", [])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise InputError("argument_invalid", "paths must be a list of paths")
        roots = tuple(commands.key_of({"key": path}) for path in paths)
        for root in roots:
            if not policy.watching.compiled.sets_reaching(root) and not policy.watching.wish_of(root):
                raise InputError("path_not_watched", f"no rule watches {escape_name(root)}", hint="see the rules of the policy")
        is_rebuild = command.kind is CommandKind.REBUILD_BASELINE
        wanted = str(policy.settings.hash_algorithm)
        if is_rebuild and wanted != self._examiner.algorithm:
            self._examiner.algorithm = wanted
            self._is_baseline_there = False
            self._scans.ask(ScanJob("build", command_id=command.command_id))
            return
        kind = "rebuild" if is_rebuild else "manual"
        if not self._is_baseline_there:
            kind = "build"
        self._scans.ask(
            ScanJob(kind, () if is_rebuild else roots, bool(command.arguments.get("reads_everything")), command.command_id)
        )

    def _decide(self, arguments: dict[str, Any]) -> dict[str, Any]:
        decision, drift_ids = arguments.get("decision"), arguments.get("drift_ids")
        if decision not in ("approve", "reject") or not isinstance(drift_ids, list):
            raise InputError("argument_invalid", "decision must be approve or reject, and drift_ids a list of ids")
        decide = self._examiner.approve if decision == "approve" else self._examiner.reject
        done, unknown = decide([str(drift_id) for drift_id in drift_ids])
        self._report()
        return {"decided": done, "unknown": unknown}

    def _answer(self, command_id: str, state: CommandState, message: str, result: dict[str, Any] | None = None) -> None:
        if command_id:
            self._send(Answer(CommandResult(command_id, state, message, result=result or {}, at=time.time())))

    # --- events and status

    def _forget_stored(self) -> None:
        if self._stored_through and not self._is_building():
            with self._examiner.lock:
                self._examiner.outbox.forget(self._stored_through)
            self._stored_through = 0

    def _send_events(self) -> None:
        if self._is_building():
            return
        while True:
            with self._examiner.lock:
                emit = self._examiner.outbox.next_frame()
            if emit is None:
                return
            self._send(emit)

    def _report(self) -> None:
        self._next_report_at = time.monotonic() + REPORT_SECONDS
        is_on = self._state is not ModuleState.OFF
        condition = Condition(
            generation=self._generation,
            policy=self._policy if is_on else None,
            is_baseline_there=self._is_baseline_there,
            progress=self._progress,
            trouble=self._trouble or self._scan_trouble,
            damage=self._damage,
            scan_problems=self._scan_problems,
            algorithm=self._examiner.algorithm,
        )
        status = status_of(condition, self._metrics() if is_on else {})
        if status != self._reported:
            self._reported = status
            self._send(Report(status))

    def _metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {"worker_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}
        if self._is_building():
            return metrics
        with self._examiner.lock:
            metrics["drifts_waiting_count"] = float(self._examiner.drifts.waiting_count())
            metrics["outbox_waiting_count"] = float(self._examiner.outbox.waiting_count())
            metrics["entities_count"] = float(self._examiner.baseline.count())
        if self._last_scan is not None:
            metrics["last_scan_at"] = round(self._last_scan_at, 3)
            metrics["last_scan_seconds"] = round(self._last_scan.summary.wall_seconds, 3)
        if self._next_scan_at is not None:
            metrics["next_scan_at"] = self._next_scan_at
        return metrics
