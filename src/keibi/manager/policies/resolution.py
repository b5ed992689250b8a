"""Walking from the root down: every value, where it comes from, and what it would be without the last level. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from keibi.manager.policies.model import Valued
from keibi.manager.policies.overrides import ModuleOverrides, Overrides, RuleOverride
from keibi.protection.base import Module

DEFAULT_HEARTBEAT_SECONDS = 60

V = TypeVar("V")


@dataclass(frozen=True)
class Layer:
    """One level on the way from the root to a policy or computer."""

    policy_id: str | None  # None for a computer
    path: str
    overrides: Overrides


@dataclass(frozen=True)
class ResolvedRule:
    """A rule that at least one level speaks of; None where only the rule itself says the value."""

    is_assigned: Valued[bool]
    severity: Valued[Any]  # Severity | None
    is_real_time: Valued[Any]  # bool | None
    added_excludes: Valued[list[str]]


@dataclass(frozen=True)
class ResolvedModule:
    """One module at the last level."""

    state: Valued[ModuleState]
    settings: dict[str, Valued[Any]]  # JSON types
    rules: dict[str, ResolvedRule]


@dataclass(frozen=True)
class Resolved:
    """All modules at the last level."""

    path: str
    modules: dict[ModuleId, ResolvedModule]
    heartbeat_seconds: Valued[int]


def resolve(layers: Sequence[Layer], modules: Sequence[Module]) -> Resolved:
    """Return what holds at the last of `layers` (the root's first). Settings must be of known names."""
    return Resolved(
        layers[-1].path if layers else "",
        {module.module: _resolve_module(layers, module) for module in modules},
        _valued(layers, lambda overrides: overrides.heartbeat_seconds, DEFAULT_HEARTBEAT_SECONDS),
    )


def default_settings(module: Module) -> dict[str, Any]:
    """Return the product's default of every setting, as JSON types."""
    values: dict[str, Any] = msgspec.to_builtins(module.settings_type())
    return values


def _resolve_module(layers: Sequence[Layer], module: Module) -> ResolvedModule:
    nothing = ModuleOverrides()

    def of(overrides: Overrides) -> ModuleOverrides:
        return overrides.modules.get(module.module, nothing)

    # A computer that no policy speaks to is not protected behind its owner's back.
    default_state = module.default_state if layers else ModuleState.OFF
    rule_ids = sorted({rule_id for layer in layers for rule_id in of(layer.overrides).rules})
    return ResolvedModule(
        _valued(layers, lambda overrides: of(overrides).state, default_state),
        {
            name: _valued(layers, lambda overrides, name=name: of(overrides).settings.get(name), default)  # type: ignore[misc]
            for name, default in default_settings(module).items()
        },
        {rule_id: _resolve_rule(layers, module.module, rule_id) for rule_id in rule_ids},
    )


def _resolve_rule(layers: Sequence[Layer], module: ModuleId, rule_id: str) -> ResolvedRule:
    nothing, silent = ModuleOverrides(), RuleOverride()

    def of(overrides: Overrides) -> RuleOverride:
        return overrides.modules.get(module, nothing).rules.get(rule_id, silent)

    return ResolvedRule(
        _valued(layers, lambda overrides: of(overrides).is_assigned, False),
        _valued(layers, lambda overrides: of(overrides).severity, None),
        _valued(layers, lambda overrides: of(overrides).is_real_time, None),
        _valued(layers, lambda overrides: of(overrides).added_excludes, []),
    )


def _valued(layers: Sequence[Layer], say: Callable[[Overrides], V | None], default: V) -> Valued[V]:
    value, inherited, origin_id, origin_name = default, default, None, ""
    is_overridden = False
    for position, layer in enumerate(layers):
        is_last = position == len(layers) - 1
        if is_last:
            inherited = value
        told = say(layer.overrides)
        if told is not None:
            value, origin_id, origin_name = told, layer.policy_id, layer.path
            is_overridden = is_last
    return Valued(value, origin_id, origin_name, is_overridden, inherited)
