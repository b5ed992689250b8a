"""Signing in and out."""

from starlette.responses import Response

from keibi.errors import AccessError, KeibiError, RefusedError, TryLaterError
from keibi.manager.access.sessions import COOKIE_NAME
from keibi.manager.console.endpoint import Page
from keibi.manager.console.language import LANGUAGES
from keibi.manager.console.security import safe_next
from keibi.manager.console.visit import LANGUAGE_COOKIE, Visit
from keibi.manager.http_guard import client_address

YEAR_SECONDS = 365 * 86400


def show(visit: Visit) -> Response:
    """Show the sign-in page; somebody who is signed in goes on."""
    next_ = safe_next(visit.query.get("next", "/"))
    if visit.someone is not None:
        return visit.go(next_)
    return _page(visit, next_, "", None)


def sign_in(visit: Visit) -> Response:
    """Start a session, or say why not."""
    name, next_ = visit.field("name"), safe_next(visit.field("next", "/"))
    try:
        signed_in = visit.services.access.sign_in(
            name,
            visit.raw_field("password"),
            visit.field("totp"),
            address=client_address(visit.request, visit.services.config.trusted_proxies),
            user_agent=visit.request.headers.get("user-agent", ""),
        )
    except (AccessError, TryLaterError, RefusedError) as error:
        return _page(visit, next_, name, error)
    address = "/account" if signed_in.principal.must_change_password else next_
    response = visit.go(address)
    response.set_cookie(COOKIE_NAME, signed_in.cookie, secure=True, httponly=True, samesite="lax", path="/")
    return response


def sign_out(visit: Visit) -> Response:
    """End the session."""
    visit.services.access.sign_out(visit.request.cookies.get(COOKIE_NAME, ""))
    response = visit.go("/sign-in")
    response.delete_cookie(COOKIE_NAME, secure=True, httponly=True, samesite="lax")
    return response


def _page(visit: Visit, next_: str, name: str, error: KeibiError | None) -> Response:
    response = visit.page(
        "sign_in.html",
        title=visit._("Sign in"),
        status=200 if error is None else 503 if isinstance(error, TryLaterError) else 401,
        next=next_,
        name=name,
        error=error,
    )
    asked = visit.query.get("language", "")
    if asked in LANGUAGES:
        response.set_cookie(LANGUAGE_COOKIE, asked, max_age=YEAR_SECONDS, secure=True, httponly=True, samesite="lax")
    return response


PAGES: tuple[Page, ...] = (
    Page("/sign-in", show, ("GET",), is_public=True),
    Page("/sign-in", sign_in, ("POST",), is_public=True),
    Page("/sign-out", sign_out, ("POST",)),
)
