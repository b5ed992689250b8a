"""Runs the real integrity worker and plays the core: sends frames, gathers what it says."""

import os
import time

import msgspec

from keibi.agent.ports import (
    Happening,
    Observation,
)
from keibi.contract.commands import CommandKind, CommandState
from keibi.contract.events import Actor, Event
from keibi.contract.names import ModuleId, Severity
from keibi.contract.policy import AssignedRule, ModulePolicy, ModuleState
from keibi.protection.base import Text
from keibi.protection.integrity_monitoring.rules import EntitySet, EntityType, Rule
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings
from tests.system.worker_process import WorkerProcess


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


class IntegrityWorker(WorkerProcess):
    """The integrity monitoring worker."""

    def __init__(self, state_directory: str, *, confirms: bool = True) -> None:
        super().__init__(ModuleId.INTEGRITY_MONITORING, ["--state", state_directory], confirms=confirms)

    def configure(self, rules: list[Rule], generation: int = 1, **more: object) -> None:
        """Give a policy and wait until it is in force and the baseline is there and looked at."""
        applied = self.apply(module_policy(rules, **more), generation)
        if not applied.error and more.get("state") is not ModuleState.OFF:
            self.wait_looked_through()

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
        self.observe_all(Observation(happening, raw, time.time(), old_path=os.fsencode(old_path), actor=actor, **more))

    def next_events(self, count: int = 1, seconds: float = 10.0) -> list[Event]:
        """Wait for so many further events and return them."""
        known = len(self.events)
        self.wait(lambda: len(self.events) >= known + count, seconds)
        return self.events[known:]
