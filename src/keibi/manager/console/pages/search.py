"""The palette: pages and commands by name; computers, rules and policies by what is typed."""

from dataclasses import dataclass
from urllib.parse import quote

from starlette.responses import Response

from keibi.manager.computers.model import ComputerFilter
from keibi.manager.console.endpoint import Page, get
from keibi.manager.console.language import N_
from keibi.manager.console.navigation import ADMINISTRATION, COMMANDS, EVENT_PAGES, NAVIGATION
from keibi.manager.console.visit import Visit
from keibi.manager.rules.model import RuleFilter

LIMIT = 5
MAX_CHARACTERS = 100


@dataclass(frozen=True)
class Hit:
    """One line of the palette."""

    address: str
    icon: str
    title: str
    sub: str = ""


def search(visit: Visit) -> Response:
    """Return what fits the text."""
    text = visit.query.get("q", "").strip()[:MAX_CHARACTERS]
    entries = [
        entry
        for entry in (*NAVIGATION, *EVENT_PAGES[1:], *ADMINISTRATION, *COMMANDS)
        if not entry.permission or visit.may(entry.permission)
    ]
    # Both languages count: who thinks of "policy" finds ポリシー.
    pages = [
        Hit(entry.address, entry.icon, visit._(entry.title))
        for entry in entries
        if not text or text.casefold() in visit._(entry.title).casefold() or text.casefold() in entry.title.casefold()
    ]
    groups: list[tuple[str, list[Hit]]] = [(visit._(N_("Pages and commands")), pages[:8])]
    if text and visit.may("computers.view"):
        computers = visit.services.computers.list(visit.principal, ComputerFilter(text=text), limit=LIMIT).items
        groups.append(
            (
                visit._("Computers"),
                [Hit(f"/computers/{row.computer_id}", "server", row.display_name, row.os_pretty_name) for row in computers],
            )
        )
    if text and visit.may("rules.view"):
        rules = visit.services.rules.list(visit.principal, RuleFilter(text=text), limit=LIMIT).items
        groups.append(
            (
                visit._("Rules"),
                [Hit(f"/rules/{row.rule_id}", "checklist", row.title.in_language(visit.language), row.rule_id) for row in rules],
            )
        )
    if text and visit.may("policies.view"):
        tree = visit.services.policies.tree(visit.principal)
        found = [row for row in tree if text.casefold() in row.path.casefold()][:LIMIT]
        groups.append((visit._("Policies"), [Hit(f"/policies/{row.policy_id}", "binary-tree", row.path) for row in found]))
    if text and visit.may("events.view"):
        hit = Hit(
            f"/events?q={quote(text, safe='')}", "list-search", visit._("Events with the text “%(value)s”") % {"value": text}
        )
        groups.append((visit._("Events"), [hit]))
    return visit.fragment("search_results.html", groups=[(title, hits) for title, hits in groups if hits])


PAGES: tuple[Page, ...] = (get("/search", search),)
