"""The events explorer and the page of one event."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response, StreamingResponse

from keibi.errors import InputError
from keibi.manager.console.deciding import find_group, key_of, program_address
from keibi.manager.console.differences import attribute_changes, difference_lines
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.filters import (
    COLUMNS,
    NAMES,
    ORDERS,
    PERIODS,
    SEVERITIES,
    TEXT_NAMES,
    EventFilter,
    address_of,
    columns_of,
    parse_filter,
)
from keibi.manager.console.labels import label, module_title
from keibi.manager.console.language import N_
from keibi.manager.console.malware_events import malware_values
from keibi.manager.console.names import computer_choices, computer_names, rule_titles
from keibi.manager.console.runbooks import runbook_of
from keibi.manager.console.security import PAGE_HEADERS
from keibi.manager.console.visit import Visit
from keibi.manager.events.model import EventRow, SeriesKey
from keibi.protection.catalog import MODULES

PAGE_LIMIT = 50
AROUND_LIMIT = 6
SERIES_BUCKETS = 60
TEXT_CHIPS = {
    "q": N_("with the text “%(value)s”"),
    "rule": N_("by the rule %(value)s"),
    "tag": N_("tagged %(value)s"),
    "user": N_("by the user %(value)s"),
    "process": N_("by the process %(value)s"),
    "subject": N_("about %(value)s"),
}


def explorer(visit: Visit) -> Response:
    """Show the events that fit the filter in the address."""
    if any(visit.query.get(name) for name in ("computer_name", "from", "to")):
        return visit.go(_with_resolved_fields(visit))
    filter_ = parse_filter(visit.query)
    query = filter_.query(visit.view.now())
    page = visit.services.events.search(visit.principal, query, visit.query.get("cursor"), PAGE_LIMIT)
    total = visit.services.events.count(visit.principal, query)
    page = type(page)(page.items, page.next_cursor, total)
    filter_query = urlencode([(name, value) for name, value in visit.query.multi_items() if name in NAMES and value])
    is_live = visit.query.get("live") == "on"
    return visit.page(
        "events.html",
        title=visit._("Events"),
        page=page,
        is_live=is_live,
        filter_query=filter_query,
        csv_address=address_of(visit.query, "/events.csv", columns=None),
        tail_address=address_of(visit.query, "/events/tail"),
        chart=_chart(visit, "/events/series" + ("?" + filter_query if filter_query else ""), N_("Events over time by severity")),
        tags=visit.services.events.tags.in_use(visit.principal)[:50] if visit.may("events.tag") else [],
        **_filter_values(visit, filter_),
        **row_values(visit, page.items),
    )


def series(visit: Visit) -> Response:
    """Return the counts for a chart, as JSON with the words of the reader's language."""
    filter_ = parse_filter(visit.query)
    by: SeriesKey = "module" if visit.query.get("by") == "module" else "severity"
    found = visit.services.events.series(
        visit.principal, filter_.query(visit.view.now()), SERIES_BUCKETS, by, visit.format.zone_name
    )
    by_key = {line.key: line.counts for line in found.lines}
    order = ["critical", "high", "medium", "low"] if by == "severity" else sorted(by_key)
    zeros = (0,) * len(found.starts_at)
    lines = [
        {
            "key": key,
            "label": label(visit.catalogue, "severity", key) if by == "severity" else module_title(visit.catalogue, key),
            "counts": by_key.get(key, zeros),
        }
        for key in order
    ]
    return JSONResponse(
        {
            "starts_at": found.starts_at,
            "step_seconds": found.step_seconds,
            "lines": lines,
            "total": found.total,
            "drill": address_of(visit.query, "/events"),
        },
        headers=dict(PAGE_HEADERS),
    )


def csv(visit: Visit) -> Response:
    """Send all events of the filter as a CSV file."""
    query = parse_filter(visit.query).query(visit.view.now())
    lines = visit.services.events.export_csv(visit.principal, query, visit.language)
    name = datetime.fromtimestamp(visit.view.now(), visit.format.zone).strftime("keibi-events-%Y%m%d-%H%M.csv")
    headers = {**PAGE_HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_encoded(lines), media_type="text/csv; charset=utf-8", headers=headers)


