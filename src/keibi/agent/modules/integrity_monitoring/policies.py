"""From what the manager sends to what is in force: settings checked, rules that fit this computer compiled."""

import fnmatch
from collections.abc import Iterable

import msgspec

from keibi.agent.due_times import next_time
from keibi.agent.linux import software
from keibi.contract.policy import ModulePolicy
from keibi.errors import KeibiError
from keibi.protection.integrity_monitoring.engine import CompiledRules, compile_rules
from keibi.protection.integrity_monitoring.rules import Rule
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings


def read_policy(policy: ModulePolicy) -> tuple[IntegrityMonitoringSettings, list[Rule]]:
    """Return the settings and those rules that fit this computer.

    Raises:
        InputError: `schedule_invalid`.
        msgspec.ValidationError: settings or a rule have another shape, or a field that this agent does not know.
    """
    settings = msgspec.json.decode(policy.settings, type=IntegrityMonitoringSettings)
    if settings.scan_schedule.strip():
        next_time(settings.scan_schedule)
    return settings, _that_fit(_rules(policy))


def fitting_ids(policy: ModulePolicy) -> set[str]:
    """Return the ids of the rules that fit what is installed on this computer now."""
    return {rule.id for rule in _that_fit(_rules(policy))}


def _rules(policy: ModulePolicy) -> list[Rule]:
    return [msgspec.json.decode(rule.body, type=Rule) for rule in policy.rules]


def _that_fit(rules: list[Rule]) -> list[Rule]:
    """Leave out rules for software that is not installed here; the manager knows the system, not what is on it."""
    if not any(rule.applies_to.software for rule in rules):
        return rules
    installed = list(software.collect())
    return [
        rule
        for rule in rules
        if not rule.applies_to.software or any(fnmatch.filter(installed, pattern) for pattern in rule.applies_to.software)
    ]


def only_rules(policy: ModulePolicy, ids: Iterable[str]) -> ModulePolicy:
    """Return the policy with only these rules, as it is kept to say what the baseline covers."""
    kept = frozenset(ids)
    return msgspec.structs.replace(policy, rules=[rule for rule in policy.rules if rule.rule_id in kept])


def covered_rules(stored: bytes | None) -> CompiledRules | None:
    """Return the rules of a kept policy; None where there is none, or none that this version can read."""
    if stored is None:
        return None
    try:
        policy = msgspec.json.decode(stored, type=ModulePolicy)
        settings = msgspec.json.decode(policy.settings, type=IntegrityMonitoringSettings)
        return compile_rules(_rules(policy), settings)
    except (msgspec.DecodeError, KeibiError):
        return None  # what it watched is not known, so nothing is taken silently
