"""Audit records as values, and the arithmetic of their chain."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

FIRST_HASH = bytes(32)
_encoder = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True)
class Entry:
    """One record as it is shown."""

    record_id: str
    tenant_id: str
    number: int
    at: float
    actor: str
    action: str
    target_type: str
    target_id: str
    summary: str
    detail: dict[str, Any]
    hash: str


@dataclass(frozen=True)
class Verification:
    """What checking a tenant's chain found. `first_bad_number` is the first record that is not as it was written."""

    tenant_id: str
    is_intact: bool
    record_count: int
    first_bad_number: int | None = None
    reason: str = ""
    head_hash: str = ""


@dataclass(frozen=True, kw_only=True)
class AuditFilter:
    """Which records to list; empty values do not narrow. `action` may end in `*`."""

    actor: str = ""
    action: str = ""
    target_type: str = ""
    target_id: str = ""
    text: str = ""
    since: float | None = None
    until: float | None = None


def canonical_detail(detail: Mapping[str, Any]) -> str:
    """Return the JSON of a detail with sorted keys: the same detail always gives the same bytes."""
    return _encoder.encode(dict(detail)).decode()


def chain_hash(previous: bytes, fields: tuple[str | int | float, ...]) -> bytes:
    """Return SHA-256 over the hash before and the record's fields as canonical JSON."""
    return hashlib.sha256(previous + _encoder.encode(fields)).digest()
