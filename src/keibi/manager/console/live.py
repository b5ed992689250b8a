"""New events as table rows, over server-sent events."""

from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from keibi.errors import KeibiError
from keibi.manager.console.endpoint import problem
from keibi.manager.console.filters import columns_of, parse_filter
from keibi.manager.console.pages.events import row_values
from keibi.manager.console.security import PAGE_HEADERS
from keibi.manager.console.view import View
from keibi.manager.console.visit import Visit
from keibi.manager.console.visitor import recognise
from keibi.manager.events.live import event_stream
from keibi.manager.events.model import EventQuery, EventRow
from keibi.manager.paging import Page
from keibi.manager.services import Services

PLACE = "row"
"""Stands in a message for the row, until that is rendered."""


def live_route(services: Services, view: View) -> Route:
    """Return the route that the events page listens to."""

    async def endpoint(request: Request) -> Response:
        visit = await run_in_threadpool(recognise, request, services, view, FormData(), must_prove=False)
        try:
            visit.principal.require("events.view")
            # A live view shows what arrives, however long ago it was detected: the period does not count.
            query = parse_filter(request.query_params).query(view.now())
        except KeibiError as error:
            return await run_in_threadpool(problem, visit, error)
        stream = _rows(visit, query, request.headers.get("last-event-id"))
        return StreamingResponse(stream, media_type="text/event-stream", headers=dict(PAGE_HEADERS))

    return Route("/events/tail", endpoint, methods=["GET"])


async def _rows(visit: Visit, query: EventQuery, after: str | None) -> AsyncIterator[str]:
    """Return the stream with each event as a table row. Rendering looks names up, so it happens in a worker thread."""
    rows = _RowWriter(visit)
    arrived: list[EventRow] = []

    def hold(event: EventRow) -> str:
        arrived.append(event)
        return PLACE

    async for text in event_stream(visit.services.events, visit.principal, query, after, encode=hold):
        if arrived:
            html = await run_in_threadpool(rows.html, arrived.pop())
            yield text.replace(f"data: {PLACE}\n", f"data: {html}\n", 1)
        else:
            yield text


class _RowWriter:
    """Writes events as rows and remembers the names in them: a burst of events must not become a burst of queries."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._computer_names: dict[str, str] = {}
        self._rule_titles: dict[str, str] = {"": ""}

    def html(self, event: EventRow) -> str:
        """Return the row on one line."""
        if event.computer_id not in self._computer_names or event.rule_id not in self._rule_titles:
            values = row_values(self._visit, [event])
            self._computer_names.setdefault(event.computer_id, event.computer_id[:8])
            self._computer_names.update(values["computer_names"])
            self._rule_titles.setdefault(event.rule_id, event.rule_id)
            self._rule_titles.update(values["rule_titles"])
        html = self._visit.view.render(
            self._visit.language,
            "event_rows.html",
            {
                **self._visit.common(),
                "page": Page([event]),
                "columns": columns_of(self._visit.query),
                "computer_names": self._computer_names,
                "rule_titles": self._rule_titles,
            },
        )
        return " ".join(html.split())
