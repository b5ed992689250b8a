"""What is asked of the event store and what it answers: pure values."""

from typing import Any, Literal

import msgspec

from keibi.contract.events import Actor, EventAction
from keibi.contract.names import ModuleId, Severity
from keibi.errors import InputError

MAX_TEXT_CHARACTERS = 500
MAX_COMPUTERS = 10_000
MAX_TAG_CHARACTERS = 50

TopField = Literal["computer_id", "rule_id", "subject", "user", "login_user", "process", "kind", "module", "severity", "action"]
SeriesKey = Literal["module", "severity", "action", "kind"]


class EventQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events are meant. Empty fields do not filter; all others must hold. Times are UTC seconds since the epoch."""

    module: ModuleId | None = None
    kinds: tuple[str, ...] = ()
    severity_at_least: Severity | None = None
    action: EventAction | None = None
    computer_ids: tuple[str, ...] = ()
    text: str = ""  # every word (or "quoted phrase") occurs in subject, message, reason, process, user, container or rule id
    rule_id: str = ""
    subject: str = ""  # exactly
    tag: str = ""
    user: str = ""  # the acting or the signed-in user
    process: str = ""  # path of the executable, or its last part
    since: float | None = None  # detected at or after
    until: float | None = None  # detected before
    order: Literal["newest", "oldest"] = "newest"


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """One event in a list: everything but its details."""

    event_id: str
    tenant_id: str
    computer_id: str
    module: ModuleId
    kind: str
    severity: Severity
    action: EventAction
    detected_at: float
    changed_at: float | None
    received_at: float
    rule_id: str
    rule_version: int
    subject: str
    entity_type: str
    reason: str
    message: str
    actor: Actor
    policy_generation: int
    note: str  # what the manager had to say about it, such as a wrong clock
    tags: tuple[str, ...] = ()


class EventRecord(EventRow, frozen=True, kw_only=True):
    """One event with everything about it."""

    details: dict[str, Any]


class SeriesLine(msgspec.Struct, frozen=True):
    """One line of a chart: the value of the key that it is drawn for, and its counts, one for each bucket."""

    key: str
    counts: tuple[int, ...]


class EventSeries(msgspec.Struct, frozen=True):
    """Events over time. Bucket `i` is from `starts_at[i]` until `starts_at[i] + step_seconds`; the outer two may be cut."""

    step_seconds: int
    starts_at: tuple[float, ...]
    lines: tuple[SeriesLine, ...]
    total: int


class TopRow(msgspec.Struct, frozen=True):
    """One value and how many events have it."""

    value: str
    count: int
    computer_count: int


class Surroundings(msgspec.Struct, frozen=True):
    """The events of the same computer next to one event, both lists from the nearest to the farthest."""

    before: tuple[EventRow, ...]
    after: tuple[EventRow, ...]


class Tail(msgspec.Struct, frozen=True):
    """What arrived since a cursor, oldest first, and the cursor to go on from."""

    items: tuple[EventRow, ...]
    cursor: str


class TagCount(msgspec.Struct, frozen=True):
    """A tag in use."""

    tag: str
    event_count: int


class RetentionRule(msgspec.Struct, frozen=True):
    """For how many days a tenant's events are kept; `module` None is the rule for all modules without one of their own."""

    tenant_id: str
    module: ModuleId | None
    days: int
    is_default: bool = False


class RetentionOutcome(msgspec.Struct, frozen=True):
    """What one run of the retention job removed."""

    removed_count: int
    dropped_days: tuple[str, ...]


def check_query(query: EventQuery) -> EventQuery:
    """Return the query if it can be asked.

    Raises:
        InputError: a text that is too long, too many computers, or a period that ends before it begins.
    """
    if len(query.text) > MAX_TEXT_CHARACTERS:
        raise InputError(
            "text_too_long", f"the text to look for has {len(query.text)} characters, more than {MAX_TEXT_CHARACTERS}"
        )
    if len(query.computer_ids) > MAX_COMPUTERS:
        raise InputError("too_many_computers", f"{len(query.computer_ids)} computers are named, more than {MAX_COMPUTERS}")
    if query.since is not None and query.until is not None and query.since >= query.until:
        raise InputError("period_empty", "the period ends before it begins", where="since, until", hint="exchange the two times")
    for name, at in (("since", query.since), ("until", query.until)):
        if at is not None and not 0 <= at < 4_000_000_000:
            raise InputError("time_invalid", f"{at!r} is not a time in seconds since 1970", where=name)
    return query


def check_tag(tag: str) -> str:
    """Return the tag without space around it.

    Raises:
        InputError: it is empty, too long, or has characters that cannot be seen.
    """
    stripped = tag.strip()
    if not stripped or len(stripped) > MAX_TAG_CHARACTERS or not stripped.replace("\u3000", " ").isprintable():
        raise InputError("tag_invalid", f"{tag[:60]!r} cannot be a tag", hint=f"use 1 to {MAX_TAG_CHARACTERS} visible characters")
    return stripped
