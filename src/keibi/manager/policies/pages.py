"""Making the values of `model` from trees and resolved levels. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from keibi.contract.names import ModuleId, Severity
from keibi.manager.policies.forest import Forest
from keibi.manager.policies.model import EffectiveModule, EffectiveRule, PolicyNode, Valued
from keibi.manager.policies.overrides import said
from keibi.manager.policies.resolution import Resolved, ResolvedModule, ResolvedRule
from keibi.manager.policies.settings_help import help_of
from keibi.manager.policies.tables import PolicyRecord
from keibi.manager.rules.model import CatalogRule, RuleSource, Words
from keibi.manager.rules.os_families import fits
from keibi.protection.base import Module


def nodes_of(forest: Forest, records: Mapping[str, PolicyRecord], assigned: Mapping[str, int]) -> list[PolicyNode]:
    """Return the tree as rows, parents before children."""
    return [
        PolicyNode(
            policy_id=branch.policy_id,
            tenant_id=forest.tenant_id,
            parent_id=branch.parent_id,
            name=branch.name,
            path=forest.path(branch.policy_id),
            level=level,
            description=branch.description,
            template=branch.template,
            version=branch.version,
            computer_count=assigned.get(branch.policy_id, 0),
            override_count=branch.overrides.count,
            child_count=len(forest.children(branch.policy_id)),
            changed_at=records[branch.policy_id].changed_at,
            changed_by=records[branch.policy_id].changed_by,
        )
        for branch, level in forest.walk()
    ]


def modules_of(
    resolved: Resolved, modules: Sequence[Module], catalog: Mapping[str, CatalogRule], os_name: str = ""
) -> dict[ModuleId, EffectiveModule]:
    """Return every module of a level with origins and help."""
    return {module.module: _module_of(resolved.modules[module.module], module, catalog, os_name) for module in modules}


def _module_of(part: ResolvedModule, module: Module, catalog: Mapping[str, CatalogRule], os_name: str) -> EffectiveModule:
    overridden = [part.state, *part.settings.values()]
    for rule in part.rules.values():
        overridden += [rule.is_assigned, rule.severity, rule.is_real_time, rule.added_excludes]
    return EffectiveModule(
        module=module.module,
        title=Words.of(module.title),
        description=Words.of(module.description),
        states=[str(state.value) for state in module.states],
        state=_with(part.state, str(part.state.value), str(part.state.inherited_value)),
        settings=part.settings,
        help=help_of(module),
        rules=[_rule_of(rule_id, rule, catalog.get(rule_id), module, os_name) for rule_id, rule in part.rules.items()],
        override_count=sum(valued.is_overridden for valued in overridden),
    )


def _rule_of(rule_id: str, resolved: ResolvedRule, found: CatalogRule | None, module: Module, os_name: str) -> EffectiveRule:
    severity = found.rule.severity if found else Severity.LOW
    is_real_time = bool(getattr(found.rule, "is_real_time", False)) if found else False
    return EffectiveRule(
        rule_id=rule_id,
        version=found.rule.version if found else 0,
        module=module.module,
        source=found.source if found else RuleSource.OWN,
        title=Words.of(found.rule.title) if found else Words(rule_id),
        severity=_or_default(resolved.severity, severity),
        is_assigned=resolved.is_assigned,
        is_real_time=_or_default(resolved.is_real_time, is_real_time),
        added_excludes=resolved.added_excludes,
        os=found.os if found else [],
        is_missing=found is None,
        fits=found is None or fits(found.os, os_name),
    )


def _with(valued: Valued[Any], value: Any, inherited: Any) -> Valued[Any]:
    return Valued(value, valued.origin_policy_id, valued.origin_name, valued.is_overridden, inherited)


def _or_default(valued: Valued[Any], default: Any) -> Valued[Any]:
    """Put the rule's own value where no level says one."""
    return _with(
        valued,
        default if valued.value is None else valued.value,
        default if valued.inherited_value is None else valued.inherited_value,
    )


def rules_named(forest: Forest, rule_id: str) -> dict[str, bool]:
    """Return the policies that speak of a rule, and whether each says that it is assigned."""
    found = {}
    for branch in forest.branches.values():
        for part in branch.overrides.modules.values():
            if rule_id in part.rules and said(part.rules[rule_id]):
                found[branch.policy_id] = part.rules[rule_id].is_assigned is True
    return found
