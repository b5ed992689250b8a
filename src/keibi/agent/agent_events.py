"""Events about the agent itself: protection that is off, events that were lost. They stand under the module they concern."""

import time
from typing import Any

from keibi.contract.events import Event
from keibi.contract.names import ModuleId, Severity, new_id

MESSAGES = {
    "agent.spool_corrupt": "The agent's spool was corrupt and was replaced; events that waited in it may be lost.",
    "agent.safe_mode": "A part of the agent kept crashing and is off until somebody lets it run again.",
    "agent.safe_mode_left": "A part of the agent that was off after crashes runs again.",
    "agent.policy_refused": "A new policy was refused on this computer; the former one stays in force.",
    "agent.event_refused": "The manager does not accept an event of this agent; it is kept on the computer.",
}


def agent_event(
    kind: str, module: ModuleId, severity: Severity, *, subject: str, reason: str, details: dict[str, Any] | None = None
) -> Event:
    """Return an event of the agent about itself, made now. `kind` is one of `MESSAGES`."""
    return Event(
        event_id=new_id(),
        module=module,
        kind=kind,
        severity=severity,
        detected_at=time.time(),
        subject=subject,
        reason=reason,
        message=MESSAGES[kind],
        details=details or {},
    )
