"""Computers as values: what lists, pages and the API get to see."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from keibi.contract.enrolment import ComputerFacts
from keibi.contract.status import AgentStatus

ONLINE_INTERVALS = 3
"""A computer is online if its last heartbeat is at most so many intervals old."""
POLICY_PENDING_SECONDS = 150.0
"""How long a new policy may take until the computer counts as not having it."""
IMPORTANCES = ("low", "normal", "high")


class ComputerState(StrEnum):
    """How a computer is, as far as the manager can tell."""

    ONLINE = "online"
    OFFLINE = "offline"
    NEVER = "never"  # enrolled, and not one heartbeat since
    DISABLED = "disabled"


class Problem(msgspec.Struct, frozen=True):
    """Why a computer is not protected as it should be. `code` is from a closed set that the console has words for:

    agent_never, agent_offline, safe_mode, policy_refused, policy_pending, module_off, module_missing, module_error,
    module_warning, module_not_supported, not_enforced, events_dropped, identity_alarm.
    """

    code: str
    message: str  # one English sentence
    module: str = ""


@dataclass(frozen=True, kw_only=True)
class ComputerSummary:
    """One computer as a row of a list."""

    computer_id: str
    tenant_id: str
    display_name: str
    hostname: str
    state: ComputerState
    group_id: str | None
    policy_id: str | None
    importance: str
    tags: tuple[str, ...]
    os_pretty_name: str
    addresses: tuple[str, ...]
    agent_version: str
    enrolled_at: float
    last_heartbeat_at: float | None
    generation_wanted: int
    generation_in_force: int
    modules: dict[str, str]  # module -> health
    problems: tuple[Problem, ...]
    drift_count: int
    version: int


@dataclass(frozen=True, kw_only=True)
class ComputerDetail(ComputerSummary):
    """One computer with everything that is known of it."""

    note: str
    machine_id: str
    heartbeat_seconds: int
    generation_received: int
    status_at: float | None
    status: AgentStatus | None
    facts: ComputerFacts | None


@dataclass(frozen=True, kw_only=True)
class ComputerFilter:
    """Which computers to list; empty values do not narrow."""

    text: str = ""  # in name, host name, addresses or tags
    states: tuple[ComputerState, ...] = ()
    group_id: str | None = None  # with all groups below it
    policy_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    os_name: str = ""
    importance: str = ""
    has_problems: bool | None = None
    computer_ids: tuple[str, ...] = ()
    sort: str = "name"  # name, hostname, last_heartbeat_at, enrolled_at, problems
    is_descending: bool = False


@dataclass(frozen=True, kw_only=True)
class IdentityAlarm:
    """An identity that was seen twice."""

    alarm_id: str
    tenant_id: str
    computer_id: str
    computer_name: str
    kind: str  # key_on_other_machine, machine_with_other_key, machine_id_changed
    detail: str
    first_at: float
    last_at: float
    count: int
    resolved_at: float | None
    resolved_by: str


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Numbers for the first page; each is what the list behind it would show."""

    computer_count: int
    states: dict[str, int]
    unprotected_count: int
    problem_counts: dict[str, int]  # code -> computers
    not_enforced_counts: dict[str, int]  # module -> computers where something that its policy asks for does not happen
    drift_count: int
    drift_computer_count: int
    open_alarm_count: int
    policy_pending_count: int


@dataclass(frozen=True)
class ComputerChange:
    """What to change of a computer; None leaves it. For group and policy, `UNSET` leaves them and None takes them away."""

    display_name: str | None = None
    group_id: str | msgspec.UnsetType | None = msgspec.UNSET
    policy_id: str | msgspec.UnsetType | None = msgspec.UNSET
    importance: str | None = None
    tags: tuple[str, ...] | None = None
    note: str | None = None
