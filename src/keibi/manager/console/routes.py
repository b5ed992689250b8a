"""All addresses of the console."""

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute

from keibi.errors import InputError
from keibi.manager.console.endpoint import Page, route
from keibi.manager.console.live import live_route
from keibi.manager.console.pages import (
    account,
    administration,
    application_control,
    baseline,
    computer_malware,
    computers,
    content,
    events,
    malware,
    overview,
    policies,
    policy_files,
    retention,
    rules,
    rulesets,
    search,
    sign_in,
    software,
    tokens,
)
from keibi.manager.console.view import load_view
from keibi.manager.console.visit import Visit
from keibi.manager.services import Services

OTHERS = ("/api/", "/agent/", "/static/")


def nothing_here(visit: Visit) -> Response:
    """Answer for an address that nothing stands at: a page for people, the API's own answer for programs.

    Raises:
        InputError: always, for people. HTTPException: for programs.
    """
    path = visit.request.url.path
    if path.startswith(OTHERS):
        raise HTTPException(404)
    visit.principal  # noqa: B018 (whoever is not signed in is sent to do so first)
    raise InputError(
        "page_not_found",
        visit._("There is no page at this address."),
        hint=visit._("It may have been moved, or what it showed was removed."),
    )


PAGES: tuple[Page, ...] = (
    *sign_in.PAGES,
    *overview.PAGES,
    *baseline.PAGES,
    *policy_files.PAGES,
    *policies.PAGES,
    *application_control.PAGES,
    *computers.PAGES,
    *rulesets.PAGES,
    *software.PAGES,
    *malware.PAGES,
    *computer_malware.PAGES,
    *events.PAGES,
    *rules.PAGES,
    *content.PAGES,
    *tokens.PAGES,
    *administration.PAGES,
    *retention.PAGES,
    *account.PAGES,
    *search.PAGES,
    Page("/{path:path}", nothing_here, is_public=True),
)


def build_routes(services: Services) -> list[BaseRoute]:
    """Return the console's routes; `main` mounts them at "/", after those of agents and API."""
    view = load_view()
    return [view.assets.route(), live_route(services, view), *(route(page, services, view) for page in PAGES)]
