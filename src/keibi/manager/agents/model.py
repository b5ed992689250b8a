"""Enrolment tokens and commands as values."""

from dataclasses import dataclass
from typing import Any

from keibi.contract.commands import CommandKind, CommandState
from keibi.contract.names import ModuleId


@dataclass(frozen=True, kw_only=True)
class EnrolmentToken:
    """One enrolment token as it is listed: everything but the token."""

    token_id: str
    tenant_id: str
    name: str
    prefix: str
    group_id: str | None
    policy_id: str | None
    created_at: float
    created_by: str
    expires_at: float
    max_uses: int
    uses: int
    is_revoked: bool
    is_usable: bool


@dataclass(frozen=True)
class NewEnrolmentToken:
    """A token just made; `secret` is what the agent is given, and is shown this once."""

    token: EnrolmentToken
    secret: str


@dataclass(frozen=True, kw_only=True)
class SentCommand:
    """One command and what came of it."""

    command_id: str
    tenant_id: str
    computer_id: str
    computer_name: str
    kind: CommandKind
    module: ModuleId | None
    arguments: dict[str, Any]
    state: CommandState
    created_at: float
    created_by: str
    expires_at: float
    sent_at: float | None
    updated_at: float
    finished_at: float | None
    message: str
    progress: float | None
    result: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will come."""
        return self.state in FINISHED


FINISHED = frozenset({CommandState.DONE, CommandState.FAILED, CommandState.REFUSED, CommandState.EXPIRED})
WAITING = (CommandState.PENDING, CommandState.SENT, CommandState.RUNNING)
