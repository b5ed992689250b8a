"""Pattern sets as rows become values, and how much of them one customer may have."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from keibi.contract.policy import ContentReference
from keibi.errors import InputError
from keibi.manager.patterns.importers.model import Report
from keibi.manager.patterns.model import (
    MAX_CUSTOMER_BYTES,
    MAX_REFUSED_LISTED,
    MAX_SETS,
    PatternSet,
    PatternVersion,
    StoredContent,
)
from keibi.manager.patterns.tables import SHARED, PatternSetRecord, PatternVersionRecord


def versions_of(session: Session, record: PatternSetRecord) -> list[PatternVersion]:
    """Return all versions of a set, the newest first."""
    rows = session.scalars(
        select(PatternVersionRecord).where(PatternVersionRecord.set_id == record.id).order_by(PatternVersionRecord.number.desc())
    )
    return [version_of(row, record) for row in rows]


def version_of(row: PatternVersionRecord, record: PatternSetRecord) -> PatternVersion:
    """Return a stored version as a value."""
    return PatternVersion(
        number=row.number,
        is_current=row.number == record.current_number,
        file_name=row.file_name,
        licence=row.licence,
        contents=contents_in(row.contents),
        report=msgspec.json.decode(row.report, type=Report),
        imported_at=row.imported_at,
        imported_by=row.imported_by,
    )


def shortened(version: PatternVersion) -> PatternVersion:
    """Return a version with the first few refusals of its report, for lists."""
    report = msgspec.structs.replace(version.report, refused=version.report.refused[:MAX_REFUSED_LISTED])
    return replace(version, report=report)


def whole_set(record: PatternSetRecord, versions: Sequence[PatternVersion]) -> PatternSet:
    """Return a set of which all versions are known."""
    return set_of(record, next(version for version in versions if version.is_current), len(versions))


def set_of(record: PatternSetRecord, current: PatternVersion, version_count: int) -> PatternSet:
    """Return a set with its current version."""
    return PatternSet(
        set_id=record.id,
        name=record.name,
        description=record.description,
        is_shared=record.tenant_id == SHARED,
        version=record.version,
        current=current,
        version_count=version_count,
        changed_at=record.changed_at,
        changed_by=record.changed_by,
    )


def with_current() -> Select[PatternSetRecord, PatternVersionRecord]:
    """Return the statement for sets, each with its current version."""
    is_current = (PatternVersionRecord.set_id == PatternSetRecord.id) & (
        PatternVersionRecord.number == PatternSetRecord.current_number
    )
    return select(PatternSetRecord, PatternVersionRecord).join(PatternVersionRecord, is_current)


def check_room(session: Session, tenant_id: str, name: str, more_bytes: int) -> None:
    """Do nothing when a customer may have one version more, of so many bytes, of the set of that name.

    Raises:
        InputError: their sets are too many, or hold too much together.
    """
    names = set(session.scalars(select(PatternSetRecord.name).where(PatternSetRecord.tenant_id == tenant_id)))
    if name not in names and len(names) >= MAX_SETS:
        raise InputError("patterns_full", f"there are {len(names)} pattern sets, more cannot be", hint="delete one first")
    texts = session.scalars(select(PatternVersionRecord.contents).where(PatternVersionRecord.tenant_id == tenant_id))
    held = {content.sha256: content.size for text in texts for content in contents_in(text)}
    if sum(held.values()) + more_bytes > MAX_CUSTOMER_BYTES:
        raise InputError(
            "patterns_full",
            f"the pattern sets hold {sum(held.values())} bytes; with {more_bytes} more they would exceed {MAX_CUSTOMER_BYTES}",
            hint="delete sets that no policy uses",
        )


def current_contents(session: Session, tenant_id: str) -> Iterator[tuple[str, list[ContentReference]]]:
    """Yield the name of each set of a tenant with the contents of its current version."""
    statement = with_current().with_only_columns(PatternSetRecord.name, PatternVersionRecord.contents)
    for name, text in session.execute(statement.where(PatternSetRecord.tenant_id == tenant_id)):
        yield name, [ContentReference(one.sha256, one.size, one.kind.value, one.name) for one in contents_in(text)]


def contents_in(text: str) -> list[StoredContent]:
    """Return what the column `contents` says."""
    return msgspec.json.decode(text, type=list[StoredContent])
