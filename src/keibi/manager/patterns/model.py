"""Pattern sets as values: what pages, the API and other features get to see."""

from dataclasses import dataclass

import msgspec

from keibi.manager.patterns.importers.model import ContentKind, Report

MAX_VERSIONS = 10
"""So many versions of a set are kept; older ones go, except the current."""
MAX_UPLOAD_BYTES = 1024**3
MAX_SETS = 200
MAX_CUSTOMER_BYTES = 8 * 1024**3
"""What the sets of one customer may hold together: the disk is everybody's."""
MAX_REFUSED_LISTED = 5
"""So many refusals of each set stand in a list of sets; one set by itself has all that were kept."""


class StoredContent(msgspec.Struct, frozen=True):
    """A content in the store."""

    kind: ContentKind
    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class PatternUse:
    """A policy or computer that names a set."""

    kind: str  # "policy" or "computer"
    target_id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class PatternVersion:
    """One version of a set."""

    number: int
    is_current: bool
    file_name: str
    licence: str
    contents: list[StoredContent]
    report: Report
    imported_at: float
    imported_by: str


@dataclass(frozen=True, kw_only=True)
class PatternSet:
    """One set with its current version."""

    set_id: str
    name: str
    description: str
    is_shared: bool  # the provider's, for all customers
    version: int  # of the row: counts every change, given back to detect that somebody else changed it
    current: PatternVersion
    version_count: int
    changed_at: float
    changed_by: str


@dataclass(frozen=True, kw_only=True)
class PatternSetDetail(PatternSet):
    """One set with all its versions, newest first, and where it is used."""

    versions: list[PatternVersion]
    uses: list[PatternUse]


@dataclass(frozen=True, kw_only=True)
class ImportOutcome:
    """What an import did, or would do when it is a trial."""

    is_kept: bool
    report: Report
    contents: list[StoredContent]
    pattern_set: PatternSet | None = None
