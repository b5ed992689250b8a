"""Runs the real application control worker and plays the core: sends frames, gathers what it says."""

import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from keibi.agent.gate import judging
from keibi.agent.ports import (
    Answer,
    Applied,
    Configure,
    Emit,
    FromWorker,
    Hello,
    Observation,
    Observed,
    Report,
    Run,
    Stop,
    Stored,
    ToWorker,
    Watch,
)
from keibi.contract.codec import frame, frame_length
from keibi.contract.commands import Command, CommandKind, CommandResult, CommandState
from keibi.contract.events import Event
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.contract.policy import AssignedRule, ModulePolicy, ModuleState
from keibi.contract.status import Health, ModuleStatus
from keibi.protection.application_control.rules import Entry, HashEntry, Rule, RuleAction
from keibi.protection.application_control.settings import ApplicationControlSettings
from keibi.protection.base import Text

LIMIT_SECONDS = 30.0
_decoder = msgspec.msgpack.Decoder(FromWorker)


def ruleset(action: RuleAction, *entries: Entry, name: str = "ac-test", **more: object) -> Rule:
    """Return a ruleset with these entries."""
    return Rule(
        id=name,
        version=1,
        title=Text(en="Test"),
        description=Text(en="For a test."),
        severity=Severity.HIGH,
        action=action,
        entries=list(entries),
        **more,
    )


def hash_entry(content: bytes) -> HashEntry:
    """Return an entry for a content."""
    return HashEntry(sha256=hashlib.sha256(content).hexdigest())


def module_policy(
    rules: tuple[Rule, ...] = (),
    state: ModuleState = ModuleState.PREVENT,
    settings: ApplicationControlSettings | None = None,
) -> ModulePolicy:
    """Return the policy of the module."""
    return ModulePolicy(
        ModuleId.APPLICATION_CONTROL,
        state,
        msgspec.json.encode(settings or ApplicationControlSettings(inventory_cpu_percent=400)),
        [AssignedRule(rule.id, rule.version, msgspec.json.encode(rule)) for rule in rules],
    )


