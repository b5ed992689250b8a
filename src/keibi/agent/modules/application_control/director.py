"""The worker's one decider: policy, commands, the inventory's passes, status. Everything comes to it through one inbox."""

import os
import queue
import resource
import sqlite3
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from keibi.agent.gate.judging import GateState, Told
from keibi.agent.judge_server import JudgeServer
from keibi.agent.modules.application_control import commands, policies
from keibi.agent.modules.application_control.builder import Builder, Ended
from keibi.agent.modules.application_control.building import BUILT_SETTING, Job, Outcome
from keibi.agent.modules.application_control.examined import Counts
from keibi.agent.modules.application_control.examiner_link import ExaminerLink
from keibi.agent.modules.application_control.interpreters import Interpreters
from keibi.agent.modules.application_control.inventory import Inventory
from keibi.agent.modules.application_control.judge import InForce, Judge
from keibi.agent.modules.application_control.lasting import Lasting
from keibi.agent.modules.application_control.packages import Packages
from keibi.agent.modules.application_control.policies import Policy
from keibi.agent.modules.application_control.proofs import devices_of_proofs
from keibi.agent.modules.application_control.reporting import Reporter
from keibi.agent.modules.application_control.status import Condition, said_of_scan, status_of
from keibi.agent.modules.application_control.telling import Teller
from keibi.agent.modules.application_control.updaters import Patience, Updaters
from keibi.agent.modules.application_control.vetting import Vetting
from keibi.agent.ports import (
    Answer,
    Applied,
    Configure,
    Examine,
    Examined,
    ExaminerIs,
    FollowThreats,
    FromWorker,
    Observed,
    Overflowed,
    Report,
    Run,
    Stop,
    Stored,
    ThreatsNoted,
    ToWorker,
    Watch,
    WatchRoots,
)
from keibi.agent.process_book import ProcessBook
from keibi.contract.commands import Command, CommandKind, CommandResult, CommandState
from keibi.contract.names import Severity
from keibi.contract.policy import ModuleState
from keibi.contract.status import ModuleStatus
from keibi.errors import InputError, KeibiError
from keibi.protection.application_control.events import Kind

STEP_SECONDS = 0.2
REPORT_SECONDS = 10.0
PROGRESS_SECONDS = 2.0
PACKAGES_SECONDS = 10.0
REPEAT_SECONDS = 10.0
CHECKPOINT_SECONDS = 2.0
CHECK_SECONDS = 24 * 3600.0
"""What is moved into place raises no event of a writer: so everything is looked through once a day."""
LOCAL_PREFIX = "local-"
"""Of the id of a command that a person gave on the computer itself."""


