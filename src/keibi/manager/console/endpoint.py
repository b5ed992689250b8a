"""The edge between Starlette and page handlers: who is it, may they, and what is shown when something is wrong."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from keibi.errors import AccessError, InputError, KeibiError, RefusedError, TryLaterError
from keibi.manager.access.model import NotSignedInError
from keibi.manager.console.language import N_
from keibi.manager.console.security import PAGE_HEADERS, check_same_origin
from keibi.manager.console.view import View
from keibi.manager.console.visit import Visit
from keibi.manager.console.visitor import recognise
from keibi.manager.services import Services

logger = logging.getLogger("keibi.console")

MAX_FORM_BYTES = 2 * 1024 * 1024
MAX_FIELDS = 20_000

Handler = Callable[[Visit], Response]


@dataclass(frozen=True)
class Page:
    """One address of the console. A POST must carry the session's CSRF token, except where nobody is signed in yet."""

    address: str
    handler: Handler
    methods: tuple[str, ...] = ("GET",)
    permission: str | None = None
    is_public: bool = False
    upload_bytes: int = 0  # a form with one file, of which no more than so much is read; 0: no file


def get(address: str, handler: Handler, permission: str | None = None) -> Page:
    """Return a page that shows something."""
    return Page(address, handler, ("GET",), permission)


def post(address: str, handler: Handler, permission: str | None = None) -> Page:
    """Return a page that changes something."""
    return Page(address, handler, ("POST",), permission)


def route(page: Page, services: Services, view: View) -> Route:
    """Return the Starlette route of a page."""

    async def endpoint(request: Request) -> Response:
        form = FormData()
        if request.method == "POST":
            try:
                check_same_origin(request.headers)
                if page.upload_bytes:
                    # Before the body: a gigabyte of a stranger is not even read.
                    await run_in_threadpool(_check_uploader, page, request, services, view)
                form = await _form(request, page.upload_bytes)
            except KeibiError as error:
                return await run_in_threadpool(_outside, request, services, view, error)
        try:
            return await run_in_threadpool(_answer, page, request, services, view, form)
        finally:
            await form.close()

    return Route(page.address, endpoint, methods=list(page.methods))


def _check_uploader(page: Page, request: Request, services: Services, view: View) -> None:
    visit = recognise(request, services, view, FormData(), must_prove=False)
    visit.principal.require(page.permission or "")


async def _form(request: Request, upload_bytes: int) -> FormData:
    most = max(MAX_FORM_BYTES, upload_bytes)
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > most:
        raise RefusedError("form_too_large", f"the form is larger than {most} bytes", hint="send less at once")
    return await request.form(max_files=1 if upload_bytes else 0, max_fields=MAX_FIELDS, max_part_size=MAX_FORM_BYTES)


def _answer(page: Page, request: Request, services: Services, view: View, form: FormData) -> Response:
    try:
        visit = recognise(request, services, view, form, must_prove=request.method == "POST" and not page.is_public)
    except KeibiError as error:
        return _outside(request, services, view, error)
    try:
        if not page.is_public:
            visit.principal  # noqa: B018 (raises when nobody is signed in)
            if page.permission:
                visit.principal.require(page.permission)
        return page.handler(visit)
    except KeibiError as error:
        return problem(visit, error)
    except HTTPException:
        raise
    except Exception:
        logger.exception("the page %s failed", request.url.path)
        broken = TryLaterError("page_failed", N_("Something in the manager went wrong; it is in its log."))
        return problem(visit, broken, status=500)


def _outside(request: Request, services: Services, view: View, error: KeibiError) -> Response:
    return problem(recognise(request, services, view, FormData(), must_prove=False, is_anonymous=True), error)


def problem(visit: Visit, error: KeibiError, status: int = 0) -> Response:
    """Return what is wrong, in place for a fragment and as a page otherwise."""
    if isinstance(error, NotSignedInError):
        return to_sign_in(visit)
    status = status or status_of(error)
    values: dict[str, Any] = {"error": error, "http_status": status}
    if visit.is_fragment:
        return visit.fragment("problem.html", status, **values)
    response = visit.page(
        "problem_page.html" if visit.someone else "problem_alone.html", title=visit._(title_of(error)), status=status, **values
    )
    if isinstance(error, TryLaterError):
        response.headers["Retry-After"] = str(round(error.retry_after_seconds))
    return response


def to_sign_in(visit: Visit) -> Response:
    """Send the browser to the sign-in page, and back here afterwards."""
    here = visit.request.url.path + (f"?{visit.request.url.query}" if visit.request.url.query else "")
    address = "/sign-in" if visit.request.method == "POST" or here == "/" else f"/sign-in?next={quote(here)}"
    if visit.is_fragment:
        return Response(status_code=200, headers={**PAGE_HEADERS, "HX-Redirect": "/sign-in"})
    return Response(status_code=303, headers={**PAGE_HEADERS, "Location": address})


def status_of(error: KeibiError) -> int:
    """Return the HTTP status that says who must act."""
    if isinstance(error, AccessError):
        return 403
    if isinstance(error, TryLaterError):
        return 503
    if isinstance(error, InputError) and error.code.endswith(("not_found", "unknown")):
        return 404
    return 422 if isinstance(error, InputError) else 400


def title_of(error: KeibiError) -> str:
    """Return the heading of a problem page."""
    if isinstance(error, AccessError):
        return N_("You may not do this")
    if isinstance(error, TryLaterError):
        return N_("Not now")
    if status_of(error) == 404:
        return N_("There is no such thing here")
    return N_("That did not work")
