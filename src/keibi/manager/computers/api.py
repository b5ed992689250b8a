"""REST: computers, groups, identity alarms and the overview's numbers."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from keibi.manager.access.api import Asker, Body
from keibi.manager.computers.groups import Group
from keibi.manager.computers.model import (
    ComputerChange,
    ComputerDetail,
    ComputerFilter,
    ComputerState,
    ComputerSummary,
    IdentityAlarm,
    Overview,
    Problem,
)
from keibi.manager.computers.service import ComputerService
from keibi.manager.http_answers import answer, answers
from keibi.manager.paging import DEFAULT_LIMIT, MAX_LIMIT, Page

router = APIRouter(prefix="/api/v1/computers", tags=["computers"])
groups_router = APIRouter(prefix="/api/v1/groups", tags=["groups"])
alarms_router = APIRouter(prefix="/api/v1/identity-alarms", tags=["computers"])
overview_router = APIRouter(prefix="/api/v1/overview", tags=["overview"])

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]


def computer_service(request: Request) -> ComputerService:
    """Return the service of the running manager."""
    service: ComputerService = request.app.state.services.computers
    return service


Computers = Annotated[ComputerService, Depends(computer_service)]


class ComputerChangeBody(Body):
    """What to change of a computer; what is left out stays. `group_id` and `policy_id` may be null."""

    display_name: str | None = Field(None, max_length=255)
    group_id: str | None = None
    policy_id: str | None = None
    importance: str | None = None
    tags: list[str] | None = Field(None, max_length=64)
    note: str | None = Field(None, max_length=10_000)
    is_enabled: bool | None = None
    expected_version: int | None = None


class GroupBody(Body):
    """A new group."""

    name: str = Field(max_length=200)
    parent_id: str | None = None


class GroupChangeBody(Body):
    """What to change of a group; what is left out stays. A `parent_id` of null moves it to the top."""

    name: str | None = Field(None, max_length=200)
    parent_id: str | None = None
    expected_version: int | None = None


class UnprotectedComputer(msgspec.Struct, frozen=True):
    """A computer and one reason why it is not protected as it should be."""

    computer: ComputerSummary
    problem: Problem


@router.get("", summary="List computers", responses=answers(Page[ComputerSummary]))
def list_computers(
    computers: Computers,
    asker: Asker,
    text: Annotated[str, Query(description="In name, host name, address or tag", max_length=200)] = "",
    state: Annotated[list[ComputerState] | None, Query()] = None,
    group: str | None = None,
    policy: Annotated[list[str] | None, Query()] = None,
    tag: Annotated[list[str] | None, Query()] = None,
    os: str = "",
    importance: str = "",
    has_problems: bool | None = None,
    sort: str = "name",
    descending: bool = False,
    cursor: str | None = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """Return a page of computers with the true total."""
    filters = ComputerFilter(
        text=text,
        states=tuple(state or ()),
        group_id=group,
        policy_ids=tuple(policy or ()),
        tags=tuple(tag or ()),
        os_name=os,
        importance=importance,
        has_problems=has_problems,
        sort=sort,
        is_descending=descending,
    )
    return answer(computers.list(asker, filters, cursor, limit))


@router.get("/tags", summary="Tags in use", responses=answers(dict[str, int]))
def list_tags(computers: Computers, asker: Asker) -> Response:
    """Return the tags in use, with how many computers have each."""
    return answer(computers.tags(asker))


@router.get("/unprotected", summary="Who is unprotected and why", responses=answers(list[UnprotectedComputer]))
def list_unprotected(computers: Computers, asker: Asker, limit: Limit = MAX_LIMIT) -> Response:
    """Return computers that are not protected as they should be, each with each reason."""
    return answer([UnprotectedComputer(computer, problem) for computer, problem in computers.unprotected(asker, limit)])


@router.get("/{computer_id}", summary="One computer", responses=answers(ComputerDetail))
def get_computer(computers: Computers, asker: Asker, computer_id: str) -> Response:
    """Return one computer with everything that is known of it."""
    return answer(computers.get(asker, computer_id))


@router.patch("/{computer_id}", summary="Change, disable or enable a computer", responses=answers(ComputerDetail))
def change_computer(computers: Computers, asker: Asker, computer_id: str, body: ComputerChangeBody) -> Response:
    """Change what people decide about a computer; disabling refuses its agent at once."""
    given = body.model_dump(exclude_unset=True)
    change = ComputerChange(
        display_name=body.display_name,
        group_id=given.get("group_id", msgspec.UNSET),
        policy_id=given.get("policy_id", msgspec.UNSET),
        importance=body.importance,
        tags=None if body.tags is None else tuple(body.tags),
        note=body.note,
    )
    computer: Any = None
    if set(given) - {"is_enabled", "expected_version"} or body.is_enabled is None:
        computer = computers.change(asker, computer_id, change, body.expected_version)
    if body.is_enabled is not None:
        computer = computers.set_enabled(asker, computer_id, body.is_enabled)
    return answer(computer)


@router.delete("/{computer_id}", status_code=204, summary="Remove a computer")
def remove_computer(computers: Computers, asker: Asker, computer_id: str) -> Response:
    """Forget a computer; its agent is refused at once."""
    computers.remove(asker, computer_id)
    return Response(status_code=204)


@groups_router.get("", summary="The tree of groups", responses=answers(list[Group]))
def list_groups(computers: Computers, asker: Asker) -> Response:
    """Return groups, each after its parent."""
    return answer(computers.groups.tree(asker))


@groups_router.post("", status_code=201, summary="Make a group", responses=answers(Group, 201))
def create_group(computers: Computers, asker: Asker, body: GroupBody) -> Response:
    """Make a group."""
    return answer(computers.groups.create(asker, body.name, body.parent_id), 201)


@groups_router.get("/{group_id}", summary="One group", responses=answers(Group))
def get_group(computers: Computers, asker: Asker, group_id: str) -> Response:
    """Return one group."""
    return answer(computers.groups.get(asker, group_id))


@groups_router.patch("/{group_id}", summary="Rename or move a group", responses=answers(Group))
def change_group(computers: Computers, asker: Asker, group_id: str, body: GroupChangeBody) -> Response:
    """Rename or move a group."""
    group = computers.groups.change(
        asker,
        group_id,
        name=body.name,
        parent_id=body.parent_id,
        move="parent_id" in body.model_fields_set,
        expected_version=body.expected_version,
    )
    return answer(group)


@groups_router.delete("/{group_id}", status_code=204, summary="Remove a group")
def remove_group(computers: Computers, asker: Asker, group_id: str) -> Response:
    """Remove an empty group."""
    computers.groups.remove(asker, group_id)
    return Response(status_code=204)


@alarms_router.get("", summary="Identities seen twice", responses=answers(Page[IdentityAlarm]))
def list_alarms(
    computers: Computers,
    asker: Asker,
    with_resolved: bool = False,
    cursor: str | None = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """Return identity alarms, the newest first."""
    return answer(computers.alarms.list(asker, with_resolved=with_resolved, cursor=cursor, limit=limit))


@alarms_router.post("/{alarm_id}/resolve", summary="Resolve an identity alarm", responses=answers(IdentityAlarm))
def resolve_alarm(computers: Computers, asker: Asker, alarm_id: str) -> Response:
    """Say that an alarm was dealt with."""
    return answer(computers.alarms.resolve(asker, alarm_id))


@overview_router.get("", summary="Numbers for the first page", responses=answers(Overview))
def overview(computers: Computers, asker: Asker) -> Response:
    """Return how many computers there are in which state, and what waits."""
    return answer(computers.overview(asker))
