"""The events API: search, one event, charts, tags, export and the live stream."""

from dataclasses import replace
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from keibi.contract.events import EventAction
from keibi.contract.names import ModuleId, Severity
from keibi.manager.access.api import Asker, Body
from keibi.manager.events.live import event_stream
from keibi.manager.events.model import (
    MAX_TAG_CHARACTERS,
    EventQuery,
    EventRecord,
    EventRow,
    EventSeries,
    RetentionRule,
    SeriesKey,
    Surroundings,
    TagCount,
    TopField,
    TopRow,
)
from keibi.manager.events.retention import MAX_DAYS
from keibi.manager.events.service import EventService
from keibi.manager.events.tagging import MAX_TAGGED_AT_ONCE
from keibi.manager.http_answers import answer, answers
from keibi.manager.paging import Page

router = APIRouter(prefix="/api/v1/events", tags=["events"])


def event_service(request: Request) -> EventService:
    """Return the event service of the application that serves this request."""
    service: EventService = request.app.state.services.events
    return service


Events = Annotated[EventService, Depends(event_service)]


class EventCount(msgspec.Struct, frozen=True):
    """How many events there are, exactly."""

    event_count: int


class TagBody(Body):
    """Which events to put a tag on, or take it off."""

    event_ids: list[str] = Field(min_length=1, max_length=MAX_TAGGED_AT_ONCE)
    tag: str = Field(min_length=1, max_length=MAX_TAG_CHARACTERS)


class RetentionBody(Body):
    """The new rule; module null is for all modules without one, days null removes the rule."""

    module: ModuleId | None = None
    days: int | None = Field(ge=1, le=MAX_DAYS)


def event_query(
    module: Annotated[ModuleId | None, Query(description="Only events of this module")] = None,
    kind: Annotated[list[str] | None, Query(description="Only these kinds; may be repeated")] = None,
    severity: Annotated[Severity | None, Query(description="Only this severity and graver")] = None,
    action: Annotated[EventAction | None, Query(description="Only what was detected, blocked or restored")] = None,
    computer: Annotated[list[str] | None, Query(description="Only these computers; may be repeated")] = None,
    text: Annotated[str, Query(description='Every word, or "quoted phrase", occurs; case and width do not matter')] = "",
    rule: Annotated[str, Query(description="Only matches of this rule")] = "",
    subject: Annotated[str, Query(description="Only events about exactly this path, port, user or package")] = "",
    tag: Annotated[str, Query(description="Only events with this tag")] = "",
    user: Annotated[str, Query(description="Only what this user did, as the acting or the signed-in one")] = "",
    process: Annotated[str, Query(description="Only what this executable did: its path or its name")] = "",
    since: Annotated[float | None, Query(description="Detected at or after; UTC seconds since the epoch")] = None,
    until: Annotated[float | None, Query(description="Detected before; UTC seconds since the epoch")] = None,
) -> EventQuery:
    """Return the query that the URL's parameters say."""
    return EventQuery(
        module=module,
        kinds=tuple(kind or ()),
        severity_at_least=severity,
        action=action,
        computer_ids=tuple(computer or ()),
        text=text,
        rule_id=rule,
        subject=subject,
        tag=tag,
        user=user,
        process=process,
        since=since,
        until=until,
    )


Wanted = Annotated[EventQuery, Depends(event_query)]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most")]


@router.get("", responses=answers(Page[EventRow]), summary="Search events")
def search_events(
    events: Events,
    asker: Asker,
    query: Wanted,
    cursor: Annotated[str | None, Query(description="next_cursor of the page before")] = None,
    limit: Limit = 50,
    order: Annotated[str, Query(pattern="^(newest|oldest)$")] = "newest",
    with_total: Annotated[bool, Query(description="Count all matching events too")] = False,
) -> Response:
    """Return one page of events, newest first; pages do not shift when events arrive."""
    if order == "oldest":
        query = msgspec.structs.replace(query, order="oldest")
    page = events.search(asker, query, cursor, limit)
    return answer(replace(page, total=events.count(asker, query)) if with_total else page)