def one(visit: Visit) -> Response:
    """Show one event with everything about it."""
    event = visit.services.events.get(visit.principal, visit.path("event_id"))
    near = visit.services.events.around(visit.principal, event.event_id, AROUND_LIMIT)
    record = event.details
    rule = None
    if event.rule_id and visit.may("rules.view"):
        try:
            rule = visit.services.rules.get(visit.principal, event.rule_id)
        except InputError:
            rule = None  # deleted since; the event keeps the id
    around: list[EventRow] = [*reversed(near.before), event, *near.after]
    software_key = key_of(event)
    return visit.page(
        "event.html",
        title=str(visit._("Event")),
        event=event,
        record=record,
        rule=rule,
        around=around,
        computer_name=computer_names(visit, [event.computer_id]).get(event.computer_id, event.computer_id[:8]),
        rule_titles=rule_titles(visit, record.get("matching_rules") or []),
        lines=difference_lines(str(record.get("difference") or "")),
        changes=attribute_changes(
            record.get("before") or {}, record.get("after") or {}, list(record.get("changed_attributes") or [])
        ),
        details_json=json.dumps(msgspec.to_builtins(event), indent=2, ensure_ascii=False),
        process_chain=_chain(record),
        malware=malware_values(visit, event),
        runbook=runbook_of(event.kind, event.action),
        software_key=software_key,
        software_group=find_group(visit, event.tenant_id, software_key),
        software_address=program_address(event.tenant_id, software_key) if software_key else "",
    )


