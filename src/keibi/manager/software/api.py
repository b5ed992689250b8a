"""REST: software changes, decisions, rulesets, maintenance and unlock codes."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from keibi.errors import InputError
from keibi.manager.access.api import Asker, Body
from keibi.manager.agents.model import SentCommand
from keibi.manager.http_answers import answer, answers
from keibi.manager.paging import DEFAULT_LIMIT, MAX_LIMIT, Page
from keibi.manager.policies.model import Preview
from keibi.manager.software.choosing import DecideBy, entries_of
from keibi.manager.software.maintenance import MAX_MINUTES
from keibi.manager.software.model import (
    MAX_DECIDED_AT_ONCE,
    MAX_NOTE_CHARACTERS,
    ChangeFilter,
    ChangeGroup,
    Decision,
    DecisionPreview,
    DecisionRequest,
    EntryRow,
    GroupBy,
    MaintenancePreview,
    RulesetRow,
    Standing,
)
from keibi.manager.software.service import SoftwareService
from keibi.protection.application_control.rules import (
    Entry,
    HashEntry,
    InterpreterEntry,
    PackageEntry,
    PathEntry,
    RuleAction,
    SignerEntry,
)

router = APIRouter(prefix="/api/v1/software", tags=["software"])
computers_router = APIRouter(prefix="/api/v1/computers", tags=["software"])

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
MAX_COMPUTERS = 10_000


def software_service(request: Request) -> SoftwareService:
    """Return the service of the running manager."""
    service: SoftwareService = request.app.state.services.software
    return service


Software = Annotated[SoftwareService, Depends(software_service)]


class PackageBody(Body):
    """A package: its unchanged files, on every computer."""

    name: str = Field(max_length=300)
    origin: str = Field("", max_length=300, description="As its repository names itself; empty for any")
    version: str = Field("", max_length=300, description="Empty for every version")


class PathBody(Body):
    """Files by where they lie."""

    pattern: str = Field(max_length=4096)
    only_root_writable: bool = Field(True, description="An allowance holds only where root alone can write")
    user: str = Field("", max_length=200)


class FilterBody(Body):
    """All groups that a filter means, at the moment when it is asked."""

    standing: Standing | None = Standing.OPEN
    kinds: list[str] = Field([], max_length=10)
    text: str = ""
    process: str = ""
    user: str = ""
    path: str = ""
    file: str = ""
    sha256: str = ""
    package: str = ""
    computer_ids: list[str] = Field([], max_length=MAX_COMPUTERS)
    since: float | None = None
    until: float | None = None
    decide_by: DecideBy = Field("hash", description="What of the software is allowed or blocked")


class DecisionBody(Body):
    """What to allow or block: contents, packages, keys, paths, interpreters, or all that a filter means."""

    action: RuleAction
    sha256: list[str] = Field([], max_length=MAX_DECIDED_AT_ONCE)
    packages: list[PackageBody] = Field([], max_length=1000)
    key_ids: list[str] = Field([], max_length=1000, alias="keys", description="Keys that sign packages")
    paths: list[PathBody] = Field([], max_length=1000)
    interpreters: list[str] = Field([], max_length=1000, description="Patterns; their inline code is meant")
    all_of: FilterBody | None = None
    rule_id: str | None = Field(None, description="The ruleset; without it the customer's own for this action")
    policy_ids: list[str] = Field(
        [], max_length=1000, description="Who uses it; empty: everywhere for a block, else the policies of who has the software"
    )
    note: str = Field("", max_length=MAX_NOTE_CHARACTERS)
    tenant_id: str | None = Field(None, description="The customer, where several are in sight")


class UndoBody(Body):
    """Which version of the decision was looked at."""

    expected_version: int | None = None


class EntriesBody(Body):
    """Entries of a ruleset, as they are written in it."""

    entries: list[dict[str, Any]] = Field(max_length=1000)


class MaintenanceBody(Body):
    """Which computers, and for how long; 0 ends it."""

    computer_ids: list[str] = Field([], max_length=MAX_COMPUTERS)
    group_ids: list[str] = Field([], max_length=1000)
    minutes: int = Field(ge=0, le=MAX_MINUTES)


class ChallengeBody(Body):
    """What the agent shows."""

    challenge: str = Field(max_length=100)


class UnlockCode(msgspec.Struct, frozen=True):
    """What to type on the computer."""

    code: str


class SoftwareCount(msgspec.Struct, frozen=True):
    """How many groups there are, exactly."""

    count: int


class RemovedCount(msgspec.Struct, frozen=True):
    """How many entries the ruleset had."""

    removed_count: int


def change_filter(
    standing: Annotated[Standing | None, Query(description="Only what is open, allowed, blocked or recognised")] = None,
    kind: Annotated[list[str] | None, Query(description="Only these kinds of events; may be repeated")] = None,
    text: Annotated[str, Query(description="Every word occurs in path, package, process, user or hash")] = "",
    process: Annotated[str, Query(description="The program that brought it: its path or its name")] = "",
    user: Annotated[str, Query(description="Who brought it, or ran it")] = "",
    path: Annotated[str, Query(description="Exactly this path, or below it when it ends in /")] = "",
    file: Annotated[str, Query(description="The last part of the path; * stands for anything")] = "",
    sha256: Annotated[str, Query(description="The hash, or its beginning")] = "",
    package: Annotated[str, Query(description="The package's name")] = "",
    computer: Annotated[list[str] | None, Query(description="Only these computers; may be repeated")] = None,
    since: Annotated[float | None, Query(description="At or after; UTC seconds since the epoch")] = None,
    until: Annotated[float | None, Query(description="Before; UTC seconds since the epoch")] = None,
) -> ChangeFilter:
    """Return the filter that the URL's parameters say."""
    return ChangeFilter(
        standing=standing,
        kinds=tuple(kind or ()),
        text=text,
        process=process,
        user=user,
        path=path,
        file=file,
        sha256=sha256,
        package=package,
        computer_ids=tuple(computer or ()),
        since=since,
        until=until,
    )


