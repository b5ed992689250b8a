"""What a person decides for themselves: password, two-step sign-in, language, theme, time zone, sessions, customer."""

import io
import zoneinfo

import segno
from markupsafe import Markup
from starlette.responses import Response

from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.security import safe_next
from keibi.manager.console.visit import LANGUAGE_COOKIE, Visit
from keibi.manager.console.visitor import ZONE_OF_BROWSER

# In this order: most browsers also claim to be the ones after them.
BROWSERS = (("Edg/", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"))
SYSTEMS = (("Windows", "Windows"), ("Android", "Android"), ("iPhone", "iPhone"), ("Mac OS", "macOS"), ("Linux", "Linux"))
YEAR_SECONDS = 365 * 86400


def show(visit: Visit) -> Response:
    """Show the visitor's own account."""
    access = visit.services.access
    return visit.page(
        "account.html",
        title=visit._("Your account"),
        has_totp=access.second_factor.is_on(visit.principal),
        sessions=access.sessions.list(visit.principal),
        zones=_zones(visit),
        browser_name=browser_name,
        now=visit.view.now(),
    )


def password(visit: Visit) -> Response:
    """Change the visitor's password."""
    visit.services.access.users.change_own_password(visit.principal, visit.raw_field("old"), visit.raw_field("new"))
    return visit.go("/account", visit._("Your password is changed."))


def begin_two_step(visit: Visit) -> Response:
    """Show the secret as a QR code; nothing changes until a code confirms it."""
    enrolment = visit.services.access.second_factor.enrol(visit.principal)
    return visit.fragment("two_step_setup.html", qr=_qr(enrolment.uri), secret=enrolment.secret)


def confirm_two_step(visit: Visit) -> Response:
    """Turn two-step sign-in on and show the recovery codes."""
    codes = visit.services.access.second_factor.confirm(visit.principal, visit.field("code"))
    response = visit.fragment("two_step_codes.html", codes=codes)
    response.headers["HX-Retarget"] = "#two-step-slot"
    return response


def end_two_step(visit: Visit) -> Response:
    """Turn two-step sign-in off."""
    visit.services.access.second_factor.turn_off(visit.principal, visit.raw_field("password"))
    return visit.go("/account", visit._("Two-step sign-in is off."))


def preferences(visit: Visit) -> Response:
    """Keep language, theme and time zone."""
    visit.services.access.users.change_own(
        visit.principal, language=visit.field("language"), theme=visit.field("theme"), time_zone=visit.field("time_zone")
    )
    return visit.go("/account", visit._("Saved."))


def language(visit: Visit) -> Response:
    """Change the language and come back."""
    chosen = visit.field("language")
    visit.services.access.users.change_own(visit.principal, language=chosen, theme=None, time_zone=None)
    response = visit.go(safe_next(visit.field("next", "/")))
    response.set_cookie(LANGUAGE_COOKIE, chosen, max_age=YEAR_SECONDS, secure=True, httponly=True, samesite="lax")
    return response


def theme(visit: Visit) -> Response:
    """Change the theme and come back."""
    visit.services.access.users.change_own(visit.principal, language=None, theme=visit.field("theme"), time_zone=None)
    return visit.go(safe_next(visit.field("next", "/")))


def customer(visit: Visit) -> Response:
    """Look at one customer, or at all."""
    visit.services.access.sessions.choose_tenant(visit.principal, visit.field("customer") or None)
    return visit.go(safe_next(visit.field("next", "/")))


def end_session(visit: Visit) -> Response:
    """End another session of the visitor."""
    visit.services.access.sessions.end(visit.principal, visit.path("session_id"))
    return visit.go("/account", visit._("That session has ended."))


def browser_name(user_agent: str) -> str:
    """Return the words by which somebody recognises their own browser; others are shown as they call themselves."""
    browser = next((name for mark, name in BROWSERS if mark in user_agent), "")
    system = next((name for mark, name in SYSTEMS if mark in user_agent), "")
    return " · ".join(filter(None, (browser, system))) or user_agent[:60] or "–"


def _zones(visit: Visit) -> list[tuple[str, str]]:
    names = sorted(name for name in zoneinfo.available_timezones() if "/" in name and not name.startswith(("Etc/", "SystemV/")))
    return [
        (ZONE_OF_BROWSER, visit._("Like this browser")),
        ("Etc/UTC", "UTC"),
        *((name, name.replace("_", " ")) for name in names),
    ]


def _qr(uri: str) -> Markup:
    out = io.BytesIO()
    segno.make(uri, error="m").save(
        out, kind="svg", xmldecl=False, svgns=True, omitsize=True, border=2, dark="#000", light="#fff"
    )
    return Markup(out.getvalue().decode())  # noqa: S704 (made here, holds no text)


PAGES: tuple[Page, ...] = (
    get("/account", show),
    post("/account/password", password),
    post("/account/two-step", begin_two_step),
    post("/account/two-step/confirm", confirm_two_step),
    post("/account/two-step/off", end_two_step),
    post("/account/preferences", preferences),
    post("/account/language", language),
    post("/account/theme", theme),
    post("/account/customer", customer),
    post("/account/sessions/{session_id}/end", end_session),
)
