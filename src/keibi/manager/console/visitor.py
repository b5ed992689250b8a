"""Who is visiting: the session behind a cookie, and how that person wants to read."""

from starlette.datastructures import FormData
from starlette.requests import Request

from keibi.manager.access.model import NotSignedInError, Principal
from keibi.manager.access.sessions import COOKIE_NAME, CSRF_HEADER, check_csrf, csrf_token
from keibi.manager.console.formatting import Format, zone_named
from keibi.manager.console.language import LANGUAGES, preferred_language
from keibi.manager.console.view import View
from keibi.manager.console.visit import LANGUAGE_COOKIE, ZONE_COOKIE, Visit
from keibi.manager.services import Services

THEMES = ("system", "light", "dark")
ZONE_OF_BROWSER = "UTC"
"""The time zone of an account that never chose one: the browser's own then counts. Who wants UTC chooses "Etc/UTC"."""


def recognise(
    request: Request, services: Services, view: View, form: FormData, *, must_prove: bool, is_anonymous: bool = False
) -> Visit:
    """Return the visit of a request; with `must_prove`, only if it carries the session's CSRF token.

    Raises:
        RefusedError: the token is missing or not the session's.
    """
    cookie = request.cookies.get(COOKIE_NAME, "")
    someone = None if is_anonymous else _someone(services, cookie)
    if must_prove and someone is not None:
        sent = request.headers.get(CSRF_HEADER) or form.get("csrf") or ""
        check_csrf(cookie, sent if isinstance(sent, str) else "")
    catalogue = view.catalogues[_language(request, someone)]
    zone_name = someone.time_zone if someone else ZONE_OF_BROWSER
    if zone_name in ("", ZONE_OF_BROWSER):
        zone_name = request.cookies.get(ZONE_COOKIE, "").replace("%2F", "/") or "UTC"
    zone = zone_named(zone_name)
    known_name = getattr(zone, "key", "UTC")
    return Visit(
        request=request,
        services=services,
        view=view,
        format=Format(catalogue, zone, known_name, view.now),
        someone=someone,
        csrf_token=csrf_token(cookie) if cookie else "",
        form=form,
    )


def _someone(services: Services, cookie: str) -> Principal | None:
    if not cookie:
        return None
    try:
        return services.access.authenticate_session(cookie)
    except NotSignedInError:
        return None


def _language(request: Request, someone: Principal | None) -> str:
    asked = request.query_params.get("language") if someone is None else None
    for wanted in (asked, someone.language if someone else None, request.cookies.get(LANGUAGE_COOKIE)):
        if wanted in LANGUAGES:
            return wanted
    return preferred_language(request.headers.get("accept-language", ""))
