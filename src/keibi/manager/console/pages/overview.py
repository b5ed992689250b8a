"""The first page: what needs me, who is unprotected and why, what happened, is content fresh."""

from collections import Counter
from typing import Any

from starlette.responses import Response

from keibi.contract.names import Severity
from keibi.manager.console.endpoint import Page, get
from keibi.manager.console.formatting import DAY
from keibi.manager.console.names import computer_names, rule_titles
from keibi.manager.console.pages.malware import malware_counts
from keibi.manager.console.problems import GRAVE, advice, told
from keibi.manager.console.visit import Visit
from keibi.manager.events.model import EventQuery
from keibi.manager.rules.model import RuleFilter, RuleSource
from keibi.protection.catalog import MODULES

MAX_UNPROTECTED = 8
TOP_LIMIT = 5
RECENT_LIMIT = 6


def overview(visit: Visit) -> Response:
    """Show the overview, with the parts that the visitor may see."""
    values: dict[str, Any] = {"numbers": None, "unprotected": [], "unprotected_more": 0, "has_events": False, "rules_total": None}
    if visit.may("computers.view"):
        values |= _computers(visit)
    if visit.may("events.view"):
        values |= _events(visit)
        values |= malware_counts(visit)
    if visit.may("rules.view"):
        shipped = visit.services.rules.list(visit.principal, RuleFilter(source=RuleSource.SHIPPED), limit=1)
        own = visit.services.rules.list(visit.principal, RuleFilter(source=RuleSource.OWN), limit=1)
        values |= {"rules_total": shipped.total, "own_total": own.total}
    return visit.page("overview.html", title=visit._("Overview"), **values)


def _computers(visit: Visit) -> dict[str, Any]:
    service = visit.services.computers
    found = service.unprotected(visit.principal)
    by_computer: dict[str, tuple[Any, list[Any]]] = {}
    for computer, problem in found:
        by_computer.setdefault(computer.computer_id, (computer, []))[1].append(problem)
    rows = sorted(by_computer.values(), key=lambda row: not any(problem.code in GRAVE for problem in row[1]))
    return {
        "numbers": service.overview(visit.principal),
        "unprotected": rows[:MAX_UNPROTECTED],
        "unprotected_more": max(0, len(rows) - MAX_UNPROTECTED),
        "problem_words": lambda problem: told(visit.catalogue, problem),
        "problem_advice": lambda problem: advice(visit.catalogue, problem),
        "grave": GRAVE,
        "problem_counts": Counter(problem.code for _, problem in found),
    }


def _events(visit: Visit) -> dict[str, Any]:
    service = visit.services.events
    since = visit.view.now() - DAY
    day = EventQuery(since=since)
    grave = EventQuery(since=since, severity_at_least=Severity.HIGH)
    recent = service.search(visit.principal, grave, limit=RECENT_LIMIT)
    top_computers = service.top(visit.principal, day, "computer_id", TOP_LIMIT)
    top_rules = service.top(visit.principal, day, "rule_id", TOP_LIMIT)
    return {
        "has_events": True,
        "software_open": visit.services.software.open_count(visit.principal),
        "grave_count": service.count(visit.principal, grave),
        "day_count": service.count(visit.principal, day),
        "recent": recent.items,
        "top_computers": top_computers,
        "top_rules": top_rules,
        "computer_names": computer_names(
            visit, {event.computer_id for event in recent.items} | {row.value for row in top_computers}
        ),
        "rule_titles": rule_titles(visit, {row.value for row in top_rules}),
        "charts": [
            {
                "title": module.title.in_language(visit.language),
                "address": f"/events/series?period=24h&module={module.module.value}",
                "summary": visit._("Events of the last 24 hours by severity"),
            }
            for module in MODULES
        ],
    }


PAGES: tuple[Page, ...] = (get("/", overview),)
