"""Software changes of the fleet: looked through in groups, allowed or blocked after a preview, and what was decided."""

from collections.abc import Mapping
from types import MappingProxyType

from starlette.responses import Response

from keibi.errors import InputError
from keibi.manager.computers.model import ComputerFilter
from keibi.manager.console.deciding import (
    TEXT_FILTERS,
    action_of,
    back_of,
    chosen_entries,
    decide_values,
    entries_in,
    entry_words,
    filter_of,
    group_of,
    grouping_of,
    show_preview,
    title_of,
)
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.filters import PERIODS
from keibi.manager.console.language import N_
from keibi.manager.console.names import computer_names
from keibi.manager.console.visit import Visit
from keibi.manager.software.model import ChangeFilter, DecisionRequest, Standing
from keibi.protection.application_control.rules import RuleAction

PAGE_LIMIT = 50
STANDINGS: Mapping[str, str] = MappingProxyType(
    {
        "open": N_("that nobody has decided on"),
        "blocked": N_("that is blocked"),
        "allowed": N_("that is allowed"),
        "recognised": N_("that the agents trust by themselves"),
        "all": N_("of every standing"),
    }
)
GROUPINGS: Mapping[str, str] = MappingProxyType(
    {"hash": N_("by content"), "computer": N_("by computer"), "bringer": N_("by who brought it")}
)
NAMES = ("text", "standing", "by", "period", "computer", "computer_name", *TEXT_FILTERS)
TEXT_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "path": N_("at %(value)s"),
        "file": N_("called %(value)s"),
        "package": N_("of the package %(value)s"),
        "process": N_("brought by %(value)s"),
        "user": N_("by the user %(value)s"),
        "sha256": N_("with the hash %(value)s"),
    }
)


def changes(visit: Visit) -> Response:
    """Show groups of software that appeared, changed, was blocked or would have been."""
    name = visit.query.get("computer_name", "").strip()
    if name:
        found = visit.services.computers.list(visit.principal, ComputerFilter(text=name), limit=50).items
        exact = [one for one in found if name.casefold() in (one.display_name.casefold(), one.hostname.casefold())]
        if not exact:
            raise InputError("computer_not_found", f"there is no computer {name[:60]!r}", hint="choose one from the list")
        return visit.go(visit.address_with(computer_name=None, computer=exact[0].computer_id))
    filters, by = filter_of(visit.query, visit.view.now()), grouping_of(visit.query)
    page = visit.services.software.changes(visit.principal, filters, by, visit.query.get("cursor"), PAGE_LIMIT)
    shown = {computer_id for group in page.items for computer_id in group.computer_ids} | set(filters.computer_ids)
    return visit.page(
        "software_changes.html",
        title=visit._("Software changes"),
        page=page,
        by=by,
        standing=visit.query.get("standing") or Standing.OPEN.value,
        period=visit.query.get("period", "all"),
        text=visit.query.get("text", "").strip(),
        is_filtered=any(visit.query.get(name) for name in NAMES),
        filter_query=visit.request.url.query,
        standing_choices=[(key, visit._(word)) for key, word in STANDINGS.items()],
        grouping_choices=[(key, visit._(word)) for key, word in GROUPINGS.items()],
        period_choices=[(key, visit._(word)) for key, (word, _) in PERIODS.items()],
        chips=[(key, visit._(TEXT_WORDS[key]) % {"value": visit.query[key]}) for key in TEXT_FILTERS if visit.query.get(key)],
        chosen_computers=filters.computer_ids,
        computer_names=computer_names(visit, shown),
        **decide_values(visit),
    )


def program(visit: Visit) -> Response:
    """Show one group: every place where it is, who brought it there, and what was decided."""
    key, tenant_id = visit.query.get("key", ""), visit.query.get("tenant", "")
    group = group_of(visit, tenant_id, key)
    filters = ChangeFilter(sha256=group.sha256) if group.sha256 else ChangeFilter(path=key.partition(":")[2])
    who = visit.principal.in_tenant(group.tenant_id)
    places = visit.services.software.changes(who, filters, "place", visit.query.get("cursor"), PAGE_LIMIT)
    return visit.page(
        "software_program.html",
        title=title_of(group),
        group=group,
        places=places,
        page=places,
        computer_names=computer_names(visit, {one.computer_ids[0] for one in places.items}),
        **decide_values(visit),
    )


def preview(visit: Visit) -> Response:
    """Show what allowing or blocking would do, before it is done."""
    action = action_of(visit)
    tenant_id, entries = chosen_entries(visit, action)
    request = DecisionRequest(
        action=action,
        entries=tuple(entries),
        rule_id=visit.field("ruleset"),
        policy_ids=tuple(policy for policy in visit.fields("policy") if policy),
        note=visit.field("note"),
    )
    return show_preview(visit, request, tenant_id, visit.field("back"))


def decide(visit: Visit) -> Response:
    """Do what the preview showed."""
    action = action_of(visit)
    request = DecisionRequest(
        action=action,
        entries=tuple(entries_in(visit.raw_field("entries"))),
        rule_id=visit.field("ruleset"),
        policy_ids=tuple(policy for policy in visit.fields("policy") if policy),
        note=visit.field("note"),
    )
    made = visit.services.software.decisions.decide(visit.principal, request, visit.field("tenant") or None)
    count = made.computer_count
    if action is RuleAction.BLOCK:
        words = visit.catalogue.ngettext(
            "Blocked. It reaches %(count)s computer.", "Blocked. It reaches %(count)s computers.", count
        )
    else:
        words = visit.catalogue.ngettext(
            "Allowed. It reaches %(count)s computer.", "Allowed. It reaches %(count)s computers.", count
        )
    return visit.go(back_of(visit), words % {"count": visit.format.number(count)})


def decisions(visit: Visit) -> Response:
    """List what was decided, with a way back."""
    page = visit.services.software.decisions.list(visit.principal, visit.query.get("cursor"), PAGE_LIMIT)
    return visit.page(
        "software_decisions.html",
        title=visit._("Decisions"),
        page=page,
        shown={one.decision_id: [entry_words(entry) for entry in one.entries[:3]] for one in page.items},
    )


def preview_undo(visit: Visit) -> Response:
    """Show what undoing a decision would do."""
    decision = visit.services.software.decisions.get(visit.principal, visit.path("decision_id"))
    found = visit.services.software.decisions.preview_undo(visit.principal, decision.decision_id)
    return visit.fragment("software_undo.html", decision=decision, preview=found)


def undo(visit: Visit) -> Response:
    """Undo a decision."""
    visit.services.software.decisions.undo(
        visit.principal, visit.path("decision_id"), visit.number_field("expected_version", 0) or None
    )
    return visit.go("/events/software/decisions", visit._("Undone."))


PAGES: tuple[Page, ...] = (
    get("/events/software", changes, "events.view"),
    get("/events/software/program", program, "events.view"),
    post("/events/software/decide/preview", preview, "software.decide"),
    post("/events/software/decide", decide, "software.decide"),
    get("/events/software/decisions", decisions, "rules.view"),
    post("/events/software/decisions/{decision_id}/undo/preview", preview_undo, "software.decide"),
    post("/events/software/decisions/{decision_id}/undo", undo, "software.decide"),
)
