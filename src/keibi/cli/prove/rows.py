"""What is proved: an act and what came of it, as the manager's API tells it.

The time is from the act to the moment when the API answers with the event, so it includes the kernel, the agent, the network and
the event store.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from keibi.cli.client import ApiClient
from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState

ASK_SECONDS = 0.02

T = TypeVar("T")


class Outcome(StrEnum):
    """What came of it."""

    SEEN = "seen"
    MISSED = "missed"
    OFF = "off"  # the policy does not want it
    NOT_ENFORCED = "not_enforced"  # this kernel cannot, and the policy does not ask for it


@dataclass(frozen=True)
class Row:
    """One act and what came of it."""

    module: str
    done: str
    expected: str
    seen: str
    milliseconds: int | None
    outcome: Outcome

    @property
    def mark(self) -> str:
        """What stands where the time would."""
        if self.outcome is Outcome.SEEN:
            return str(self.milliseconds)
        return {Outcome.MISSED: "MISSED", Outcome.OFF: "off", Outcome.NOT_ENFORCED: "not here"}[self.outcome]


@dataclass(frozen=True)
class Trigger:
    """Something harmless to do, and the event that it must give."""

    done: str
    kind: str
    subject: str
    act: Callable[[], None]
    check: Callable[[dict[str, Any]], str] = lambda _: ""  # what is wrong with the event, "" when nothing is


@dataclass(frozen=True)
class InForce:
    """What the policies say of a module on this computer."""

    state: ModuleState
    settings: dict[str, Any]

    @property
    def is_off(self) -> bool:
        """Whether the module is switched off."""
        return self.state is ModuleState.OFF

    @property
    def prevents(self) -> bool:
        """Whether the policy wants something held up."""
        return self.state is ModuleState.PREVENT

    def settings_as(self, type_: type[T]) -> T:
        """Return the settings as the module reads them."""
        return msgspec.convert(self.settings, type_)


@dataclass(frozen=True)
class Manager:
    """The manager, and which computer this is to it."""

    api: ApiClient
    computer_id: str
    seconds: float  # how long each event is waited for

    def find(self, kind: str, subject: str, since: float, seconds: float = 0.0) -> dict[str, Any] | None:
        """Return the newest event of this kind about a subject, with its details, or None when time is up."""
        deadline = time.monotonic() + (seconds or self.seconds)
        while time.monotonic() < deadline:
            query = {"computer": self.computer_id, "kind": kind, "subject": subject, "since": since - 0.001, "limit": 5}
            page = self.api.get("/events", **query)
            if page["items"]:
                event: dict[str, Any] = self.api.get(f"/events/{page['items'][0]['event_id']}")
                return event
            time.sleep(ASK_SECONDS)
        return None

    def finished(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return a command as it is when it has ended, or when time is up."""
        deadline = time.monotonic() + self.seconds
        while command["state"] in ("pending", "sent", "running") and time.monotonic() < deadline:
            time.sleep(ASK_SECONDS)
            command = self.api.get(f"/commands/{command['command_id']}")
        return command

    def in_force(self, module: ModuleId) -> InForce:
        """Return what the policies say of a module on this computer."""
        said = self.api.get(f"/policies/computers/{self.computer_id}/effective")["modules"][module.value]
        return InForce(
            ModuleState(said["state"]["value"]), {name: one["value"] for name, one in said["settings"].items()}
        )  # fmt: skip


def title_of(module: ModuleId) -> str:
    """Return how a module is called in a row."""
    return module.value.replace("_", " ")


@dataclass(frozen=True)
class Prover:
    """Acts for one module, and makes rows of what comes of it."""

    module: ModuleId
    manager: Manager

    def run(self, trigger: Trigger) -> Row:
        """Act, and wait for the event."""
        began, started = time.time(), time.monotonic()
        trigger.act()
        event = self.manager.find(trigger.kind, trigger.subject, began)
        if event is None:
            return self.missed(trigger.done, trigger.kind, "nothing")
        wrong = trigger.check(event)
        seen = f"{event['kind']} {trigger.subject.rpartition('/')[2]}"
        if wrong:
            return self.missed(trigger.done, trigger.kind, f"{seen}, but {wrong}")
        return self.seen(trigger.done, trigger.kind, seen, started)

    def seen(self, done: str, expected: str, seen: str, started: float) -> Row:
        """Return the row of what came as it should; `started` is when it was done, by the monotonic clock."""
        spent = round((time.monotonic() - started) * 1000)
        return Row(title_of(self.module), done, expected, seen, spent, Outcome.SEEN)

    def missed(self, done: str, expected: str, seen: str) -> Row:
        """Return the row of what did not come, or not as it should."""
        return Row(title_of(self.module), done, expected, seen, None, Outcome.MISSED)

    def off(self, done: str, expected: str, why: str = "off by policy") -> Row:
        """Return the row of what the policy does not want."""
        return Row(title_of(self.module), done, expected, why, None, Outcome.OFF)

    def not_enforced(self, done: str, expected: str, reason: str, *, prevents: bool) -> Row:
        """Return the row of what this computer cannot do: missed only where the policy wants it."""
        outcome = Outcome.MISSED if prevents else Outcome.NOT_ENFORCED
        return Row(title_of(self.module), done, expected, f"not enforced: {reason}", None, outcome)
