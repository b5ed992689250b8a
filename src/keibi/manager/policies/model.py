"""Policies as values: what pages, the API and other features get to see."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from keibi.contract.names import ModuleId, Severity
from keibi.manager.rules.model import RuleSource, Words

T = TypeVar("T")

PATH_SEPARATOR = " > "
MAX_LEVELS = 12
MAX_NAME_CHARACTERS = 100
MAX_DESCRIPTION_CHARACTERS = 2000


@dataclass(frozen=True)
class Valued(Generic[T]):
    """A value with where it comes from.

    `origin_name` is the path of the policy that says it ("Base > Linux"), the computer's name, or "" for the product's default.
    """

    value: T
    origin_policy_id: str | None
    origin_name: str
    is_overridden: bool  # said at this very level
    inherited_value: T  # what it would be if this level said nothing


@dataclass(frozen=True, kw_only=True)
class PolicyNode:
    """One policy in the tree."""

    policy_id: str
    tenant_id: str
    parent_id: str | None
    name: str
    path: str  # "Base > Linux"
    level: int  # 0 for a root
    description: str
    template: str
    version: int
    computer_count: int  # assigned here, not below
    override_count: int
    child_count: int
    changed_at: float
    changed_by: str


@dataclass(frozen=True, kw_only=True)
class EffectiveRule:
    """One rule at one level."""

    rule_id: str
    version: int
    module: ModuleId
    source: RuleSource
    title: Words
    severity: Valued[Severity]
    is_assigned: Valued[bool]
    is_real_time: Valued[bool]
    added_excludes: Valued[list[str]]
    os: list[str] = field(default_factory=list)
    is_missing: bool = False  # named by a policy, but no longer in the catalogue
    fits: bool = True  # this computer's system; always true for a policy


@dataclass(frozen=True, kw_only=True)
class SettingHelp:
    """What a form needs to know of one settings field."""

    name: str
    title: Words
    description: Words
    unit: str
    schema: dict[str, Any]  # JSON schema of the value


@dataclass(frozen=True, kw_only=True)
class EffectiveModule:
    """One module at one level: every value with its origin."""

    module: ModuleId
    title: Words
    description: Words
    states: list[str]
    state: Valued[str]
    settings: dict[str, Valued[Any]]
    help: dict[str, SettingHelp]
    rules: list[EffectiveRule]  # assigned or overridden here or above, by id
    override_count: int


@dataclass(frozen=True, kw_only=True)
class EffectiveSettings:
    """Everything at one level of the tree: of a policy, or of a computer."""

    target_kind: str  # "policy" or "computer"
    target_id: str
    name: str
    path: str
    version: int
    heartbeat_seconds: Valued[int]
    modules: dict[ModuleId, EffectiveModule]


@dataclass(frozen=True)
class DifferenceLine:
    """One value that a change would alter, as a sentence that a person can read."""

    module: ModuleId | None
    kind: str  # "policy", "state", "setting", "rule", "heartbeat"
    name: str  # the field or the rule's id
    before: Any
    after: Any
    sentence: Words


@dataclass(frozen=True)
class Reached:
    """A policy below a change, and the computers there that would get something else than they have."""

    policy_id: str
    path: str
    computer_count: int  # that use this policy
    reached_count: int  # of them, those whose compiled policy would differ


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a change would do, before it is made."""

    target_id: str
    expected_version: int  # give it back when applying
    lines: list[DifferenceLine]
    computer_count: int  # computers that would get a new generation: the true number
    computer_names: list[str]  # the first of them
    policies: list[Reached]
    is_empty: bool  # nothing would change


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What a change did."""

    target_id: str
    version: int
    preview: Preview


@dataclass(frozen=True)
class PolicyVersion:
    """A policy as it was."""

    version: int
    name: str
    path: str
    at: float
    by: str
    summary: str
    is_current: bool


@dataclass(frozen=True)
class ComputerPolicy:
    """What a computer uses: its policy and what it says itself."""

    computer_id: str
    name: str
    policy_id: str | None  # assigned; None: the default for its system
    used_policy_id: str | None
    used_policy_path: str
    override_count: int
    version: int
    generation: int


@dataclass(frozen=True)
class ImportStep:
    """What importing does with one policy of a file."""

    path: str
    action: str  # "create", "change" or "unchanged"
    policy_id: str | None
    lines: list[DifferenceLine]


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What importing a file does, or did."""

    is_applied: bool
    steps: list[ImportStep]
    rules: list[ImportStep]
    computer_count: int
    computer_names: list[str]
