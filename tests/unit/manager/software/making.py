"""Software changes as agents tell of them, and the world in which people decide about them."""

import hashlib
import time

from keibi.contract.events import Actor, Event, EventAction
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.manager.events.columns import Arrived, convert


def sha256_of(name):
    return hashlib.sha256(name.encode()).hexdigest()


def a_change(
    subject="/opt/tool/run", *, kind="software.appeared", ago=0.0, name="", user="deploy", process="/usr/bin/curl", **details
):
    """An event of application control; `name` stands for the content, whose hash is made of it."""
    at = time.time() - ago
    action = EventAction.BLOCKED if kind == "software.blocked" else EventAction.DETECTED
    record = {
        "reason_code": "unrecognised",
        "sha256": sha256_of(name or subject),
        "size": 4096,
        "file_type": "program",
        "state": "unrecognised",
        "brought_by": {"user": user, "process": process},
        **details,
    }
    return Event(
        event_id=new_id(),
        module=ModuleId.APPLICATION_CONTROL,
        kind=kind,
        severity=Severity.MEDIUM,
        detected_at=at,
        subject=subject,
        entity_type="file",
        message=f"{subject} is not recognised",
        action=action,
        actor=Actor(process="/usr/bin/bash", pid=77, user="root", uid=0, source="proc"),
        details={name: value for name, value in record.items() if value is not None},
    )


def store_events(store, tenant_id, computer_id, *events):
    """Put events where the manager's ingest puts them."""
    store.insert(convert([Arrived(tenant_id, computer_id, events)], time.time()))
