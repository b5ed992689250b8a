"""Reads events from the store and gives them their shape."""

from collections.abc import Sequence
from typing import Any

import msgspec

from keibi.contract.events import Actor, EventAction
from keibi.contract.names import ModuleId, Severity
from keibi.manager.events.model import EventRecord, EventRow
from keibi.manager.events.query import Condition
from keibi.manager.events.store import QUERY_LIMITS, EventStore

SEVERITIES = {severity.rank: severity for severity in Severity}

_COLUMNS = """lower(hex(event_id)) AS id, tenant_id, computer_id, module, kind, severity, action,
toUnixTimestamp64Micro(detected_at) AS detected_us, toUnixTimestamp64Micro(changed_at) AS changed_us,
toUnixTimestamp64Micro(received_at) AS received_us, rule_id, rule_version, subject, entity_type, reason, message, process, pid,
parent, user, uid, login_user, container, actor_source, policy_generation, note"""


class StoredRow(msgspec.Struct):
    """One row as ClickHouse writes it."""

    id: str
    tenant_id: str
    computer_id: str
    module: ModuleId
    kind: str
    severity: int
    action: EventAction
    detected_us: int
    changed_us: int | None
    received_us: int
    rule_id: str
    rule_version: int
    subject: str
    entity_type: str
    reason: str
    message: str
    process: str
    pid: int
    parent: str
    user: str
    uid: int | None
    login_user: str
    container: str
    actor_source: str
    policy_generation: int
    note: str
    details: str = "{}"


class _StoredTag(msgspec.Struct):
    tenant_id: str
    id: str
    tag: str


def read_rows(store: EventStore, condition: Condition, order: str, limit: int, *, with_details: bool = False) -> list[StoredRow]:
    """Return up to `limit` rows in that ORDER BY; two rows of the same event, not yet folded, come as one."""
    columns = f"{_COLUMNS}, details" if with_details else _COLUMNS
    sql = f"SELECT {columns} FROM {store.database}.events WHERE {condition.sql} ORDER BY {order} LIMIT {int(limit)}"
    rows = store.client.select(sql, condition.parameters, StoredRow, settings=QUERY_LIMITS)
    seen: set[tuple[str, str]] = set()
    return [row for row in rows if (row.tenant_id, row.id) not in seen and not seen.add((row.tenant_id, row.id))]  # type: ignore[func-returns-value]


def read_tags(store: EventStore, rows: Sequence[StoredRow]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the tags of each of these events that has some."""
    if not rows:
        return {}
    sql = f"""SELECT tenant_id, lower(hex(event_id)) AS id, tag FROM {store.database}.event_tags FINAL
WHERE is_set = 1 AND tenant_id IN {{tenants:Array(String)}} AND event_id IN (SELECT unhex(arrayJoin({{ids:Array(String)}})))
ORDER BY tag"""
    parameters = {"tenants": sorted({row.tenant_id for row in rows}), "ids": [row.id for row in rows]}
    tags: dict[tuple[str, str], tuple[str, ...]] = {}
    for found in store.client.select(sql, parameters, _StoredTag, settings=QUERY_LIMITS):
        key = (found.tenant_id, found.id)
        tags[key] = (*tags.get(key, ()), found.tag)
    return tags


def shaped(store: EventStore, rows: Sequence[StoredRow]) -> tuple[EventRow, ...]:
    """Return stored rows as list rows, with their tags."""
    tags = read_tags(store, rows)
    return tuple(EventRow(**_fields(row), tags=tags.get((row.tenant_id, row.id), ())) for row in rows)


def recorded(store: EventStore, row: StoredRow) -> EventRecord:
    """Return a stored row, read with its details, as the whole event."""
    tags = read_tags(store, [row])
    details = msgspec.json.decode(row.details or "{}", type=dict[str, Any])
    return EventRecord(**_fields(row), tags=tags.get((row.tenant_id, row.id), ()), details=details)


def _fields(row: StoredRow) -> dict[str, Any]:
    actor = Actor(
        process=row.process,
        pid=row.pid,
        parent=row.parent,
        user=row.user,
        uid=row.uid,
        login_user=row.login_user,
        container=row.container,
        source=row.actor_source,
    )
    return {
        "event_id": row.id,
        "tenant_id": row.tenant_id,
        "computer_id": row.computer_id,
        "module": row.module,
        "kind": row.kind,
        "severity": SEVERITIES[row.severity],
        "action": row.action,
        "detected_at": row.detected_us / 1e6,
        "changed_at": None if row.changed_us is None else row.changed_us / 1e6,
        "received_at": row.received_us / 1e6,
        "rule_id": row.rule_id,
        "rule_version": row.rule_version,
        "subject": row.subject,
        "entity_type": row.entity_type,
        "reason": row.reason,
        "message": row.message,
        "actor": actor,
        "policy_generation": row.policy_generation,
        "note": row.note,
    }
