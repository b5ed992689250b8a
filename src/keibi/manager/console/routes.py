"""All addresses of the console."""

from starlette.routing import BaseRoute

from keibi.manager.console.endpoint import Page, route
from keibi.manager.console.live import live_route
from keibi.manager.console.pages import (
    account,
    administration,
    baseline,
    computers,
    events,
    overview,
    policies,
    rules,
    search,
    sign_in,
    tokens,
)
from keibi.manager.console.view import load_view
from keibi.manager.services import Services

PAGES: tuple[Page, ...] = (
    *sign_in.PAGES,
    *overview.PAGES,
    *baseline.PAGES,
    *policies.PAGES,
    *computers.PAGES,
    *events.PAGES,
    *rules.PAGES,
    *tokens.PAGES,
    *administration.PAGES,
    *account.PAGES,
    *search.PAGES,
)


def build_routes(services: Services) -> list[BaseRoute]:
    """Return the console's routes; `main` mounts them at "/", after those of agents and API."""
    view = load_view()
    return [view.assets.route(), live_route(services, view), *(route(page, services, view) for page in PAGES)]
