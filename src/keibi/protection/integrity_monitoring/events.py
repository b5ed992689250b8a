"""The record inside an integrity event (`Event.details`), and the closed set of kinds."""

from typing import Any

import msgspec

from keibi.protection.integrity_monitoring.rules import Change, EntityType

KINDS = tuple(f"{entity_type}.{change}" for entity_type in EntityType for change in Change)
"""`Event.kind` of an integrity event: "file.updated", "port.created"."""


class ScanSource(msgspec.Struct, frozen=True):
    """Which look at the computer found the change."""

    kind: str  # "real-time", "manual", "scheduled", "start" (changed while the agent was down), "recovery" (after overflow)
    scan_id: str = ""


class PackageOrigin(msgspec.Struct, frozen=True, omit_defaults=True):
    """The package that explains a change."""

    name: str
    version: str
    previous_version: str = ""
    is_verified: bool = False  # the new content equals the digest in the package database


class IntegrityRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`Event.details` of an integrity event.

    Only attributes that differ stand in `before` and `after`; all of them when an entity was created or deleted.
    """

    change: Change
    source: ScanSource
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    changed_attributes: list[str] = []
    previous_key: str = ""  # of a rename
    difference: str = ""  # unified, masked
    difference_note: str = ""  # why there is none, or that it is cut: "binary", "too large", "content capture is off"
    masked_count: int = 0
    package: PackageOrigin | None = None
    matching_rules: list[str] = []  # all rules that watch this entity; Event.rule_id is the gravest
    baseline_version: int = 0  # the version that the change was compared with
    drift_id: str = ""  # approval mode: what to approve or reject
    can_restore: bool = False
