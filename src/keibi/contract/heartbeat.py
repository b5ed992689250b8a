"""One request cycle: what I have -> what I should have (or "unchanged")."""

import msgspec

from keibi.contract.commands import Command, CommandResult
from keibi.contract.enrolment import ComputerFacts
from keibi.contract.policy import EffectivePolicy
from keibi.contract.status import AgentStatus


class HeartbeatRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """POST /agent/v1/heartbeat. `status` and `facts` are left out (None) while their digest is the one the manager has."""

    policy_generation: int  # the newest one received and stored, whether or not it could be applied
    status_digest: str
    facts_digest: str
    settings_versions: dict[str, int] = {}  # module -> version of its settings struct that this agent understands
    status: AgentStatus | None = None
    facts: ComputerFacts | None = None
    results: list[CommandResult] = []
    clock_at: float = 0.0


class HeartbeatResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the agent should have. `policy` is None when unchanged."""

    server_at: float
    policy: EffectivePolicy | None = None
    commands: list[Command] = []
    want_status: bool = False  # the manager does not have what the digest stands for
    want_facts: bool = False
    heartbeat_seconds: int = 60


class WakeResponse(msgspec.Struct, frozen=True):
    """Answer of the long-poll GET /agent/v1/wake?seconds=25: whether a heartbeat now is worth while."""

    is_due: bool
