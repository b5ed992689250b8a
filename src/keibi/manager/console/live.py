"""New events as table rows, over server-sent events."""

from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from keibi.errors import KeibiError
from keibi.manager.console.endpoint import problem
from keibi.manager.console.filters import parse_filter
from keibi.manager.console.pages.events import row_values
from keibi.manager.console.security import PAGE_HEADERS
from keibi.manager.console.view import View
from keibi.manager.console.visit import Visit
from keibi.manager.console.visitor import recognise
from keibi.manager.events.live import event_stream
from keibi.manager.events.model import EventQuery, EventRow
from keibi.manager.paging import Page
from keibi.manager.services import Services


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
    def row_html(event: EventRow) -> str:
        html = visit.view.render(
            visit.language, "event_rows.html", {**visit.common(), "page": Page([event]), **row_values(visit, [event])}
        )
        return " ".join(html.split())

    async for text in event_stream(visit.services.events, visit.principal, query, after, encode=row_html):
        yield text