class ApplicationControlWorker:
    """The worker's process and everything that it said."""

    def __init__(self, directory: str, *, roots: tuple[str, ...] = (), confirms: bool = True) -> None:
        """Start it with its state and its socket below `directory`; the inventory covers `roots`."""
        self.directory = directory
        self.judges = os.path.join(directory, "judges")
        self._ours, theirs = socket.socketpair()
        self.confirms = confirms
        self.events: list[Event] = []
        self.statuses: list[ModuleStatus] = []
        self.applied: list[Applied] = []
        self.answers: list[CommandResult] = []
        self.watches: list[Watch] = []
        self.hello: Hello | None = None
        self._generation = 0
        self._received = bytearray()
        state = os.path.join(directory, "state", "application_control")
        argv = [sys.executable, "-m", "keibi.agent.modules.application_control.worker", "--state", state]
        argv += ["--judges", self.judges, *(part for root in roots for part in ("--root", root))]
        os.makedirs(os.path.dirname(state), mode=0o711, exist_ok=True)
        self.process = subprocess.Popen(argv, stdin=theirs.fileno(), stderr=subprocess.PIPE)
        theirs.close()
        self.wait(lambda: self.hello is not None)

    def send(self, message: ToWorker) -> None:
        """Send a frame, and read meanwhile, as the core does: two who only write would wait for each other for ever."""
        left = memoryview(frame(message))
        while left:
            readable, writable, _ = select.select([self._ours], [self._ours], [], LIMIT_SECONDS)
            assert readable or writable, "the worker neither reads nor writes"
            if readable:
                self._receive()
            if writable:
                left = left[self._ours.send(left, socket.MSG_DONTWAIT) :]

    def wait(self, condition: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
        """Take frames until the condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, (
                f"waited {seconds} s in vain; status {self.statuses[-1:]}, answers {self.answers[-2:]}, "
                f"events {[(event.kind, event.subject) for event in self.events[-5:]]}, {self.errors()}"
            )
            readable, _, _ = select.select([self._ours], [], [], min(left, 0.1))
            if readable:
                self._receive()

    def _receive(self) -> None:
        data = self._ours.recv(1 << 20)
        assert data, f"the worker is gone: {self.errors()}"
        self._received += data
        while len(self._received) >= 4 and len(self._received) >= 4 + (length := frame_length(bytes(self._received[:4]))):
            message = _decoder.decode(bytes(self._received[4 : 4 + length]))
            del self._received[: 4 + length]
            match message:
                case Hello():
                    self.hello = message
                case Applied():
                    self.applied.append(message)
                case Emit():
                    self.events += message.events
                    if self.confirms:
                        self.send(Stored(message.sequence))
                case Report():
                    self.statuses.append(message.status)
                case Answer():
                    self.answers.append(message.result)
                case Watch():
                    self.watches.append(message)

    def errors(self) -> str:
        """Return what the worker wrote to standard error so far, if it has ended."""
        if self.process.poll() is None or self.process.stderr is None:
            return ""
        return self.process.stderr.read().decode()

    def apply(self, policy: ModulePolicy) -> Applied:
        """Give a policy and return what the worker says to it."""
        self._generation += 1
        generation = self._generation
        self.send(Configure(generation, policy))
        self.wait(lambda: bool(self.applied) and self.applied[-1].generation == generation)
        return self.applied[-1]

    def configure(
        self,
        *rules: Rule,
        state: ModuleState = ModuleState.PREVENT,
        settings: ApplicationControlSettings | None = None,
    ) -> None:
        """Give a policy and wait until it is in force and the inventory is there and looked through."""
        applied = self.apply(module_policy(rules, state, settings))
        assert not applied.error, applied.error
        if state is not ModuleState.OFF:
            self.wait(
                lambda: (
                    self.statuses[-1:] != []
                    and self.statuses[-1].policy_generation == applied.generation
                    and self.statuses[-1].health in (Health.ACTIVE, Health.WARNING)
                    and "last_scan_at" in self.statuses[-1].metrics
                )
            )

    def run(self, kind: CommandKind, *, is_local: bool = False, **arguments: object) -> CommandResult:
        """Carry out a command and return its final answer."""
        command_id = f"local-{new_id()}" if is_local else new_id()
        self.send(Run(Command(command_id, kind, ModuleId.APPLICATION_CONTROL, dict(arguments))))

        def final() -> list[CommandResult]:
            return [
                answer for answer in self.answers if answer.command_id == command_id and answer.state is not CommandState.RUNNING
            ]

        self.wait(lambda: bool(final()))
        return final()[0]

    def observe(self, *observations: Observation) -> None:
        """Play the sensor."""
        self.send(Observed(list(observations)))

    def events_of(self, kind: str, subject: str = "") -> list[Event]:
        """Return the events of a kind, about a path if one is given."""
        return [event for event in self.events if event.kind == kind and subject in ("", event.subject)]

    def next_event(self, kind: str, subject: str = "", seconds: float = 10.0) -> Event:
        """Wait for an event of a kind and return the latest."""
        self.wait(lambda: bool(self.events_of(kind, subject)), seconds)
        return self.events_of(kind, subject)[-1]

    def stop(self) -> None:
        """Stop it in order."""
        if self.process.poll() is None:
            self.send(Stop())
            deadline = time.monotonic() + LIMIT_SECONDS
            # What it still has to say must be read, else it could not say that and end.
            while self.process.poll() is None and time.monotonic() < deadline:
                if select.select([self._ours], [], [], 0.05)[0] and not self._ours.recv(1 << 20):
                    break
            self.process.wait(15)
        self.close()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(15)
        self.close()

    def close(self) -> None:
        """Close what is left of it."""
        self._ours.close()
        if self.process.stderr is not None:
            self.process.stderr.close()


class PlainGate:
    """The gate's side of the conversation, without a kernel: asks the worker about files of this computer."""

    def __init__(self, judges: str) -> None:
        """Connect, and wait for the terms."""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(LIMIT_SECONDS)
        self._connection.connect(os.path.join(judges, "application_control.sock"))
        self.terms = self._receive("terms")
        self._count = 0
        self.say(judging.state_message(judging.GateState(pid=os.getpid(), is_enforcing=True)))

    def say(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        """Send a message."""
        judging.send(self._connection, message, descriptor)

    def ask(self, event: str, path: str, *, is_held: bool = True, pid: int = 0) -> tuple[bool, bool] | None:
        """Ask about a file; return whether it is allowed and whether that may be remembered, None when nobody waits."""
        self._count += 1
        descriptor = os.open(path, os.O_RDONLY)
        question = judging.Question(
            id=self._count if is_held else 0,
            event=event,
            is_held=is_held,
            is_proof=False,
            pid=pid or os.getpid(),
            path=os.fsencode(path),
            key=judging.FileKey.of(os.fstat(descriptor)),
            at=time.time(),
        )
        self.say(judging.question_message(question), descriptor)
        os.close(descriptor)
        if not is_held:
            return None
        verdict = self._receive("verdict")
        assert verdict["id"] == question.id
        return verdict["allow"], verdict["remember"]

    def next_terms(self) -> dict[str, Any]:
        """Wait for other terms."""
        self.terms = self._receive("terms")
        return self.terms

    def _receive(self, type_: str) -> dict[str, Any]:
        while True:
            received = judging.receive(self._connection)
            assert received is not None, "the worker hung up"
            if received[0]["type"] == type_:
                return received[0]

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
