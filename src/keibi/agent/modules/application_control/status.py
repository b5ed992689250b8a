"""How the module is, in words that an administrator can act on."""

from collections.abc import Sequence
from dataclasses import dataclass

from keibi.agent.gate.judging import GateState
from keibi.agent.modules.application_control.building import Outcome
from keibi.agent.modules.application_control.examined import Counts
from keibi.agent.modules.application_control.policies import Policy
from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from keibi.contract.status import Health, ModuleStatus, NotEnforced


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What there is to say of the worker. Empty texts: nothing of the kind."""

    generation: int
    policy: Policy | None
    is_inventory_there: bool
    progress: str
    trouble: str
    damage: str
    problems: Sequence[str]
    gates: Sequence[GateState]  # without private ones
    maintenance_minutes: float
    unlocked_minutes: float
    examined: Counts
    unexamined_reason: str


def status_of(condition: Condition, metrics: dict[str, float]) -> ModuleStatus:
    """Return the module's status."""
    policy, module = condition.policy, ModuleId.APPLICATION_CONTROL
    if policy is None or policy.state is ModuleState.OFF:
        health = Health.ERROR if condition.trouble else Health.INACTIVE
        return ModuleStatus(module, health, condition.trouble, condition.generation)
    not_enforced = _not_enforced(condition, policy)
    health, message = _health(condition, len(not_enforced))
    message = "; ".join(part for part in (message, _unexamined(condition)) if part)
    return ModuleStatus(module, health, message, condition.generation, len(policy.known.rules), not_enforced, metrics)


def _not_enforced(condition: Condition, policy: Policy) -> list[NotEnforced]:
    found = []
    module = str(ModuleId.APPLICATION_CONTROL)
    holds = policy.prevents or policy.known.has_block_rules
    if not condition.gates:
        found.append(NotEnforced("real time", "no gate is connected: nothing is seen or held", "gate_away"))
    elif holds and not any(gate.is_enforcing for gate in condition.gates):
        reason = next((gate.reason for gate in condition.gates if gate.reason), "the gate does not hold programs yet")
        found.append(NotEnforced("blocking", reason, "gate_not_enforcing"))
    if any(module in gate.suspended for gate in condition.gates):
        reason = "no verdict came for so long that software is let run and reported until one comes"
        found.append(NotEnforced("blocking", reason, "gate_suspended"))
    if holds and condition.unlocked_minutes:
        minutes = f"for another {condition.unlocked_minutes:.0f} minutes"
        found.append(NotEnforced("blocking", f"unlocked on the computer {minutes}; it is only reported", "unlocked"))
    for gate in condition.gates:
        found += [
            NotEnforced(f"software on {point}", reason, "mount_not_watched")
            for point, _, how, reason in gate.mounts
            if how == "none" and reason
        ][:20]
    return found


def _health(condition: Condition, not_enforced_count: int) -> tuple[Health, str]:
    if condition.trouble:
        return Health.ERROR, condition.trouble
    if not condition.is_inventory_there:
        said = f": {condition.progress}" if condition.progress else ""
        return Health.STARTING, f"building the inventory{said}"
    if condition.unlocked_minutes:
        return Health.WARNING, f"unlocked for another {condition.unlocked_minutes:.0f} minutes: nothing is blocked"
    if condition.damage:
        return Health.WARNING, condition.damage
    if condition.examined.malicious:
        count = condition.examined.malicious
        files = "1 file holds" if count == 1 else f"{count:,} files hold"
        return Health.WARNING, f"{files} malware and {'is' if count == 1 else 'are'} not trusted; see the software changes"
    if not_enforced_count:
        return Health.WARNING, f"{not_enforced_count} parts of the policy do not run here"
    if condition.maintenance_minutes:
        return Health.ACTIVE, f"maintenance for another {condition.maintenance_minutes:.0f} minutes: what is written is trusted"
    if condition.problems:
        count = len(condition.problems)
        return Health.WARNING, f"{count} places could not be read, the first: {condition.problems[0]}"
    return Health.ACTIVE, condition.progress


def _unexamined(condition: Condition) -> str:
    count = condition.examined.unexamined
    if not count:
        return ""
    return f"{count:,} trusted files were not scanned for malware: {condition.unexamined_reason or 'that is done now'}"


def said_of_scan(outcome: Outcome) -> str:
    """Return a sentence, after a space, on how what became trusted was scanned for malware; "" where nothing had to be."""
    said = ""
    if outcome.examined_count:
        said = f" {outcome.examined_count:,} contents that no package owns were scanned for malware"
        said += f", {outcome.threat_count:,} of them hold some and are not trusted." if outcome.threat_count else "."
    if outcome.unexamined:
        said += f" {'The rest was' if said else 'What no package owns was'} not scanned for malware: {outcome.unexamined}."
    return said
