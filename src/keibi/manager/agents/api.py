"""REST: enrolment tokens and commands."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from keibi.contract.commands import CommandKind
from keibi.contract.names import ModuleId
from keibi.manager.access.api import Asker, Body
from keibi.manager.agents.commands import DEFAULT_SECONDS, CommandService
from keibi.manager.agents.model import EnrolmentToken, NewEnrolmentToken, SentCommand
from keibi.manager.agents.service import EnrolmentService
from keibi.manager.http_answers import answer, answers
from keibi.manager.paging import DEFAULT_LIMIT, MAX_LIMIT, Page

tokens_router = APIRouter(prefix="/api/v1/enrolment-tokens", tags=["enrolment"])
commands_router = APIRouter(prefix="/api/v1", tags=["commands"])

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]


def enrolment_service(request: Request) -> EnrolmentService:
    """Return the service of the running manager."""
    service: EnrolmentService = request.app.state.services.agents
    return service


def command_service(request: Request) -> CommandService:
    """Return the service of the running manager."""
    service: CommandService = request.app.state.services.commands
    return service


Enrolment = Annotated[EnrolmentService, Depends(enrolment_service)]
Commands = Annotated[CommandService, Depends(command_service)]


class NewTokenBody(Body):
    """A token to make."""

    name: str = Field(max_length=200)
    group_id: str | None = None
    policy_id: str | None = None
    lasts_seconds: float = 86400.0
    max_uses: int = 1


class CommandBody(Body):
    """What a computer shall do."""

    kind: CommandKind
    module: ModuleId | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    expires_in_seconds: float = DEFAULT_SECONDS


@tokens_router.get("", summary="List enrolment tokens", responses=answers(Page[EnrolmentToken]))
def list_tokens(enrolment: Enrolment, asker: Asker, cursor: str | None = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Return enrolment tokens, the newest first, without the tokens themselves."""
    return answer(enrolment.list_tokens(asker, cursor, limit))


@tokens_router.post("", status_code=201, summary="Make an enrolment token", responses=answers(NewEnrolmentToken, 201))
def create_token(enrolment: Enrolment, asker: Asker, body: NewTokenBody) -> Response:
    """Make an enrolment token; it is shown this once."""
    token = enrolment.create_token(
        asker,
        body.name,
        group_id=body.group_id,
        policy_id=body.policy_id,
        lasts_seconds=body.lasts_seconds,
        max_uses=body.max_uses,
    )
    return answer(token, 201)


@tokens_router.delete("/{token_id}", summary="Revoke an enrolment token", responses=answers(EnrolmentToken))
def revoke_token(enrolment: Enrolment, asker: Asker, token_id: str) -> Response:
    """Make an enrolment token worthless; computers enrolled with it stay."""
    return answer(enrolment.revoke_token(asker, token_id))


@commands_router.post(
    "/computers/{computer_id}/commands", status_code=202, summary="Send a command", responses=answers(SentCommand, 202)
)
def send_command(commands: Commands, asker: Asker, computer_id: str, body: CommandBody) -> Response:
    """Give a computer something to do; its agent is woken."""
    sent = commands.send(asker, computer_id, body.kind, body.module, body.arguments, expires_in_seconds=body.expires_in_seconds)
    return answer(sent, 202)


@commands_router.get("/computers/{computer_id}/commands", summary="A computer's commands", responses=answers(Page[SentCommand]))
def list_commands_of_computer(
    commands: Commands, asker: Asker, computer_id: str, cursor: str | None = None, limit: Limit = DEFAULT_LIMIT
) -> Response:
    """Return a computer's commands, the newest first."""
    return answer(commands.list(asker, computer_id=computer_id, cursor=cursor, limit=limit))


@commands_router.get("/commands", summary="List commands", responses=answers(Page[SentCommand]))
def list_commands(commands: Commands, asker: Asker, cursor: str | None = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Return commands, the newest first."""
    return answer(commands.list(asker, cursor=cursor, limit=limit))


@commands_router.get("/commands/{command_id}", summary="One command", responses=answers(SentCommand))
def get_command(commands: Commands, asker: Asker, command_id: str) -> Response:
    """Return one command with its result so far."""
    return answer(commands.get(asker, command_id))
