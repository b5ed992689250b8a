"""The list of computers and what one of them is, in tabs."""

from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response

from keibi.contract.commands import CommandKind
from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.computers.model import ComputerChange, ComputerDetail, ComputerFilter, ComputerState
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.language import N_
from keibi.manager.console.names import group_paths, policy_choices, policy_paths
from keibi.manager.console.pages.events import row_values
from keibi.manager.console.problems import GRAVE, advice, detail, told
from keibi.manager.console.visit import Visit
from keibi.manager.events.model import EventQuery

PAGE_LIMIT = 50
EVENTS_LIMIT = 30
ALARMS_LIMIT = 200
MAX_ASSIGNED = 10_000
MAINTENANCE_LENGTHS = {
    "15": N_("15 minutes"),
    "30": N_("30 minutes"),
    "60": N_("1 hour"),
    "120": N_("2 hours"),
    "240": N_("4 hours"),
    "480": N_("8 hours"),
    "1440": N_("1 day"),
}
SORTS = ("name", "last_heartbeat_at", "problems")
FILTERS = ("text", "state", "group", "policy", "problems")


def computers(visit: Visit) -> Response:
    """List computers, narrowed by what stands in the address."""
    filters = _filter_of(visit.query)
    page = visit.services.computers.list(visit.principal, filters, visit.query.get("cursor"), PAGE_LIMIT)
    return visit.page(
        "computers.html",
        title=visit._("Computers"),
        page=page,
        filters=filters,
        is_filtered=any(visit.query.get(name) for name in FILTERS),
        filter_query=visit.request.url.query,
        groups=group_paths(visit),
        policies=policy_paths(visit),
        assignable=policy_choices(visit) if visit.may("computers.manage") else [],
        maintenance_lengths=[(key, visit._(word)) for key, word in MAINTENANCE_LENGTHS.items()],
        numbers=visit.services.computers.overview(visit.principal),
        grave=GRAVE,
        problem_words=lambda problem: told(visit.catalogue, problem),
    )


def summary(visit: Visit) -> Response:
    """Show what a computer is and how it is protected."""
    computer = _computer(visit)
    return _tab(
        visit,
        computer,
        "computer_summary.html",
        groups=group_paths(visit),
        alarms=[
            alarm
            for alarm in visit.services.computers.alarms.list(visit.principal, limit=ALARMS_LIMIT).items
            if alarm.computer_id == computer.computer_id
        ],
        grave=GRAVE,
        problem_words=lambda problem: told(visit.catalogue, problem),
        problem_advice=lambda problem: advice(visit.catalogue, problem),
        computer_problems=sorted(computer.problems, key=lambda problem: problem.code not in GRAVE),
        problem_detail=lambda problem: detail(visit.catalogue, problem),
    )


def events(visit: Visit) -> Response:
    """Show a computer's events."""
    computer = _computer(visit)
    query = EventQuery(computer_ids=(computer.computer_id,))
    page = visit.services.events.search(visit.principal, query, visit.query.get("cursor"), EVENTS_LIMIT)
    page = type(page)(page.items, page.next_cursor, visit.services.events.count(visit.principal, query))
    values = row_values(visit, page.items)
    values["columns"] = ("time", "severity", "what", "rule", "user")
    return _tab(visit, computer, "computer_events.html", page=page, **values)


def change(visit: Visit) -> Response:
    """Change what people decide about a computer."""
    computer_id = visit.path("computer_id")
    visit.services.computers.change(
        visit.principal,
        computer_id,
        ComputerChange(
            display_name=visit.field("display_name"),
            group_id=visit.field("group") or None,
            policy_id=visit.field("policy") or None,
            importance=visit.field("importance"),
            tags=tuple(visit.field("tags").replace(",", " ").split()),
            note=visit.field("note"),
        ),
        visit.number_field("version", 0) or None,
    )
    return visit.go(f"/computers/{computer_id}", visit._("Saved."))


def set_enabled(visit: Visit) -> Response:
    """Refuse or accept a computer's agent."""
    computer_id = visit.path("computer_id")
    visit.services.computers.set_enabled(visit.principal, computer_id, visit.field("enabled") == "yes")
    return visit.go(f"/computers/{computer_id}", visit._("Saved."))


def resolve_alarm(visit: Visit) -> Response:
    """Say that an identity alarm was dealt with."""
    visit.services.computers.alarms.resolve(visit.principal, visit.path("alarm_id"))
    return visit.go(f"/computers/{visit.path('computer_id')}", visit._("Saved."))


def remove(visit: Visit) -> Response:
    """Forget a computer."""
    visit.services.computers.remove(visit.principal, visit.path("computer_id"))
    return visit.go("/computers", visit._("The computer is removed."))


def preview_assign(visit: Visit) -> Response:
    """Show what giving the chosen computers another policy would do, before it does."""
    computer_ids = chosen_computers(visit)
    if not computer_ids:
        raise InputError("nothing_chosen", "no computer is chosen", where="computer", hint="choose at least one")
    policy_id = visit.field("policy")
    found = visit.services.policies.computers.preview_assign(visit.principal, policy_id or None, computer_ids)
    return visit.fragment(
        "policy_preview.html",
        preview=found,
        change_json="",
        apply_address="/computers/assign",
        extra_fields={"computers": " ".join(computer_ids), "policy": policy_id, "filter": visit.field("filter")},
        apply_word=visit._("Assign it"),
        back_word=visit._("Cancel"),
    )