def _chain(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the processes that led to an event, the nearest first; what is of another shape is left out."""
    chain = record.get("process_chain")
    return [one for one in chain if isinstance(one, dict)] if isinstance(chain, list) else []


def tag_one(visit: Visit) -> Response:
    """Put a tag on one event, or take it off."""
    event_id = visit.path("event_id")
    change = visit.services.events.tags.remove if visit.field("change") == "remove" else visit.services.events.tags.add
    change(visit.principal, [event_id], visit.field("tag"))
    return visit.go(f"/events/{event_id}", visit._("Saved."))


def preview_tags(visit: Visit) -> Response:
    """Show how many events a bulk change would touch, before it does."""
    ids = _chosen(visit)
    tag = visit.field("tag")
    if not tag:
        raise InputError("tag_invalid", visit._("Write a tag first."), where="tag")
    return visit.fragment(
        "events_tag_preview.html", ids=ids, tag=tag, change=visit.field("change") or "add", filter_query=visit.field("filter")
    )


def apply_tags(visit: Visit) -> Response:
    """Do what the preview said."""
    ids = [event_id for value in visit.fields("ids") for event_id in value.split()]
    change = visit.services.events.tags.remove if visit.field("change") == "remove" else visit.services.events.tags.add
    count = change(visit.principal, ids, visit.field("tag"))
    words = visit.catalogue.ngettext("%(count)s event was changed.", "%(count)s events were changed.", count)
    return visit.go("/events?" + visit.field("filter"), words % {"count": visit.format.number(count)})


def row_values(visit: Visit, events: Any) -> dict[str, Any]:
    """Return what `event_rows.html` needs to name computers and rules."""
    return {
        "columns": columns_of(visit.query),
        "column_words": COLUMNS,
        "computer_names": computer_names(visit, {event.computer_id for event in events}),
        "rule_titles": rule_titles(visit, {event.rule_id for event in events if event.rule_id}),
    }


def _filter_values(visit: Visit, filter_: EventFilter) -> dict[str, Any]:
    columns = columns_of(visit.query)

    def column_address(name: str) -> str:
        chosen = [column for column in COLUMNS if (column in columns) != (column == name)]
        return address_of(visit.query, columns=",".join(chosen))

    def without(name: str, value: str) -> str:
        left = [(key, item) for key, item in visit.query.multi_items() if (key, item) != (name, value)]
        return address_of(QueryParams(left))

    words: dict[str, str] = {name: visit._(text) for name, text in TEXT_CHIPS.items()}
    chips = [(name, words[name] % {"value": getattr(filter_, name)}) for name in TEXT_NAMES if getattr(filter_, name)]
    if filter_.kinds:
        chips.append(("kind", ", ".join(filter_.kinds)))
    return {
        "filter": filter_,
        "is_filtered": any(visit.query.get(name) for name in NAMES),
        "address": lambda **changes: address_of(visit.query, **changes),
        "without": without,
        "kept": lambda *names: visit.hidden_fields([name for name in (*NAMES, "columns") if name not in names]),
        "column_address": column_address,
        "columns_all": list(COLUMNS.items()),
        "text_chips": chips,
        "severities": SEVERITIES,
        "severity_choices": [(key, visit._(word)) for key, word in SEVERITIES.items()],
        "periods": {key: word for key, (word, _) in PERIODS.items()},
        "period_choices": [(key, visit._(word)) for key, (word, _) in PERIODS.items()],
        "orders": ORDERS,
        "order_choices": [(key, visit._(word)) for key, word in ORDERS.items()],
        "modules": [
            ("", visit._("every event")),
            *((module.module.value, module.title.in_language(visit.language)) for module in MODULES),
        ],
        "computers": computer_choices(visit),
        "span_words": _span_words(visit, filter_),
        "from_value": _local(visit, filter_.since),
        "to_value": _local(visit, filter_.until),
    }


def _span_words(visit: Visit, filter_: EventFilter) -> str:
    if not filter_.has_span:
        return ""
    since = visit.format.moment(filter_.since) if filter_.since is not None else "…"
    until = visit.format.moment(filter_.until) if filter_.until is not None else "…"
    return f"{since} – {until}"


def _local(visit: Visit, at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, visit.format.zone).strftime("%Y-%m-%dT%H:%M")


def _with_resolved_fields(visit: Visit) -> str:
    """Turn what a person writes (a computer's name, local times) into what the address keeps."""
    changes: dict[str, str | None] = {}
    name = visit.query.get("computer_name", "").strip()
    if name:
        found = next((choice for choice in computer_choices(visit) if choice["name"].casefold() == name.casefold()), None)
        if found is None:
            raise InputError("computer_not_found", f"there is no computer {name[:60]!r}", hint="choose one from the list")
        changes["computer"] = found["computer_id"]
    for field, key in (("from", "since"), ("to", "until")):
        text = visit.query.get(field, "")
        if text:
            try:
                at = datetime.fromisoformat(text).replace(tzinfo=visit.format.zone).timestamp()
            except ValueError as error:
                raise InputError("time_invalid", f"{text[:40]!r} is not a time", where=field) from error
            changes[key] = str(int(at))
            changes["period"] = None
    return address_of(visit.query, "/events", **changes)


def _chosen(visit: Visit) -> list[str]:
    """Return the chosen events: those ticked, or all that fit the filter."""
    if visit.field("all") != "on":
        return visit.fields("event")
    query = parse_filter(QueryParams(visit.field("filter"))).query(visit.view.now())
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page = visit.services.events.search(visit.principal, query, cursor, 1000)
        ids += [event.event_id for event in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return ids
        if len(ids) >= 10_000:
            raise InputError(
                "events_too_many", visit._("More than 10,000 events fit this filter."), hint=visit._("Narrow it first.")
            )


def _chart(visit: Visit, address: str, summary: str) -> dict[str, str]:
    return {"address": address, "summary": visit._(summary)}


def _encoded(lines: Iterator[str]) -> Iterator[bytes]:
    for line in lines:
        yield line.encode()


PAGES: tuple[Page, ...] = (
    get("/events", explorer, "events.view"),
    get("/events/series", series, "events.view"),
    get("/events.csv", csv, "events.view"),
    post("/events/tags/preview", preview_tags, "events.tag"),
    post("/events/tags", apply_tags, "events.tag"),
    get("/events/{event_id}", one, "events.view"),
    post("/events/{event_id}/tags", tag_one, "events.tag"),
)