class Director:
    """Runs until `Stop`."""

    def __init__(
        self,
        inventory: Inventory,
        packages: Packages,
        book: ProcessBook,
        reporter: Reporter,
        judge: Judge,
        server: JudgeServer,
        send: Callable[[FromWorker], None],
        inbox: "queue.Queue[ToWorker | None]",
        *,
        maintenance: Lasting,
        unlocked: Lasting,
        roots: list[bytes],
        own_directory: bytes,
        damage: str = "",
    ) -> None:
        self.exit_code = 0
        self.generation = 0
        self._inventory = inventory
        self._packages = packages
        self._book = book
        self._reporter = reporter
        self._judge = judge
        self._server = server
        self._send = send
        self._inbox = inbox
        self._maintenance = maintenance
        self._unlocked = unlocked
        self._was_maintained = maintenance.is_on
        self._was_unlocked = unlocked.is_on
        self._damage = damage
        self._policy: Policy | None = None
        self._teller = Teller(book, reporter)
        self._patience = Patience()
        self._link = ExaminerLink(send)
        self._vetting = Vetting(inventory, self._teller, self._link, send, forget_verdicts=judge.forget)
        self._ended: deque[Ended] = deque()
        self._gates: list[GateState] = []
        self._is_inventory_there = inventory.setting(BUILT_SETTING) is not None
        self._builder = Builder(
            inventory,
            packages,
            self._teller,
            lambda: self._policy,
            self._link,
            roots=roots,
            own_directory=own_directory,
            on_progress=self._goes_on,
            on_trust_changed=judge.forget,
            on_end=self._has_ended,
        )
        self._progress = ""
        self._problems: list[str] = []
        self._trouble = ""
        self._pass_trouble = ""
        self._last_check_at = 0.0
        self._repeat: tuple[float, Job] | None = None
        self._has_lost = False
        self._stored_through = 0
        self._next_report_at = self._reported_at = 0.0
        self._next_packages_at = 0.0
        self._next_checkpoint_at = 0.0
        self._reported: ModuleStatus | None = None
        judge.forget_verdicts = server.forget

    @property
    def _is_on(self) -> bool:
        return self._policy is not None and self._policy.state is not ModuleState.OFF

    # --- called by other threads

    def gates_are(self, states: list[GateState]) -> None:
        """Take the states of all connected gates."""
        had_proof = any(state.is_proof for state in self._gates)
        if [state.is_enforcing for state in states] != [state.is_enforcing for state in self._gates]:
            self._next_report_at = 0.0
        self._gates = list(states)
        self._judge.proof_devices = devices_of_proofs(states)
        if had_proof and not any(state.is_proof for state in states):
            self._inventory.forget_proofs()

    def gate_told(self, told: Told) -> None:
        """Take what a gate tells without a question."""
        if told.what == "overflow":
            self._has_lost = True
        else:
            self._teller.told(told)

    def lanes_overflowed(self) -> None:
        """Note that written files were not looked at."""
        self._has_lost = True

    def _goes_on(self, job: Job, how_far: str, share: float | None) -> None:
        self._progress = how_far if share is None else f"{share * 100:.0f} %, {how_far}"
        if not self._is_inventory_there:
            # Somebody waits for it.
            self._next_report_at = min(self._next_report_at, self._reported_at + PROGRESS_SECONDS)
        if job.command_id:
            self._send(Answer(CommandResult(job.command_id, CommandState.RUNNING, self._progress, share, at=time.time())))

    def _has_ended(self, ended: Ended) -> None:
        self._ended.append(ended)

    # --- the loop

    def run(self) -> None:
        """Work until told to stop. A disk that is full or read-only is said and waited for; anything else ends the worker."""
        self._builder.start()
        self._send(Watch([], wants_processes=True))
        try:
            while self._step():
                pass
        except Exception:  # noqa: BLE001  the edge of the thread: whoever is on call must see why
            traceback.print_exc()
            self.exit_code = 1
        finally:
            self._builder.stop(5.0)
            self._reporter.flush(everything=True)
        if self.exit_code:
            os._exit(self.exit_code)

    def _step(self) -> bool:
        try:
            message = self._inbox.get(timeout=STEP_SECONDS)
        except queue.Empty:
            message = None
        else:
            if message is None:
                return False
        try:
            if message is not None and not self._take(message):
                return False
            while self._ended:
                self._end(self._ended.popleft())
            self._look()
            self._send_events()
            self._trouble = ""
        except (sqlite3.OperationalError, OSError) as error:
            self._trouble = f"the inventory cannot be written: {error}"
            self._report()
            time.sleep(1.0)
            if message is not None and isinstance(message, Configure | ThreatsNoted):
                self._inbox.put(message)  # nothing else would ever bring this generation, or these notes, again
        if time.monotonic() >= self._next_report_at:
            self._report()
        return True

    def _take(self, message: ToWorker) -> bool:
        match message:
            case Configure():
                self._configure(message)
            case Observed():
                self._book.observe(message.observations)
            case Run():
                self._command(message.command)
            case Stored():
                self._stored_through = max(self._stored_through, message.through)
            case ExaminerIs():
                self._vetting.take_examiner(message)
                self._report()
            case Examined():
                self._link.take(message)
            case ThreatsNoted():
                self._vetting.take_threats(message, is_told=self._is_on)
                self._report()
            case Stop():
                return False
            case Overflowed() | WatchRoots() | Examine() | FollowThreats():
                return True
        return True

    # --- policy

    def _configure(self, message: Configure) -> None:
        try:
            policy = policies.read_policy(message.generation, message.policy)
        except (KeibiError, msgspec.DecodeError) as error:
            text = str(error) if isinstance(error, KeibiError) else f"the policy cannot be read: {error}"
            self._send(Applied(message.generation, text))
            return
        was_on = self._is_on
        self._policy, self.generation = policy, message.generation
        self._put_in_force()
        self._send(Applied(message.generation))
        if policy.state is ModuleState.OFF:
            self._cancel("the module was turned off")
        elif not self._is_inventory_there:
            if self._builder.is_idle():
                self._builder.ask(Job("build"))
        elif not was_on:
            # Look for what came while nobody watched.
            self._builder.ask(Job("check"))
        self._report()

    def _put_in_force(self) -> None:
        """Let judge and gates go by the policy, and by whether there is an inventory and a hold on it."""
        policy = self._policy
        if policy is None:
            return
        updaters = Updaters(policy.settings, self._book, self._patience)
        interpreters = Interpreters(policy.interpreters, self._inventory)
        self._judge.in_force = InForce(policy, updaters, self._is_inventory_there, interpreters)
        self._server.set_terms(policies.terms_of(policy, is_suspended=self._unlocked.is_on))
        self._server.forget()

    def _cancel(self, why: str) -> None:
        for job in self._builder.cancel():
            self._answer(job.command_id, CommandState.FAILED, why)

    # --- passes

    def _end(self, ended: Ended) -> None:
        job, outcome = ended.job, ended.outcome
        self._progress = ""
        self._pass_trouble = ended.trouble
        if ended.trouble or not outcome.is_complete:
            self._answer(job.command_id, CommandState.FAILED, ended.trouble or "it was stopped by a new policy or by a stop")
            if ended.trouble:
                self._repeat = (time.monotonic() + REPEAT_SECONDS, Job(job.kind))
            self._report()
            return
        if job.kind == "examine":
            self._end_examination(outcome)
            return
        self._problems = outcome.problems
        self._last_check_at = time.time()
        is_first = not self._is_inventory_there
        result = {
            "software_count": outcome.software_count,
            "read_count": outcome.read_count,
            "drift_count": outcome.drift_count,
            "gone_count": outcome.gone_count,
            "problem_count": len(outcome.problems),
            "examined_count": outcome.examined_count,
            "threat_count": outcome.threat_count,
            "unexamined_reason": outcome.unexamined,
            "seconds": round(outcome.seconds, 3),
        }
        message = (
            f"{outcome.software_count:,} programs, libraries and scripts are in the inventory; {outcome.read_count:,} were read "
            f"in {outcome.seconds:.1f} s, {outcome.drift_count:,} are new or changed."
        )
        if job.trusts:
            message += said_of_scan(outcome)
            self._vetting.pass_ended(outcome)
        if job.kind != "check" or outcome.drift_count:
            self._reporter.tell(Kind.INVENTORY_FINISHED, Severity.LOW, message, reason=job.kind)
        self._is_inventory_there = True
        if is_first or job.kind == "rebuild":
            self._put_in_force()
        self._answer(job.command_id, CommandState.DONE, message, result)
        self._report()

    def _end_examination(self, outcome: Outcome) -> None:
        if outcome.trusted_count:
            self._put_in_force()
        if outcome.examined_count:
            message = f"What was trusted unscanned was looked at again.{said_of_scan(outcome)}"
            self._reporter.tell(Kind.INVENTORY_FINISHED, Severity.LOW, message, reason="examine")
        self._vetting.pass_ended(outcome)
        self._report()

    def _look(self) -> None:
        if self._was_maintained and not self._maintenance.is_on:
            self._was_maintained = False
            self._reporter.tell(Kind.MAINTENANCE_ENDED, Severity.LOW, "Maintenance has ended: what is written is judged again.")
            self._report()
        if self._was_unlocked and not self._unlocked.is_on:
            self._was_unlocked = False
            self._put_in_force()
            self._report()
        if self._has_lost and self._is_inventory_there and self._builder.is_idle():
            self._has_lost = False
            self._builder.ask(Job("check"))
        if self._last_check_at and time.time() - self._last_check_at > CHECK_SECONDS and self._builder.is_idle():
            self._builder.ask(Job("check"))
        if self._repeat is not None and time.monotonic() >= self._repeat[0]:
            job, self._repeat = self._repeat[1], None
            self._builder.ask(job)
        if self._is_on and self._is_inventory_there and self._builder.is_idle() and self._vetting.wants_examination():
            self._builder.ask(Job("examine"))
        if time.monotonic() >= self._next_packages_at and self._policy is not None and self._builder.is_idle():
            self._next_packages_at = time.monotonic() + PACKAGES_SECONDS
            self._fill_packages()
        if time.monotonic() >= self._next_checkpoint_at:
            self._next_checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
            self._inventory.checkpoint()
        self._reporter.flush()

    def _fill_packages(self) -> None:
        """Note the packages of what an updater brought: their lists are written after the files."""
        if self._policy is None or self._policy.state is ModuleState.OFF or not self._packages.refresh():
            return
        found = []
        for software in self._inventory.without_package(5000):
            records = self._packages.of(software.path)
            if records:
                found.append((software.path, records[0].package))
        with self._inventory.transaction():
            for path, package in found:
                self._inventory.put_package(path, package)

    # --- commands

    def _command(self, command: Command) -> None:
        try:
            self._carry_out(command)
        except KeibiError as error:
            self._answer(command.command_id, CommandState.FAILED, str(error))

    def _carry_out(self, command: Command) -> None:
        if self._policy is None or self._policy.state is ModuleState.OFF:
            raise InputError("module_off", "application control is off on this computer", hint="turn it on in the policy")
        match command.kind:
            case CommandKind.LIST_SOFTWARE:
                self._answer(
                    command.command_id,
                    CommandState.DONE,
                    "",
                    commands.list_software(self._inventory, self._vetting.examinations, command.arguments),
                )
            case CommandKind.BUILD_INVENTORY:
                self._builder.ask(Job("rebuild" if self._is_inventory_there else "build", command.command_id))
            case CommandKind.SCAN:
                if not self._is_inventory_there:
                    raise InputError("inventory_building", "the inventory is being built; ask again when it is there")
                self._builder.ask(Job("check", command.command_id))
            case CommandKind.SET_MAINTENANCE if command.arguments.get("unlock"):
                self._unlock(command)
            case CommandKind.SET_MAINTENANCE:
                self._maintain(command)
            case _:
                self._answer(command.command_id, CommandState.REFUSED, f"application control cannot {command.kind}")

    def _maintain(self, command: Command) -> None:
        minutes = commands.minutes_of(command.arguments)
        was_on = self._maintenance.is_on
        with self._inventory.transaction():
            if minutes:
                self._maintenance.begin(minutes, command.command_id)
                words = f"Maintenance for {minutes:.0f} minutes: what is written is trusted."
                self._reporter.tell(Kind.MAINTENANCE_STARTED, Severity.MEDIUM, words)
            else:
                self._maintenance.end()
                if was_on:
                    self._reporter.tell(Kind.MAINTENANCE_ENDED, Severity.LOW, "Maintenance was ended.")
        self._was_maintained = self._maintenance.is_on
        self._server.forget()
        self._answer(command.command_id, CommandState.DONE, "", {"until": self._maintenance.until if minutes else 0.0})
        self._report()

    def _unlock(self, command: Command) -> None:
        if not command.command_id.startswith(LOCAL_PREFIX):
            raise InputError("unlock_local_only", "a computer is unlocked on the computer itself", hint="change the policy")
        minutes = commands.minutes_of(command.arguments)
        with self._inventory.transaction():
            if minutes:
                self._unlocked.begin(minutes, command.command_id)
                words = f"Unlocked on the computer with a one-time code: nothing is blocked for {minutes:.0f} minutes."
                self._reporter.tell(Kind.UNLOCKED, Severity.HIGH, words)
            else:
                self._unlocked.end()
        self._was_unlocked = self._unlocked.is_on
        self._put_in_force()
        self._answer(command.command_id, CommandState.DONE, "", {"until": self._unlocked.until if minutes else 0.0})
        self._report()

    def _answer(self, command_id: str, state: CommandState, message: str, result: dict[str, Any] | None = None) -> None:
        if command_id:
            self._send(Answer(CommandResult(command_id, state, message, result=result or {}, at=time.time())))

    # --- events and status

    def _send_events(self) -> None:
        with self._inventory.lock:
            if self._stored_through:
                self._inventory.outbox.forget(self._stored_through)
                self._stored_through = 0
        while True:
            with self._inventory.lock:
                emit = self._inventory.outbox.next_frame()
            if emit is None:
                return
            self._send(emit)

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        self._next_report_at = self._reported_at + REPORT_SECONDS
        is_on = self._is_on
        examined = self._vetting.counts() if is_on and self._is_inventory_there else Counts()
        condition = Condition(
            generation=self.generation,
            policy=self._policy,
            is_inventory_there=self._is_inventory_there,
            progress=self._progress,
            trouble=self._trouble or self._judge.trouble or self._pass_trouble,
            damage=self._damage,
            problems=self._problems,
            gates=[state for state in self._gates if not state.is_proof],
            maintenance_minutes=self._maintenance.minutes_left,
            unlocked_minutes=self._unlocked.minutes_left,
            examined=examined,
            unexamined_reason=self._vetting.reason,
        )
        status = status_of(condition, self._metrics(examined) if is_on else {})
        if status != self._reported:
            self._reported = status
            self._send(Report(status))

    def _metrics(self, examined: Counts) -> dict[str, float]:
        total, unrecognised = self._inventory.count()
        with self._inventory.lock:
            waiting = self._inventory.outbox.waiting_count()
        metrics = {
            "worker_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
            "software_count": float(total),
            "unrecognised_count": float(unrecognised),
            "unexamined_count": float(examined.unexamined),
            "partly_examined_count": float(examined.partly_examined),
            "malicious_count": float(examined.malicious),
            "outbox_waiting_count": float(waiting),
            "judged_count": float(self._judge.judged_count),
            "denied_count": float(self._judge.denied_count),
            "maintenance_until_at": self._maintenance.until if self._maintenance.is_on else 0.0,
            "unlocked_until_at": self._unlocked.until if self._unlocked.is_on else 0.0,
        }
        if self._last_check_at:
            metrics["last_scan_at"] = round(self._last_check_at, 3)
        for state in self._gates:
            if not state.is_proof:
                metrics |= {f"gate_{name}": value for name, value in state.metrics}
        return metrics