def assign(visit: Visit) -> Response:
    """Give computers the policy that the preview showed."""
    found = visit.services.policies.computers.assign(
        visit.principal, visit.field("policy") or None, visit.field("computers").split()
    )
    count = found.computer_count
    words = visit.catalogue.ngettext("Saved. It reaches %(count)s computer.", "Saved. It reaches %(count)s computers.", count)
    query = visit.field("filter")
    return visit.go("/computers" + (f"?{query}" if query else ""), words % {"count": visit.format.number(count)})


def create_group(visit: Visit) -> Response:
    """Make a group of computers."""
    visit.services.computers.groups.create(visit.principal, visit.field("name"), visit.field("parent") or None)
    return visit.go("/computers", visit._("The group is made."))


def remove_group(visit: Visit) -> Response:
    """Remove an empty group."""
    visit.services.computers.groups.remove(visit.principal, visit.field("group"))
    return visit.go("/computers", visit._("The group is removed."))


def send_command(visit: Visit) -> Response:
    """Ask a computer's agent for something and go to where its progress is shown."""
    computer_id = visit.path("computer_id")
    try:
        kind = CommandKind(visit.field("kind"))
    except ValueError as error:
        raise InputError("command_unknown_kind", f"{visit.field('kind')[:40]!r} is no command", where="kind") from error
    module = None if kind is CommandKind.DIAGNOSE else ModuleId.INTEGRITY_MONITORING
    visit.services.commands.send(visit.principal, computer_id, kind, module, _arguments(visit, kind))
    return visit.go(f"/computers/{computer_id}/commands", visit._("Sent to the computer."))


def commands(visit: Visit) -> Response:
    """Show the commands of a computer with their progress."""
    computer = _computer(visit)
    page = visit.services.commands.list(visit.principal, computer_id=computer.computer_id, cursor=visit.query.get("cursor"))
    if visit.is_fragment:
        return visit.fragment("command_rows.html", page=page, computer=computer)
    return _tab(visit, computer, "computer_commands.html", page=page)


def command(visit: Visit) -> Response:
    """Show one command with its result."""
    found = visit.services.commands.get(visit.principal, visit.path("command_id"))
    computer = visit.services.computers.get(visit.principal, found.computer_id)
    return _tab(
        visit,
        computer,
        "computer_command.html",
        command=found,
        result_json=msgspec.json.format(msgspec.json.encode(found.result), indent=2).decode(),
    )


def tab_values(visit: Visit, computer: ComputerDetail) -> dict[str, Any]:
    """Return what the head of a computer's page needs."""
    return {"computer": computer, "policies": policy_paths(visit)}


def _tab(visit: Visit, computer: ComputerDetail, template: str, **values: Any) -> Response:
    return visit.page(template, title=computer.display_name, **{**tab_values(visit, computer), **values})


def _computer(visit: Visit) -> ComputerDetail:
    return visit.services.computers.get(visit.principal, visit.path("computer_id"))


def _filter_of(query: QueryParams) -> ComputerFilter:
    """Return the filter that an address says; what it does not know is left out."""
    sort = query.get("sort", "name")
    return ComputerFilter(
        text=query.get("text", "").strip(),
        states=tuple(ComputerState(state) for state in query.getlist("state") if state in set(ComputerState)),
        group_id=query.get("group") or None,
        policy_ids=tuple(policy for policy in query.getlist("policy") if policy),
        has_problems=True if query.get("problems") == "yes" else None,
        sort=sort if sort in SORTS else "name",
        is_descending=sort in ("last_heartbeat_at", "problems"),
    )


def chosen_computers(visit: Visit) -> list[str]:
    """Return the chosen computers: those ticked, or all that fit the filter."""
    if visit.field("all") != "on":
        return visit.fields("computer")
    filters = _filter_of(QueryParams(visit.field("filter")))
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page = visit.services.computers.list(visit.principal, filters, cursor, 1000)
        ids += [computer.computer_id for computer in page.items]
        cursor = page.next_cursor
        if len(ids) > MAX_ASSIGNED:
            raise InputError(
                "too_many_computers", f"more than {MAX_ASSIGNED} computers fit this filter", hint="narrow the filter first"
            )
        if cursor is None:
            return ids


def _arguments(visit: Visit, kind: CommandKind) -> dict[str, Any]:
    if kind is CommandKind.COMPARE_BASELINE:
        return {"before": visit.number_field("before", 0), "after": visit.number_field("after", 0)}
    return {}


PAGES: tuple[Page, ...] = (
    get("/computers", computers, "computers.view"),
    post("/computers/assign/preview", preview_assign, "computers.manage"),
    post("/computers/assign", assign, "computers.manage"),
    post("/computers/groups", create_group, "computers.manage"),
    post("/computers/groups/remove", remove_group, "computers.manage"),
    get("/computers/{computer_id}", summary, "computers.view"),
    get("/computers/{computer_id}/events", events, "events.view"),
    get("/computers/{computer_id}/commands", commands, "computers.view"),
    post("/computers/{computer_id}/commands", send_command, "commands.run"),
    get("/computers/{computer_id}/commands/{command_id}", command, "computers.view"),
    post("/computers/{computer_id}", change, "computers.manage"),
    post("/computers/{computer_id}/state", set_enabled, "computers.manage"),
    post("/computers/{computer_id}/alarms/{alarm_id}", resolve_alarm, "computers.manage"),
    post("/computers/{computer_id}/remove", remove, "computers.manage"),
)
