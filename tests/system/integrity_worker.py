"""Runs the real integrity worker and plays the core: sends frames, gathers what it says."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from keibi.agent.ports import (
    Answer,
    Applied,
    Configure,
    Emit,
    FromWorker,
    Happening,
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
from keibi.contract.events import Actor, Event
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.contract.policy import AssignedRule, ModulePolicy, ModuleState
from keibi.contract.status import Health, ModuleStatus
from keibi.protection.base import Text
from keibi.protection.integrity_monitoring.rules import EntitySet, EntityType, Rule
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings

LIMIT_SECONDS = 30.0
_decoder = msgspec.msgpack.Decoder(FromWorker)


def file_rule(base: str, name: str = "im-test", **more: object) -> Rule:
    """Return a rule that watches all below `base`."""
    set_fields = {key: more.pop(key) for key in ("include", "exclude", "attributes", "append_only") if key in more}
    return Rule(
        id=name,
        version=1,
        title=Text(en="Test"),
        description=Text(en="Something is watched."),
        severity=more.pop("severity", Severity.MEDIUM),
        entities=[EntitySet(type=EntityType.FILE, base=base, **set_fields), EntitySet(type=EntityType.DIRECTORY, base=base)],
        **more,
    )


def module_policy(
    rules: list[Rule], state: ModuleState = ModuleState.REAL_TIME, settings: IntegrityMonitoringSettings | None = None
) -> ModulePolicy:
    """Return the policy of the module."""
    return ModulePolicy(
        ModuleId.INTEGRITY_MONITORING,
        state,
        msgspec.json.encode(settings or IntegrityMonitoringSettings(scan_schedule="")),
        [AssignedRule(rule.id, rule.version, msgspec.json.encode(rule)) for rule in rules],
    )


class IntegrityWorker:
    """The worker's process and everything that it said."""

    def __init__(self, state_directory: str, *, confirms: bool = True) -> None:
        self._ours, theirs = socket.socketpair()
        self.confirms = confirms
        self.events: list[Event] = []
        self.statuses: list[ModuleStatus] = []
        self.applied: list[Applied] = []
        self.answers: list[CommandResult] = []
        self.watches: list[Watch] = []
        self.hello: Hello | None = None
        self._received = bytearray()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keibi.agent.modules.integrity_monitoring.worker", "--state", state_directory],
            stdin=theirs.fileno(),
            stderr=subprocess.PIPE,
        )
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
                f"waited {seconds} s in vain; status {self.statuses[-1:]}, answers {self.answers[-2:]}, {self.errors()}"
            )
            readable, _, _ = select.select([self._ours], [], [], left)
            if not readable:
                continue
            self._receive()

    def _receive(self) -> None:
        data = self._ours.recv(1 << 20)
        assert data, f"the worker is gone: {self.errors()}"
        self._received += data
        self._take()

    def _take(self) -> None:
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

    def configure(self, rules: list[Rule], generation: int = 1, **more: object) -> None:
        """Give a policy and wait until it is in force and the baseline is there and looked at."""
        self.send(Configure(generation, module_policy(rules, **more)))
        self.wait(lambda: bool(self.applied) and self.applied[-1].generation == generation)
        if not self.applied[-1].error and more.get("state") is not ModuleState.OFF:
            self.wait(
                lambda: (
                    self.statuses[-1:] != []
                    and self.statuses[-1].policy_generation == generation
                    and self.statuses[-1].health in (Health.ACTIVE, Health.WARNING)
                    and "last_scan_at" in self.statuses[-1].metrics
                )
            )

    def run(self, kind: CommandKind, **arguments: object) -> CommandResult:
        """Carry out a command and return its final answer."""
        command = Command(new_id(), kind, ModuleId.INTEGRITY_MONITORING, dict(arguments))
        self.send(Run(command))

        def final() -> list[CommandResult]:
            return [
                answer
                for answer in self.answers
                if answer.command_id == command.command_id and answer.state is not CommandState.RUNNING
            ]

        self.wait(lambda: bool(final()))
        return final()[0]

    def scan(self, **arguments: object) -> list[Event]:
        """Run a manual scan and return the events it gave."""
        known = len(self.events)
        answer = self.run(CommandKind.SCAN, **arguments)
        assert answer.state is CommandState.DONE, answer
        self.wait(lambda: len(self.events) >= known + answer.result["change_count"])
        return self.events[known:]

    def observe(self, happening: Happening, path: str | bytes, old_path: str = "", actor: Actor = Actor(), **more: bool) -> None:
        """Play the sensor."""
        raw = os.fsencode(path)
        self.send(Observed([Observation(happening, raw, time.time(), old_path=os.fsencode(old_path), actor=actor, **more)]))

    def next_events(self, count: int = 1, seconds: float = 10.0) -> list[Event]:
        """Wait for so many further events and return them."""
        known = len(self.events)
        self.wait(lambda: len(self.events) >= known + count, seconds)
        return self.events[known:]

    def stop(self) -> None:
        """Stop it in order."""
        if self.process.poll() is None:
            self.send(Stop())
            self.process.wait(15)
        self.close()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(15)
        self.close()

    def close(self) -> None:
        self._ours.close()
        if self.process.stderr is not None:
            self.process.stderr.close()
