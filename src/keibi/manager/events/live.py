"""The live view: new events as server-sent events, resumable by Last-Event-ID."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import msgspec
from starlette.concurrency import run_in_threadpool

from keibi.errors import KeibiError, TryLaterError
from keibi.manager.access.model import Principal
from keibi.manager.events.model import EventQuery, EventRow, Tail
from keibi.manager.events.service import EventService, arrival_cursor

MAX_STREAM_SECONDS = 600.0
"""Then the browser connects anew and is asked again who it is: a signed-out session must not watch on."""
LOOK_SECONDS = 2.0
"""How often a view looks even when this node stored nothing: other nodes may have."""
KEEP_ALIVE_SECONDS = 15.0
PAGE_EVENTS = 200


async def event_stream(
    service: EventService,
    principal: Principal,
    query: EventQuery,
    after: str | None,
    *,
    encode: Callable[[EventRow], str] | None = None,
    max_seconds: float = MAX_STREAM_SECONDS,
) -> AsyncIterator[str]:
    """Return the text of an event stream: one `event` message for each new event, in the order of arrival.

    `encode` makes a message's data (one line, or several); without it the data is the event as JSON. A message `trouble` says
    that the store is away; the stream goes on.
    """
    encode = encode or _json
    started = quiet_since = time.monotonic()
    cursor = after or (await run_in_threadpool(service.tail, principal, query)).cursor
    yield f"retry: 1000\nid: {cursor}\nevent: start\ndata: {{}}\n\n"
    while time.monotonic() - started < max_seconds:
        seen_at = service.feed.newest_at
        try:
            tail: Tail = await run_in_threadpool(service.tail, principal, query, cursor, PAGE_EVENTS)
        except TryLaterError as error:
            yield _message("trouble", cursor, _told(error))
            await asyncio.sleep(error.retry_after_seconds)
            continue
        for row in tail.items:
            yield _message("event", arrival_cursor(row), encode(row))
        cursor = tail.cursor
        if tail.items:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > KEEP_ALIVE_SECONDS:
            quiet_since = time.monotonic()
            # Proxies close what is silent, and a browser that is gone is only noticed when something is written to it.
            yield ": still here\n\n"
        if len(tail.items) < PAGE_EVENTS:
            await service.feed.wait(seen_at, LOOK_SECONDS)


def _message(name: str, cursor: str, data: str) -> str:
    lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
    return f"id: {cursor}\nevent: {name}\n{lines}\n"


def _json(row: EventRow) -> str:
    return msgspec.json.encode(row).decode()


def _told(error: KeibiError) -> str:
    return msgspec.json.encode({"code": error.code, "message": error.message, "hint": error.hint}).decode()
