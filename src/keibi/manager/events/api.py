"""The events API: search, one event, charts, tags, export and the live stream."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from keibi.contract.events import EventAction
from keibi.contract.names import ModuleId, Severity
from keibi.manager.access.api import current_principal
from keibi.manager.access.model import Principal
from keibi.manager.events import api_models as out
from keibi.manager.events.live import event_stream
from keibi.manager.events.model import EventQuery, SeriesKey, TopField
from keibi.manager.events.service import EventService

router = APIRouter(prefix="/api/v1/events", tags=["events"])

Asker = Annotated[Principal, Depends(current_principal)]


def event_service(request: Request) -> EventService:
    """Return the event service of the application that serves this request."""
    service: EventService = request.app.state.services.events
    return service


Events = Annotated[EventService, Depends(event_service)]


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


@router.get("", response_model=out.EventPageOut, summary="Search events")
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
    total = events.count(asker, query) if with_total else None
    return _json({"items": page.items, "next_cursor": page.next_cursor, "total": total})


@router.get("/count", response_model=out.CountOut, summary="Count events")
def count_events(events: Events, asker: Asker, query: Wanted) -> Response:
    """Return how many events match, exactly."""
    return _json({"count": events.count(asker, query)})


@router.get("/series", response_model=out.SeriesOut, summary="Events over time")
def event_series(
    events: Events,
    asker: Asker,
    query: Wanted,
    by: SeriesKey = "module",
    buckets: Annotated[int, Query(ge=1, le=500)] = 48,
    time_zone: Annotated[str, Query(description="Days begin at midnight there", max_length=64)] = "UTC",
) -> Response:
    """Return counts for a chart, in steps of a natural length; without a period, of the last 24 hours."""
    return _json(events.series(asker, query, buckets, by, time_zone))


@router.get("/top", response_model=list[out.TopRowOut], summary="Most frequent values")
def top_values(events: Events, asker: Asker, query: Wanted, field: TopField, limit: Limit = 10) -> Response:
    """Return the values of a field that most events have."""
    return _json(events.top(asker, query, field, limit))


@router.get("/tags", response_model=list[out.TagCountOut], summary="Tags in use")
def tags_in_use(events: Events, asker: Asker) -> Response:
    """Return the tags on events that the caller may see, the most used first."""
    return _json(events.tags.in_use(asker))


@router.post("/tags", response_model=out.TaggedOut, summary="Put a tag on events")
def tag_events(events: Events, asker: Asker, body: out.TagIn) -> Response:
    """Put a tag on events; the events themselves do not change."""
    return _json({"event_count": events.tags.add(asker, body.event_ids, body.tag)})


@router.post("/tags/remove", response_model=out.TaggedOut, summary="Take a tag off events")
def untag_events(events: Events, asker: Asker, body: out.TagIn) -> Response:
    """Take a tag off events."""
    return _json({"event_count": events.tags.remove(asker, body.event_ids, body.tag)})


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


@router.get("/retention", response_model=list[out.RetentionOut], summary="How long events are kept")
def retention_rules(events: Events, asker: Asker) -> Response:
    """Return the retention rules of the caller's tenants."""
    return _json(events.retention.rules(asker))


@router.put("/retention", response_model=list[out.RetentionOut], summary="Change how long events are kept")
def change_retention(events: Events, asker: Asker, body: out.RetentionIn) -> Response:
    """Set or remove the chosen tenant's rule for one module, or for all modules without one."""
    events.retention.change(asker, body.module, body.days)
    return _json(events.retention.rules(asker))


@router.get("/{event_id}", response_model=out.EventDetailOut, summary="One event")
def get_event(events: Events, asker: Asker, event_id: str) -> Response:
    """Return one event with everything about it."""
    return _json(events.get(asker, event_id))


@router.get("/{event_id}/around", response_model=out.SurroundingsOut, summary="Events around an event")
def events_around(events: Events, asker: Asker, event_id: str, limit: Limit = 20) -> Response:
    """Return the events of the same computer within an hour before and after, the nearest first."""
    return _json(events.around(asker, event_id, limit))


def _json(value: Any) -> Response:
    # Encoded from the structs directly: ten times quicker than through the models that only describe the shape.
    return Response(msgspec.json.encode(value), media_type="application/json")
