"""How the module is, in words that an administrator can act on."""

from collections.abc import Sequence
from dataclasses import dataclass

from keibi.agent.modules.integrity_monitoring.examiner import Policy
from keibi.contract.names import ModuleId
from keibi.contract.status import Health, ModuleStatus, NotEnforced


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What there is to say of the worker. Empty texts: nothing of the kind."""

    generation: int
    policy: Policy | None  # None: there is none, or the module is off
    is_baseline_there: bool
    progress: str
    trouble: str  # why nothing can be written
    damage: str  # what was wrong with the former baseline
    scan_problems: Sequence[str]
    algorithm: str  # that the baseline uses


def status_of(condition: Condition, metrics: dict[str, float]) -> ModuleStatus:
    """Return the module's status."""
    policy, generation = condition.policy, condition.generation
    if policy is None:
        health = Health.ERROR if condition.trouble else Health.INACTIVE
        return ModuleStatus(ModuleId.INTEGRITY_MONITORING, health, condition.trouble, generation)
    not_enforced = _not_enforced(policy, condition.algorithm)
    health, message = _health(condition, len(not_enforced))
    rule_count = len(policy.watching.compiled.rules)
    return ModuleStatus(ModuleId.INTEGRITY_MONITORING, health, message, generation, rule_count, not_enforced, metrics)


def _not_enforced(policy: Policy, algorithm: str) -> list[NotEnforced]:
    found = [
        NotEnforced(f"{problem.rule_id} {problem.place}", problem.message, "set_left_out")
        for problem in policy.watching.compiled.problems
    ]
    wanted = str(policy.settings.hash_algorithm)
    if wanted != algorithm:
        found.append(NotEnforced("hash algorithm", f"the baseline uses {algorithm}; {wanted} needs a rebuild", "rebuild_needed"))
    return found


def _health(condition: Condition, not_enforced_count: int) -> tuple[Health, str]:
    if condition.trouble:
        return Health.ERROR, condition.trouble
    if not condition.is_baseline_there:
        said = f": {condition.progress}" if condition.progress else ""
        return Health.STARTING, f"building the baseline{said}"
    if condition.damage:
        return Health.WARNING, condition.damage
    if condition.scan_problems:
        count = len(condition.scan_problems)
        return Health.WARNING, f"{count} places could not be read, the first: {condition.scan_problems[0]}"
    if not_enforced_count:
        return Health.WARNING, f"{not_enforced_count} parts of the policy do not run here"
    return Health.ACTIVE, ""
