"""Making what an agent gets of what was resolved: settings it knows, rules that fit its system, overrides put in. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from keibi.contract.names import ModuleId
from keibi.contract.policy import AssignedRule, ModulePolicy
from keibi.errors import InputError
from keibi.manager.policies.pattern_names import PatternContents, references
from keibi.manager.policies.resolution import Resolved, ResolvedModule, ResolvedRule
from keibi.manager.policies.settings_help import known_to
from keibi.manager.rules.model import CatalogRule, body_of
from keibi.manager.rules.os_families import fits
from keibi.protection.base import Module

_encoder = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True)
class LeftOut:
    """An assigned rule that this computer does not get, and why: "system" (not meant for it) or "missing" (no such rule)."""

    rule_id: str
    reason: str


@dataclass(frozen=True)
class Compiled:
    """What a computer gets, without its generation. Equal content has an equal digest.

    The name is no content: renaming a policy must not make every agent below apply it anew.
    """

    policy_name: str
    modules: list[ModulePolicy]
    heartbeat_seconds: int
    digest: str
    left_out: tuple[LeftOut, ...] = ()


def compile_policy(
    resolved: Resolved,
    modules: Sequence[Module],
    catalog: Mapping[str, CatalogRule],
    os_name: str,
    declared: Mapping[str, int] | None = None,
    policy_name: str = "",
    patterns: PatternContents = MappingProxyType({}),
) -> Compiled:
    """Return what a computer of that system gets.

    `declared` is what its agent says of each module's settings version; None or empty when it has not said yet, which is
    taken for the newest. A module that an agent does not declare is not sent to it.
    """
    compiled = []
    left_out: list[LeftOut] = []
    for module in modules:
        agent_version = declared.get(module.module, 0) if declared else module.settings_version
        if agent_version < 1:
            continue
        part = resolved.modules[module.module]
        settings = known_to(module, {name: valued.value for name, valued in part.settings.items()}, agent_version)
        rules = []
        for rule_id, resolved_rule in part.rules.items():
            if not resolved_rule.is_assigned.value:
                continue
            found = catalog.get(rule_id)
            if found is None or found.module is not module.module:
                left_out.append(LeftOut(rule_id, "missing"))
            elif not fits(found.os, os_name):
                left_out.append(LeftOut(rule_id, "system"))
            else:
                body = body_of(overridden(found, resolved_rule))
                rules.append(AssignedRule(rule_id, found.rule.version, body))
        raw = _encoder.encode(settings)
        files = references(settings, patterns)
        compiled.append(ModulePolicy(module=module.module, state=part.state.value, settings=raw, rules=rules, content=files))
    content = [resolved.heartbeat_seconds.value, compiled]
    digest = hashlib.sha256(_encoder.encode(content)).hexdigest()
    return Compiled(policy_name, compiled, resolved.heartbeat_seconds.value, digest, tuple(left_out))


def assigned_rules(part: ResolvedModule, module: ModuleId, catalog: Mapping[str, CatalogRule]) -> list[Any]:
    """Return the structs of all assigned rules with their overrides, for every system: what the engine must compile."""
    return [
        overridden(found, rule)
        for rule_id, rule in part.rules.items()
        if rule.is_assigned.value and (found := catalog.get(rule_id)) is not None and found.module is module
    ]


def overridden(found: CatalogRule, resolved: ResolvedRule) -> Any:
    """Return the rule's struct as this level wants it.

    Raises:
        InputError: an added exclude fits none of the rule's sets.
    """
    rule = found.rule
    changes: dict[str, Any] = {}
    if resolved.severity.value is not None:
        changes["severity"] = resolved.severity.value
    if resolved.is_real_time.value is not None and hasattr(rule, "is_real_time"):
        changes["is_real_time"] = resolved.is_real_time.value
    if resolved.added_excludes.value and hasattr(rule, "entities"):
        changes["entities"] = _with_excludes(rule, resolved.added_excludes.value)
    return msgspec.structs.replace(rule, **changes) if changes else rule


def _with_excludes(rule: Any, added: Sequence[str]) -> list[Any]:
    extra: list[list[str]] = [[] for _ in rule.entities]
    for pattern in added:
        places = [number for number, entities in enumerate(rule.entities) if _relative(pattern, entities.base) is not None]
        if not places:
            bases = ", ".join(entities.base for entities in rule.entities if entities.base)
            raise InputError(
                "exclude_outside",
                f"the exclude {pattern!r} is not below any folder that the rule watches",
                where=f"rule {rule.id}",
                hint=f"the rule watches {bases}" if bases else "",
            )
        for number in places:
            extra[number].append(_relative(pattern, rule.entities[number].base) or "")
    return [
        msgspec.structs.replace(entities, exclude=[*entities.exclude, *more]) if more else entities
        for entities, more in zip(rule.entities, extra, strict=True)
    ]


def _relative(pattern: str, base: str) -> str | None:
    """Return an added exclude as seen from a base; None when it is absolute and not below it."""
    if not base or not pattern.startswith("/"):
        return pattern
    prefix = base.rstrip("/") + "/"
    return pattern[len(prefix) :] if pattern.startswith(prefix) and len(pattern) > len(prefix) else None
