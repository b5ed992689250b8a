"""What an agent's status says about protection, as sentences."""

from keibi.contract.names import ModuleId
from keibi.contract.status import AgentStatus, Health
from keibi.manager.computers.model import Problem
from keibi.protection.catalog import MODULES

DRIFT_METRIC = "drifts_waiting_count"
_MAX_NOT_ENFORCED = 20

_HEALTH_PROBLEMS = {
    Health.ERROR: ("module_error", "has failed"),
    Health.WARNING: ("module_warning", "works, but not fully"),
    Health.NOT_SUPPORTED: ("module_not_supported", "cannot run on this computer"),
}


def problems_of(status: AgentStatus) -> list[Problem]:
    """Return why protection is not what the policy asks for, gravest first; what depends on the time is added by readers."""
    found = []
    if status.is_safe_mode:
        found.append(Problem("safe_mode", f"The agent runs in safe mode: {status.safe_mode_reason or 'it crashed repeatedly'}"))
    if status.policy_error:
        found.append(Problem("policy_refused", f"The newest policy was refused and the old one stays: {status.policy_error}"))
    present = {module.module: module for module in status.modules}
    for built in MODULES:
        module = present.get(built.module)
        title = built.title.en
        if module is None:
            found.append(Problem("module_missing", f"The agent does not have {title}.", str(built.module)))
            continue
        if module.health is Health.INACTIVE:
            found.append(Problem("module_off", f"{title} is off by policy.", str(built.module)))
        if module.health in _HEALTH_PROBLEMS:
            code, words = _HEALTH_PROBLEMS[module.health]
            found.append(Problem(code, f"{title} {words}: {module.message or 'no reason given'}", str(built.module)))
        found += [
            Problem("not_enforced", f"{entry.what}: {entry.reason}", str(module.module))
            for entry in module.not_enforced[:_MAX_NOT_ENFORCED]
        ]
    if status.spool.dropped_count:
        found.append(Problem("events_dropped", f"{status.spool.dropped_count} events were lost because the spool was full."))
    return found


def drifts_of(status: AgentStatus) -> int:
    """Return how many differences wait for a person to approve or reject them."""
    module = next((module for module in status.modules if module.module is ModuleId.INTEGRITY_MONITORING), None)
    return int(module.metrics.get(DRIFT_METRIC, 0)) if module else 0
