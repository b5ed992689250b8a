"""An event: something that happened on a computer, as it is spooled, sent and kept."""

from enum import StrEnum
from typing import Any

import msgspec

from keibi.contract.names import ModuleId, Severity


class EventAction(StrEnum):
    """What protection did about it."""

    DETECTED = "detected"
    BLOCKED = "blocked"
    RESTORED = "restored"
    QUARANTINED = "quarantined"
    DELETED = "deleted"
    CLEANED = "cleaned"
    PASSED = "passed"  # found and left in place, as the policy says
    STOPPED = "stopped"  # the process was ended


class Actor(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who did it, as far as the kernel could tell; empty where it could not."""

    process: str = ""  # path of the executable
    pid: int = 0
    parent: str = ""
    user: str = ""
    uid: int | None = None
    login_user: str = ""  # who signed in, before sudo or su
    container: str = ""
    source: str = ""  # how it is known: "bpf", "proc", "fanotify"; "" = not known
    parent_pid: int = 0  # while the event is on the agent; not kept by the manager


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event. Times are UTC seconds since the epoch with microseconds.

    `event_id` is made once, where the event is born; the manager keeps the first of two with the same id. `message` is one
    plain English sentence; the console renders its own, in the reader's language, from `kind` and the fields.
    """

    event_id: str
    module: ModuleId
    kind: str  # what happened, in the module's closed set: "file.updated", "process.created", "agent.spool_dropped"
    severity: Severity
    detected_at: float
    changed_at: float | None = None  # when the thing itself changed, where that is known (S56, S57)
    rule_id: str = ""
    rule_version: int = 0
    action: EventAction = EventAction.DETECTED
    subject: str = ""  # the path, port, user or package it is about; escaped, never raw bytes
    entity_type: str = ""
    reason: str = ""
    message: str = ""
    actor: Actor = Actor()
    policy_generation: int = 0
    details: dict[str, Any] = {}  # the module's own record, JSON types only


class EventBatch(msgspec.Struct, frozen=True):
    """POST /agent/v1/events: answered with EventReceipt once every event is durable at the manager."""

    batch_id: str
    events: list[Event]
    dropped_since_last: int = 0  # events the bounded spool had to give up; reported, never silent


class EventReceipt(msgspec.Struct, frozen=True):
    """The manager has these events on disk; the agent may forget them."""

    batch_id: str
    stored: int
