"""How an agent is: generations in force, module states, what this kernel can do, and what is not enforced and why."""

from enum import StrEnum

import msgspec

from keibi.contract.names import ModuleId


class Health(StrEnum):
    """How a module is, in the administrator's words."""

    INACTIVE = "inactive"
    STARTING = "starting"
    ACTIVE = "active"
    WARNING = "warning"
    ERROR = "error"
    NOT_SUPPORTED = "not_supported"


class Capability(msgspec.Struct, frozen=True):
    """One thing the kernel was asked to do at start, by trying it."""

    name: str  # "fanotify_filesystem_marks", "bpf_exec_map"
    is_available: bool
    reason: str = ""  # why not, with the kernel's answer


class NotEnforced(msgspec.Struct, frozen=True):
    """Something the policy asks for which does not happen on this computer, with the reason that a person can act on."""

    what: str
    reason: str
    code: str = ""


class ModuleStatus(msgspec.Struct, frozen=True):
    """One module's state."""

    module: ModuleId
    health: Health
    message: str = ""
    policy_generation: int = 0  # in force; lower than the agent's while a new one is being applied
    rule_count: int = 0
    not_enforced: list[NotEnforced] = []
    metrics: dict[str, float] = {}  # names carry their unit: "entities_count", "last_scan_seconds", "last_scan_at"


class SpoolStatus(msgspec.Struct, frozen=True):
    """How much waits to be sent."""

    waiting_count: int = 0
    waiting_bytes: int = 0
    dropped_count: int = 0  # since the agent was enrolled
    oldest_at: float | None = None


class AgentStatus(msgspec.Struct, frozen=True):
    """The whole agent."""

    agent_version: str
    started_at: float
    boot_id: str
    policy_generation: int  # of the policy in force
    policy_error: str = ""  # why a newer one was refused; the old one stays in force
    is_safe_mode: bool = False
    safe_mode_reason: str = ""
    clock_at: float = 0.0
    capabilities: list[Capability] = []
    modules: list[ModuleStatus] = []
    spool: SpoolStatus = SpoolStatus()
    memory_bytes: int = 0
    cpu_seconds: float = 0.0
