"""When a computer that was just started counts as protected, and how that is said. Pure; `keibi up` asks and waits.

A module that looks through the whole computer (an inventory, a baseline) protects meanwhile by what it knows, and nobody has to
wait for that: what counts is that each module runs by the policy in force, and says so itself.
"""

from collections.abc import Mapping
from typing import Any

STARTING_SECONDS = 60.0
"""After this time, a module whose worker does not come up is told of as it is, and not waited for."""
SETTLE_SECONDS = 2.0
"""So long it may take to finish at once, as on a computer that was looked through before."""


def is_protected(status: Mapping[str, Any], started_at: float, now: float) -> bool:
    """Whether a status is one of this run of the agent, by a policy, with every module at work. Times are UTC seconds."""
    # What an earlier run of the agent said does not count.
    if status.get("started_at", 0.0) < started_at - 2.0 or not status.get("policy_generation"):
        return False
    modules = [one for one in status.get("modules", []) if one.get("health") != "inactive"]
    if not any(is_at_work(one, status["policy_generation"]) for one in modules):
        return False
    seconds = now - started_at
    if all(is_at_work(one, status["policy_generation"]) for one in modules):
        return seconds > SETTLE_SECONDS or not any(one.get("health") == "starting" for one in modules)
    return seconds > STARTING_SECONDS


def is_at_work(module: Mapping[str, Any], generation: int) -> bool:
    """Whether a module's worker runs by this generation of the policy, or has said why it cannot."""
    if module.get("health") in ("starting", "", None):
        # The core tells of a worker that has not reported yet, and knows no generation of it.
        return bool(module.get("policy_generation", 0) >= generation)
    return True


def said_of(module: Mapping[str, Any]) -> str:
    """Return one line on a module."""
    name = str(module.get("module", "")).replace("_", " ")
    health, message = module.get("health"), str(module.get("message", ""))
    if health == "inactive":
        return f"{name}: off by policy"
    if health == "starting" and module.get("policy_generation"):
        return f"{name}: works; {message or 'it looks through the computer'} (this goes on by itself)"
    return f"{name}: {health} {message}".rstrip()