@router.get("/count", responses=answers(EventCount), summary="Count events")
def count_events(events: Events, asker: Asker, query: Wanted) -> Response:
    """Return how many events match, exactly."""
    return answer(EventCount(events.count(asker, query)))


@router.get("/series", responses=answers(EventSeries), summary="Events over time")
def event_series(
    events: Events,
    asker: Asker,
    query: Wanted,
    by: SeriesKey = "module",
    buckets: Annotated[int, Query(ge=1, le=500)] = 48,
    time_zone: Annotated[str, Query(description="Days begin at midnight there", max_length=64)] = "UTC",
) -> Response:
    """Return counts for a chart, in steps of a natural length; without a period, of the last 24 hours."""
    return answer(events.series(asker, query, buckets, by, time_zone))


@router.get("/top", responses=answers(list[TopRow]), summary="Most frequent values")
def top_values(events: Events, asker: Asker, query: Wanted, field: TopField, limit: Limit = 10) -> Response:
    """Return the values of a field that most events have."""
    return answer(events.top(asker, query, field, limit))


@router.get("/tags", responses=answers(list[TagCount]), summary="Tags in use")
def tags_in_use(events: Events, asker: Asker) -> Response:
    """Return the tags on events that the caller may see, the most used first."""
    return answer(events.tags.in_use(asker))


@router.post("/tags", responses=answers(EventCount), summary="Put a tag on events")
def tag_events(events: Events, asker: Asker, body: TagBody) -> Response:
    """Put a tag on events; the events themselves do not change."""
    return answer(EventCount(events.tags.add(asker, body.event_ids, body.tag)))


@router.post("/tags/remove", responses=answers(EventCount), summary="Take a tag off events")
def untag_events(events: Events, asker: Asker, body: TagBody) -> Response:
    """Take a tag off events."""
    return answer(EventCount(events.tags.remove(asker, body.event_ids, body.tag)))


@router.get(
    "/export.csv",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {}}, "description": "All matching events, up to a million"}},
    summary="Export events as CSV",
)
def export_events(events: Events, asker: Asker, query: Wanted) -> StreamingResponse:
    """Return all matching events as a CSV file with times in UTC, headed in the caller's language."""
    lines = events.export_csv(asker, query, asker.language)
    headers = {"Content-Disposition": 'attachment; filename="keibi-events.csv"', "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)


@router.get(
    "/tail",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "One message for each new event"}},
    summary="Watch events as they arrive",
)
async def tail_events(
    events: Events,
    asker: Asker,
    query: Wanted,
    after: Annotated[str | None, Query(description="Where to go on, as the id of the last message said")] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Return an endless stream of server-sent events; a browser that reconnects misses nothing."""
    # Asked once before the answer begins, so that what is wrong with the request is an error and not a broken stream.
    await run_in_threadpool(events.tail, asker, query, last_event_id or after, 1)
    stream = event_stream(events, asker, query, last_event_id or after)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@router.get("/retention", responses=answers(list[RetentionRule]), summary="How long events are kept")
def retention_rules(events: Events, asker: Asker) -> Response:
    """Return the retention rules of the caller's tenants."""
    return answer(events.retention.rules(asker))


@router.put("/retention", responses=answers(list[RetentionRule]), summary="Change how long events are kept")
def change_retention(events: Events, asker: Asker, body: RetentionBody) -> Response:
    """Set or remove the chosen tenant's rule for one module, or for all modules without one."""
    events.retention.change(asker, body.module, body.days)
    return answer(events.retention.rules(asker))


@router.get("/{event_id}", responses=answers(EventRecord), summary="One event")
def get_event(events: Events, asker: Asker, event_id: str) -> Response:
    """Return one event with everything about it."""
    return answer(events.get(asker, event_id))


@router.get("/{event_id}/around", responses=answers(Surroundings), summary="Events around an event")
def events_around(events: Events, asker: Asker, event_id: str, limit: Limit = 20) -> Response:
    """Return the events of the same computer within an hour before and after, the nearest first."""
    return answer(events.around(asker, event_id, limit))
