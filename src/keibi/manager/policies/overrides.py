"""What one level of the tree says itself, and changes of it.

A change is a merge patch (RFC 7396): what is left out stays, null returns to the inherited value, anything else is set.
"""

from typing import Annotated, Any

import msgspec

from keibi.contract.names import ModuleId, Severity
from keibi.contract.policy import ModuleState

MAX_EXCLUDES = 200
MAX_PATTERN_CHARACTERS = 4096

Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATTERN_CHARACTERS)]
Excludes = Annotated[list[Pattern], msgspec.Meta(max_length=MAX_EXCLUDES)]
HeartbeatSeconds = Annotated[int, msgspec.Meta(ge=10, le=3600)]


class RuleOverride(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a level says of one rule; None is inherited.

    `added_excludes` are patterns that the rule lets pass here beside its own: absolute paths below a base of the rule, or
    patterns relative to every base.
    """

    is_assigned: bool | None = None
    severity: Severity | None = None
    is_real_time: bool | None = None
    added_excludes: Excludes | None = None


RULE_FIELDS = tuple(field.name for field in msgspec.structs.fields(RuleOverride))


class ModuleOverrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a level says of one module."""

    state: ModuleState | None = None
    settings: dict[str, Any] = {}
    rules: dict[str, RuleOverride] = {}


class Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that one level says itself."""

    modules: dict[ModuleId, ModuleOverrides] = {}
    heartbeat_seconds: HeartbeatSeconds | None = None

    @property
    def count(self) -> int:
        """How many values are said."""
        total = int(self.heartbeat_seconds is not None)
        for module in self.modules.values():
            total += int(module.state is not None) + len(module.settings)
            total += sum(len(said(rule)) for rule in module.rules.values())
        return total


class RuleChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A change of what is said of a rule."""

    is_assigned: bool | msgspec.UnsetType | None = msgspec.UNSET
    severity: Severity | msgspec.UnsetType | None = msgspec.UNSET
    is_real_time: bool | msgspec.UnsetType | None = msgspec.UNSET
    added_excludes: Excludes | msgspec.UnsetType | None = msgspec.UNSET


class ModuleChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A change of what is said of a module. A rule or setting that is null is inherited again, with all its parts."""

    state: ModuleState | msgspec.UnsetType | None = msgspec.UNSET
    settings: dict[str, Any] = {}
    rules: dict[str, RuleChange | None] = {}


class PolicyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A change of one level. `name` and `description` are for policies, not for computers."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    description: str | msgspec.UnsetType = msgspec.UNSET
    heartbeat_seconds: HeartbeatSeconds | msgspec.UnsetType | None = msgspec.UNSET
    modules: dict[ModuleId, ModuleChange] = {}


def said(rule: RuleOverride) -> dict[str, Any]:
    """Return the parts of a rule's override that are not inherited."""
    return {name: value for name in RULE_FIELDS if (value := getattr(rule, name)) is not None}


def applied(overrides: Overrides, change: PolicyChange) -> Overrides:
    """Return `overrides` with `change` made; what says nothing any more is left out."""
    modules = dict(overrides.modules)
    for module, part in change.modules.items():
        modules[module] = _applied_module(modules.get(module, ModuleOverrides()), part)
    heartbeat = overrides.heartbeat_seconds if change.heartbeat_seconds is msgspec.UNSET else change.heartbeat_seconds
    return Overrides(
        modules={module: part for module, part in sorted(modules.items()) if part != ModuleOverrides()},
        heartbeat_seconds=heartbeat,
    )


def without_rule(overrides: Overrides, rule_id: str) -> Overrides:
    """Return `overrides` that say nothing of that rule."""
    change = PolicyChange(modules={module: ModuleChange(rules={rule_id: None}) for module in overrides.modules})
    return applied(overrides, change)


def _applied_module(overrides: ModuleOverrides, change: ModuleChange) -> ModuleOverrides:
    settings = {**overrides.settings, **change.settings}
    rules = dict(overrides.rules)
    for rule_id, part in change.rules.items():
        if part is None:
            rules.pop(rule_id, None)
            continue
        before = rules.get(rule_id, RuleOverride())
        parts = {name: getattr(part, name) for name in RULE_FIELDS if getattr(part, name) is not msgspec.UNSET}
        rules[rule_id] = msgspec.structs.replace(before, **parts)
    return ModuleOverrides(
        state=overrides.state if change.state is msgspec.UNSET else change.state,
        settings={name: value for name, value in sorted(settings.items()) if value is not None},
        rules={rule_id: rule for rule_id, rule in sorted(rules.items()) if said(rule)},
    )