Wanted = Annotated[ChangeFilter, Depends(change_filter)]


@router.get("/changes", summary="List software changes", responses=answers(Page[ChangeGroup]))
def list_changes(
    software: Software,
    asker: Asker,
    filters: Wanted,
    by: Annotated[GroupBy, Query(description="One group for each content, computer, bringer or place")] = "hash",
    cursor: Annotated[str | None, Query(description="next_cursor of the page before")] = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """Return groups of what appeared, changed, was or would have been blocked, those with the newest change first."""
    return answer(software.changes(asker, filters, by, cursor, limit))


@router.get("/changes/count", summary="Count software changes", responses=answers(SoftwareCount))
def count_changes(software: Software, asker: Asker, filters: Wanted, by: GroupBy = "hash") -> Response:
    """Return how many groups there are, exactly."""
    return answer(SoftwareCount(software.count(asker, filters, by)))


@router.post("/decisions/preview", summary="Preview allowing or blocking software", responses=answers(DecisionPreview))
def preview_decision(software: Software, asker: Asker, body: DecisionBody) -> Response:
    """Say which entries are new, which policies use them, and which computers that reaches."""
    return answer(software.decisions.preview(asker, _request(software, asker, body), body.tenant_id))


@router.post("/decisions", status_code=201, summary="Allow or block software", responses=answers(Decision, 201))
def decide(software: Software, asker: Asker, body: DecisionBody) -> Response:
    """Put entries into a ruleset and have policies use it, whole or not at all."""
    return answer(software.decisions.decide(asker, _request(software, asker, body), body.tenant_id), 201)


@router.get("/decisions", summary="List decisions", responses=answers(Page[Decision]))
def list_decisions(software: Software, asker: Asker, cursor: str | None = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """Return what was decided, the newest first."""
    return answer(software.decisions.list(asker, cursor, limit))


@router.get("/decisions/{decision_id}", summary="Show a decision", responses=answers(Decision))
def get_decision(software: Software, asker: Asker, decision_id: str) -> Response:
    """Return one decision."""
    return answer(software.decisions.get(asker, decision_id))


@router.post("/decisions/{decision_id}/undo/preview", summary="Preview undoing a decision", responses=answers(Preview))
def preview_undo(software: Software, asker: Asker, decision_id: str) -> Response:
    """Say which computers undoing it would reach."""
    return answer(software.decisions.preview_undo(asker, decision_id))


@router.post("/decisions/{decision_id}/undo", summary="Undo a decision", responses=answers(Decision))
def undo_decision(software: Software, asker: Asker, decision_id: str, body: UndoBody) -> Response:
    """Take out what it put in, as far as it is still there, and put back what it took out."""
    return answer(software.decisions.undo(asker, decision_id, body.expected_version))


@router.get("/rulesets", summary="List rulesets", responses=answers(list[RulesetRow]))
def list_rulesets(software: Software, asker: Asker) -> Response:
    """Return the rulesets with their entries counted, and where each applies."""
    return answer(software.rulesets.list(asker))


@router.get("/rulesets/{rule_id}", summary="Show a ruleset", responses=answers(RulesetRow))
def get_ruleset(software: Software, asker: Asker, rule_id: str) -> Response:
    """Return one ruleset."""
    return answer(software.rulesets.get(asker, rule_id))


@router.get("/rulesets/{rule_id}/entries", summary="List a ruleset's entries", responses=answers(Page[EntryRow]))
def list_entries(
    software: Software,
    asker: Asker,
    rule_id: str,
    text: Annotated[str, Query(description="Every word occurs in one of its values", max_length=500)] = "",
    kind: Annotated[str, Query(description="hash, package, signer, path or interpreter")] = "",
    cursor: str | None = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """Return entries, the newest first."""
    return answer(software.rulesets.entries(asker, rule_id, text, kind, cursor, limit))


@router.post("/rulesets/{rule_id}/entries/remove", summary="Take entries out of a ruleset", responses=answers(RemovedCount))
def remove_entries(software: Software, asker: Asker, rule_id: str, body: EntriesBody) -> Response:
    """Take entries out of an own ruleset; putting some in is a decision."""
    ruleset = software.rulesets.get(asker, rule_id)
    try:
        entries = msgspec.convert(body.entries, list[Entry])
    except msgspec.ValidationError as error:
        raise InputError("entries_invalid", f"these are no entries: {error}", where="entries") from error
    return answer(RemovedCount(software.decisions.remove_entries(asker, rule_id, entries, ruleset.tenant_id)))


@router.post("/maintenance/preview", summary="Preview maintenance", responses=answers(MaintenancePreview))
def preview_maintenance(software: Software, asker: Asker, body: MaintenanceBody) -> Response:
    """Say which computers a maintenance would reach."""
    return answer(software.maintenance.preview(asker, body.computer_ids, body.group_ids, body.minutes))


@router.post("/maintenance", status_code=202, summary="Begin or end maintenance", responses=answers(list[SentCommand], 202))
def start_maintenance(software: Software, asker: Asker, body: MaintenanceBody) -> Response:
    """Tell computers that what changes from now on is recognised, until the minutes are over; 0 ends it."""
    return answer(software.maintenance.start(asker, body.computer_ids, body.group_ids, body.minutes), 202)


@computers_router.post("/{computer_id}/unlock-code", summary="Make an unlock code", responses=answers(UnlockCode))
def make_unlock_code(software: Software, asker: Asker, computer_id: str, body: ChallengeBody) -> Response:
    """Return the code that frees a computer from application control without a network."""
    return answer(UnlockCode(software.unlock_code(asker, computer_id, body.challenge)))


def _request(software: SoftwareService, asker: Asker, body: DecisionBody) -> DecisionRequest:
    entries: list[Entry] = [HashEntry(sha256=one.lower()) for one in body.sha256]
    entries += [PackageEntry(name=one.name, origin=one.origin, version=one.version) for one in body.packages]
    entries += [SignerEntry(key_id=one) for one in body.key_ids]
    entries += [PathEntry(one.pattern, one.only_root_writable, one.user) for one in body.paths]
    entries += [InterpreterEntry(path=one) for one in body.interpreters]
    if body.all_of is not None:
        wanted = body.all_of
        filters = ChangeFilter(
            **wanted.model_dump(exclude={"decide_by", "kinds", "computer_ids"}),
            kinds=tuple(wanted.kinds),
            computer_ids=tuple(wanted.computer_ids),
        )
        chosen = asker.in_tenant(body.tenant_id) if body.tenant_id else asker
        entries += entries_of(software.all_of(chosen, filters), wanted.decide_by)
    return DecisionRequest(
        action=body.action,
        entries=tuple(entries),
        rule_id=body.rule_id or "",
        policy_ids=tuple(body.policy_ids),
        note=body.note,
    )
