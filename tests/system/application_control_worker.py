"""Runs the real application control worker and plays the core: sends frames, gathers what it says."""

import hashlib
import os
import socket
import time
from typing import Any

import msgspec

from keibi.agent.gate import judging
from keibi.agent.ports import Observation
from keibi.contract.events import Event
from keibi.contract.names import ModuleId, Severity
from keibi.contract.policy import AssignedRule, ModulePolicy, ModuleState
from keibi.protection.application_control.rules import Entry, HashEntry, Rule, RuleAction
from keibi.protection.application_control.settings import ApplicationControlSettings
from keibi.protection.base import Text
from tests.system.worker_process import LIMIT_SECONDS, WorkerProcess


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


class ApplicationControlWorker(WorkerProcess):
    """The application control worker, with its state and its socket below a directory."""

    def __init__(self, directory: str, *, roots: tuple[str, ...] = (), confirms: bool = True) -> None:
        """Start it; the inventory covers `roots`."""
        self.directory = directory
        self.judges = os.path.join(directory, "judges")
        state = os.path.join(directory, "state", "application_control")
        os.makedirs(os.path.dirname(state), mode=0o711, exist_ok=True)
        covered = [part for root in roots for part in ("--root", root)]
        super().__init__(ModuleId.APPLICATION_CONTROL, ["--state", state, "--judges", self.judges, *covered], confirms=confirms)

    def configure(
        self,
        *rules: Rule,
        state: ModuleState = ModuleState.PREVENT,
        settings: ApplicationControlSettings | None = None,
        seconds: float = LIMIT_SECONDS,
    ) -> None:
        """Give a policy and wait until it is in force and the inventory is there and looked through."""
        applied = self.apply(module_policy(rules, state, settings))
        assert not applied.error, applied.error
        if state is not ModuleState.OFF:
            self.wait_looked_through(seconds)

    def observe(self, *observations: Observation) -> None:
        """Play the sensor."""
        self.observe_all(*observations)

    def events_of(self, kind: str, subject: str = "") -> list[Event]:
        """Return the events of a kind, about a path if one is given."""
        return [event for event in self.events if event.kind == kind and subject in ("", event.subject)]

    def next_event(self, kind: str, subject: str = "", seconds: float = 10.0) -> Event:
        """Wait for an event of a kind and return the latest."""
        self.wait(lambda: bool(self.events_of(kind, subject)), seconds)
        return self.events_of(kind, subject)[-1]


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

    def ask(
        self, event: str, path: str, *, is_held: bool = True, pid: int = 0, descriptor: int | None = None
    ) -> tuple[bool, bool] | None:
        """Ask about a file, opened here unless it is already; return whether it is allowed and whether that may be remembered.

        None when nobody waits.
        """
        self._count += 1
        descriptor = os.open(path, os.O_RDONLY) if descriptor is None else os.dup(descriptor)
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
