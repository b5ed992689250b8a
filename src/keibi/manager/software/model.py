"""Software changes, decisions and rulesets as values."""

from enum import StrEnum
from typing import Literal

import msgspec

from keibi.errors import InputError
from keibi.manager.policies.model import Preview
from keibi.manager.rules.model import Words
from keibi.protection.application_control.rules import Entry, RuleAction

MAX_TEXT_CHARACTERS = 500
MAX_DECIDED_AT_ONCE = 10_000
MAX_NOTE_CHARACTERS = 500

GroupBy = Literal["hash", "computer", "bringer", "place"]


class Standing(StrEnum):
    """Where a group stands: nobody decided, somebody did, or the agents trust it by themselves."""

    OPEN = "open"
    ALLOWED = "allowed"
    BLOCKED = "blocked"
    RECOGNISED = "recognised"


class ChangeFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which changes are meant. Empty fields do not filter; all others must hold. Times are UTC seconds since the epoch."""

    standing: Standing | None = None
    kinds: tuple[str, ...] = ()
    text: str = ""  # every word occurs in path, package, process, user or hash
    process: str = ""  # the program that brought it: its path, or its last part
    user: str = ""  # who brought it, or ran it
    path: str = ""  # exactly, or below it when it ends in "/"
    file: str = ""  # the last part of the path
    sha256: str = ""  # or its beginning
    package: str = ""
    computer_ids: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # only these groups
    since: float | None = None
    until: float | None = None


class PackageName(msgspec.Struct, frozen=True):
    """A package as the computers know it."""

    name: str
    version: str = ""
    origin: str = ""


class Bringer(msgspec.Struct, frozen=True):
    """Who brought software to a computer."""

    user: str = ""
    process: str = ""
    package: str = ""


class ChangeGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Changes that belong together. `key` names the group within its tenant and its way of grouping.

    Lists hold the first few values; the counts beside them are true.
    """

    tenant_id: str
    key: str
    standing: Standing
    sha256: str  # "" where the group has several, or none
    size: int
    file_type: str
    first_at: float
    last_at: float
    event_count: int
    execution_count: int  # attempts to run it, blocked or not
    blocked_count: int  # of them, those that did not run
    computer_ids: tuple[str, ...]
    computer_count: int
    paths: tuple[str, ...]
    path_count: int
    hash_count: int
    package: PackageName | None
    bringers: tuple[Bringer, ...]
    kinds: tuple[str, ...]
    reason_codes: tuple[str, ...]
    threats: tuple[str, ...]  # that anti-malware found in it
    last_event_id: str


class DecisionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants: entries of one action, in one ruleset, used by some policies.

    Without `rule_id` it is the customer's ruleset for that action, made when it is missing. Without `policy_ids` a block goes to
    the roots of the tree, so that it holds everywhere, and an allowance to the policies of the computers that have the software.
    """

    action: RuleAction
    entries: tuple[Entry, ...]
    rule_id: str = ""
    policy_ids: tuple[str, ...] = ()
    note: str = ""


class DecisionPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision would do, before it is made."""

    tenant_id: str
    rule_ids: tuple[str, ...]  # the rulesets that would change
    title: Words
    action: RuleAction
    new_entries: tuple[Entry, ...]  # without those that the ruleset has already
    known_count: int
    policies: tuple[tuple[str, str], ...]  # id and path of those that shall use it
    change: Preview
    off_count: int  # computers that are reached, and whose policy has application control switched off
    detect_count: int
    prevent_count: int


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that was made."""

    decision_id: str
    tenant_id: str
    action: RuleAction
    entries: tuple[Entry, ...]
    rule_ids: tuple[str, ...]
    policies: tuple[str, ...]  # paths, as they were
    note: str
    computer_count: int  # reached at that time
    decided_at: float
    decided_by: str
    undone_at: float | None
    undone_by: str
    version: int


class RulesetRow(msgspec.Struct, frozen=True, kw_only=True):
    """A ruleset in a list, with where it applies."""

    rule_id: str
    tenant_id: str | None
    title: Words
    description: Words
    action: RuleAction
    is_own: bool
    version: int
    entry_count: int
    policies: tuple[tuple[str, str], ...]  # id and path of those that assign it themselves
    computer_count: int
    changed_at: float
    changed_by: str


class EntryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a ruleset; `number` counts from 0 within the ruleset's present version."""

    number: int
    kind: str
    entry: Entry


class MaintenancePreview(msgspec.Struct, frozen=True, kw_only=True):
    """Which computers a maintenance would reach."""

    minutes: int
    computer_count: int
    computer_names: tuple[str, ...]  # the first of them
    offline_names: tuple[str, ...]
    without_names: tuple[str, ...]  # application control is off or not there: nothing would happen


def check_filter(filters: ChangeFilter) -> ChangeFilter:
    """Return the filter if it can be asked.

    Raises:
        InputError: a text that is too long, or a period that ends before it begins.
    """
    for name in ("text", "process", "user", "path", "file", "sha256", "package"):
        if len(getattr(filters, name)) > MAX_TEXT_CHARACTERS:
            raise InputError("text_too_long", f"{name} has more than {MAX_TEXT_CHARACTERS} characters", where=name)
    if filters.since is not None and filters.until is not None and filters.since >= filters.until:
        raise InputError("period_empty", "the period ends before it begins", where="since, until", hint="exchange the two times")
    return filters
