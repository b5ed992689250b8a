"""Rules as values: what lists, pages and other features get to see."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import msgspec
from sqlalchemy.orm import Session

from keibi.contract.names import ModuleId, Severity
from keibi.errors import InputError
from keibi.protection.base import Text


@dataclass(frozen=True)
class Words:
    """A text in both languages, as the API gives it."""

    en: str
    ja: str = ""

    @classmethod
    def of(cls, text: Text) -> "Words":
        """Return the same text."""
        return cls(text.en, text.ja)

    def in_language(self, language: str) -> str:
        """Return the Japanese text for "ja" where there is one, else the English one."""
        return self.ja if language == "ja" and self.ja else self.en


@dataclass(frozen=True)
class Problem:
    """What is wrong with a text that somebody wrote, and where. Lines and columns are counted from 1."""

    message: str
    line: int = 1
    column: int = 1
    path: str = ""  # "entities[0].base"
    hint: str = ""
    code: str = "rule_invalid"


class RuleInvalidError(InputError):
    """A rule's text has problems; all of them are in `problems`."""

    def __init__(self, problems: list[Problem], where: str = "") -> None:
        first = problems[0]
        place = f"line {first.line}, column {first.column}" + (f" of {where}" if where else "")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__("rule_invalid", first.message + more, where=place, hint=first.hint)
        self.problems = problems


class RuleSource(StrEnum):
    """Who wrote a rule."""

    SHIPPED = "shipped"
    OWN = "own"


class AnyRule(Protocol):
    """What the rule structs of all modules have."""

    id: str
    version: int
    title: Text
    description: Text
    severity: Severity
    techniques: list[str]
    references: list[str]


@dataclass(frozen=True, kw_only=True)
class CatalogRule:
    """One rule of the catalogue with its struct."""

    rule: Any  # the struct of the module's rule type; see AnyRule
    module: ModuleId
    source: RuleSource
    text: str
    tenant_id: str | None = None  # of an own rule
    changed_at: float = 0.0
    changed_by: str = ""

    @property
    def rule_id(self) -> str:
        """The id that policies and events name it by."""
        return str(self.rule.id)

    @property
    def os(self) -> list[str]:
        """Which systems it is meant for; empty means any."""
        return list(self.rule.applies_to.os)

    @property
    def entity_types(self) -> list[str]:
        """What it watches, where its module knows entities."""
        return sorted({str(entities.type) for entities in getattr(self.rule, "entities", ())})


@dataclass(frozen=True)
class RuleUse:
    """A place where a rule is used or overridden."""

    kind: str  # "policy" or "computer"
    target_id: str
    name: str  # "Base > Linux", or the computer's name
    is_assigned: bool


class RuleUsers(Protocol):
    """Who uses rules: asked before one is deleted, told when one has changed. The policies are it."""

    def uses_of(self, session: Session, tenant_ids: frozenset[str], rule_id: str) -> list[RuleUse]:
        """Return where a rule is named, in the tenants that are given."""
        ...

    def assigned_ids(self, session: Session, tenant_ids: frozenset[str], policy_id: str | None) -> frozenset[str]:
        """Return the rules that a policy (None: any policy) of these tenants assigns."""
        ...

    def rule_changes(self, session: Session, tenant_id: str, rule: CatalogRule | None, rule_id: str) -> None:
        """A rule is being changed (None: deleted), in this transaction; refuses with an InputError what would not compile."""
        ...

    def forget_rule(self, session: Session, who: Any, tenant_id: str, rule_id: str) -> None:
        """Take a rule out of every policy and computer of a tenant."""
        ...


@dataclass(frozen=True, kw_only=True)
class RuleFilter:
    """Which rules to list; empty values do not narrow. `is_assigned` asks about `policy_id`, or about any policy."""

    module: ModuleId | None = None
    source: RuleSource | None = None
    severity_at_least: Severity | None = None
    text: str = ""  # every word occurs in id, title, description or techniques, in either language
    os: str = ""  # rules that fit this ID of os-release
    technique: str = ""
    entity_type: str = ""
    is_assigned: bool | None = None
    policy_id: str = ""


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    """One rule in a list."""

    rule_id: str
    module: ModuleId
    source: RuleSource
    tenant_id: str | None
    version: int
    title: Words
    description: Words
    severity: Severity
    entity_types: list[str]
    is_real_time: bool
    os: list[str]
    techniques: list[str]
    is_assigned: bool
    changed_at: float = 0.0
    changed_by: str = ""


@dataclass(frozen=True, kw_only=True)
class RuleDetail(RuleRow):
    """One rule with its text and where it is used."""

    text: str
    references: list[str]
    software: list[str]
    uses: list[RuleUse] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)  # the rule as JSON


@dataclass(frozen=True)
class RuleVersion:
    """One version that a rule has or had. `what` is "shipped", "created", "changed" or "deleted"."""

    rule_id: str
    version: int
    at: float
    by: str
    what: str
    text: str


@dataclass(frozen=True)
class RuleComparison:
    """Two versions of a rule side by side. `difference` is unified, empty when they are equal."""

    rule_id: str
    before: int
    after: int
    difference: str


@dataclass(frozen=True)
class Validation:
    """What checking a text found; `rule` is the checked rule as JSON when there is no problem."""

    is_valid: bool
    problems: list[Problem]
    rule: dict[str, Any] | None = None


@dataclass(frozen=True)
class Trial:
    """Whether a rule reports a change, and why."""

    matches: bool
    reason: Words
    severity: Severity | None = None
    set_number: int | None = None  # which of the rule's entity sets watches it, from 1


def body_of(rule: Any) -> bytes:
    """Return the JSON that agents get: the rule without its samples."""
    return msgspec.json.encode(msgspec.structs.replace(rule, samples=None) if hasattr(rule, "samples") else rule)


def as_json(rule: Any) -> dict[str, Any]:
    """Return a rule as JSON types."""
    built: Mapping[str, Any] = msgspec.to_builtins(rule)
    return dict(built)
