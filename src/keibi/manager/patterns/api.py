"""REST: pattern sets under /api/v1/patterns."""

import asyncio
import os
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, status
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from keibi.errors import InputError, RefusedError, TryLaterError
from keibi.manager.access.api import Asker, Body
from keibi.manager.http_answers import answer, answers
from keibi.manager.patterns.importers.model import ImportKind
from keibi.manager.patterns.model import MAX_UPLOAD_BYTES, ImportOutcome, PatternSet, PatternSetDetail
from keibi.manager.patterns.service import MANAGE, UPLOAD, PatternService
from keibi.manager.patterns.store import ContentStore
from keibi.manager.policies.model import Applied
from keibi.manager.policies.pattern_use import use_pattern_set
from keibi.manager.policies.service import PolicyService

router = APIRouter(prefix="/api/v1/patterns", tags=["pattern sets"])

IMPORT_PATH = "/api/v1/patterns/import"
"""Takes bodies up to MAX_UPLOAD_BYTES, where all others stop at four megabytes."""
PAUSE_SECONDS = 60.0
"""An upload that brings nothing for so long has ended."""
CHECKED_BYTES = 64 * 1024 * 1024
"""After so many bytes the disk's free space is looked at again."""


def pattern_service(request: Request) -> PatternService:
    """Return the service of the running manager."""
    service: PatternService = request.app.state.services.patterns
    return service


def policy_service(request: Request) -> PolicyService:
    """Return the service of the running manager."""
    service: PolicyService = request.app.state.services.policies
    return service


Patterns = Annotated[PatternService, Depends(pattern_service)]
Policies = Annotated[PolicyService, Depends(policy_service)]


class ReturnBody(Body):
    """The version to make current."""

    number: int
    expected_version: int | None = None


class AssignBody(Body):
    """A policy that shall use the set, or no longer."""

    policy_id: str
    is_assigned: bool = True


@router.get("", summary="List pattern sets", responses=answers(list[PatternSet]))
def list_patterns(principal: Asker, patterns: Patterns) -> Response:
    """Return the customer's own sets and those that the provider shares, each with its current version and import report."""
    return answer(patterns.list(principal))


@router.post(
    "/import",
    status_code=status.HTTP_201_CREATED,
    summary="Import a pattern set",
    responses=answers(ImportOutcome, 201),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def import_patterns(
    request: Request,
    principal: Asker,
    patterns: Patterns,
    file_name: Annotated[str, Query(max_length=300, description="what the file is called; its suffix counts")],
    name: Annotated[str, Query(max_length=64, description="of the set; from the file's name without it")] = "",
    kind: ImportKind = ImportKind.AUTO,
    licence: Annotated[str, Query(max_length=2000, description="under which terms the patterns may be used")] = "",
    description: Annotated[str, Query(max_length=2000)] = "",
    for_all: Annotated[bool, Query(description="share it with all customers (provider)")] = False,
    dry_run: Annotated[bool, Query(description="only say what would be taken and refused")] = False,
) -> Response:
    """Take YARA rules, SHA-256 lists or ClamAV databases from the body: one file, or a zip or tar of them.

    What cannot be used is in the report, one by one with the reason; the rest becomes the set's next version, which is current
    at once.
    """
    await run_in_threadpool(principal.require, MANAGE)
    with patterns.store.workspace() as directory:
        await _receive(request, os.path.join(directory, UPLOAD), patterns.store)
        outcome = await run_in_threadpool(
            patterns.import_file,
            principal,
            directory,
            file_name,
            name=name,
            kind=kind,
            licence=licence,
            description=description,
            is_for_all=for_all,
            is_trial=dry_run,
        )
    return answer(outcome, 200 if dry_run else 201)


@router.get("/{set_id}", summary="Show a pattern set", responses=answers(PatternSetDetail))
def get_patterns(principal: Asker, patterns: Patterns, set_id: str) -> Response:
    """Return a set with all kept versions, their reports, and the policies that name it."""
    return answer(patterns.get(principal, set_id))


@router.post("/{set_id}/return", summary="Return to another version", responses=answers(PatternSet))
def return_patterns(principal: Asker, patterns: Patterns, set_id: str, body: ReturnBody) -> Response:
    """Make an older version current, or the newest again; computers that use the set follow with their next heartbeat."""
    return answer(patterns.return_to(principal, set_id, body.number, body.expected_version))


@router.post("/{set_id}/assign", summary="Use a set in a policy")
def assign_patterns(principal: Asker, patterns: Patterns, policies: Policies, set_id: str, body: AssignBody) -> Applied:
    """Put a set into the policy's setting `pattern_sets`, or take it out."""
    name = patterns.get(principal, set_id).name
    return use_pattern_set(policies, principal, body.policy_id, name, is_used=body.is_assigned)


@router.delete("/{set_id}", status_code=status.HTTP_204_NO_CONTENT, summary="Delete a pattern set")
def delete_patterns(principal: Asker, patterns: Patterns, set_id: str) -> None:
    """Delete a set with all versions; one that a policy names is refused, with the places."""
    patterns.delete(principal, set_id)


async def _receive(request: Request, path: str, store: ContentStore) -> None:
    size = checked_size = 0
    loop = asyncio.get_running_loop()
    try:
        with open(path, "wb") as file:
            async with asyncio.timeout(PAUSE_SECONDS) as patience:
                async for chunk in request.stream():
                    patience.reschedule(loop.time() + PAUSE_SECONDS)
                    size += len(chunk)
                    if size > MAX_UPLOAD_BYTES:
                        raise RefusedError("upload_too_large", f"the upload has more than {MAX_UPLOAD_BYTES} bytes")
                    if size >= checked_size:
                        await run_in_threadpool(store.check_room, CHECKED_BYTES)
                        checked_size = size + CHECKED_BYTES
                    await run_in_threadpool(file.write, chunk)
    except (ClientDisconnect, TimeoutError) as error:
        raise TryLaterError("body_incomplete", "the upload did not arrive whole") from error
    except OSError as error:
        raise TryLaterError("content_unwritable", f"the upload cannot be kept: {error.strerror}", hint="make room") from error
    if not size:
        raise InputError("upload_empty", "the upload is empty", hint="send the file as the body")
