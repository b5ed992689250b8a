"""The filter of the events page: it stands in the address, and reads as a sentence made of chips."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from keibi.contract.events import EventAction
from keibi.contract.names import ModuleId, Severity
from keibi.errors import InputError
from keibi.manager.console.formatting import DAY, HOUR
from keibi.manager.console.language import N_
from keibi.manager.events.model import EventQuery

PERIODS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "1h": (N_("in the last hour"), HOUR),
        "24h": (N_("in the last 24 hours"), DAY),
        "7d": (N_("in the last 7 days"), 7 * DAY),
        "30d": (N_("in the last 30 days"), 30 * DAY),
        "all": (N_("at any time"), 0),
    }
)
DEFAULT_PERIOD = "7d"
SEVERITIES: Mapping[str, str] = MappingProxyType(
    {
        "": N_("of any severity"),
        "medium": N_("of medium severity and above"),
        "high": N_("of high severity and above"),
        "critical": N_("of critical severity"),
    }
)
ORDERS: Mapping[str, str] = MappingProxyType({"": N_("newest first"), "oldest": N_("oldest first")})
COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "time": N_("Detected"),
        "severity": N_("Severity"),
        "what": N_("What happened"),
        "computer": N_("Computer"),
        "rule": N_("Rule"),
        "user": N_("User"),
        "process": N_("Process"),
        "changed": N_("Changed"),
        "tags": N_("Tags"),
    }
)
DEFAULT_COLUMNS = ("time", "severity", "what", "computer", "rule")
TEXT_NAMES = ("q", "rule", "tag", "user", "process", "subject")
NAMES = ("module", "kind", "severity", "action", "computer", *TEXT_NAMES, "period", "since", "until", "order")


@dataclass(frozen=True)
class EventFilter:
    """The filter as it stands in an address; empty values do not filter."""

    module: str = ""
    kinds: tuple[str, ...] = ()
    severity: str = ""
    action: str = ""
    computer_ids: tuple[str, ...] = ()
    q: str = ""
    rule: str = ""
    tag: str = ""
    user: str = ""
    process: str = ""
    subject: str = ""
    period: str = DEFAULT_PERIOD
    since: float | None = None
    until: float | None = None
    order: Literal["newest", "oldest"] = "newest"

    def query(self, now: float) -> EventQuery:
        """Return what to ask the event service, with the period counted back from `now`.

        Raises:
            InputError: a value of the address is not one of its closed set.
        """
        since = self.since
        if since is None and self.until is None and PERIODS[self.period][1]:
            since = now - PERIODS[self.period][1]
        return EventQuery(
            module=_member(ModuleId, self.module, "module"),
            kinds=self.kinds,
            severity_at_least=_member(Severity, self.severity, "severity"),
            action=_member(EventAction, self.action, "action"),
            computer_ids=self.computer_ids,
            text=self.q,
            rule_id=self.rule,
            subject=self.subject,
            tag=self.tag,
            user=self.user,
            process=self.process,
            since=since,
            until=self.until,
            order=self.order,
        )

    @property
    def has_span(self) -> bool:
        """Whether an exact span of time is given, in place of a period up to now."""
        return self.since is not None or self.until is not None


def parse_filter(query: QueryParams) -> EventFilter:
    """Return the filter of an address.

    Raises:
        InputError: a value cannot be understood.
    """
    period = query.get("period") or DEFAULT_PERIOD
    if period not in PERIODS:
        raise InputError(
            "period_unknown", f"{period[:40]!r} is no period", where="period", hint=f"use one of {', '.join(PERIODS)}"
        )
    return EventFilter(
        module=query.get("module", ""),
        kinds=tuple(kind for kind in query.getlist("kind") if kind),
        severity=query.get("severity", ""),
        action=query.get("action", ""),
        computer_ids=tuple(computer for computer in query.getlist("computer") if computer),
        **{name: query.get(name, "").strip() for name in TEXT_NAMES},
        period=period,
        since=_moment(query.get("since"), "since"),
        until=_moment(query.get("until"), "until"),
        order="oldest" if query.get("order") == "oldest" else "newest",
    )


def address_of(filters: QueryParams, path: str = "/events", **changes: str | None) -> str:
    """Return the address of a page of events with the same filter, changed in some places. The cursor is left out."""
    kept = [
        (name, value) for name, value in filters.multi_items() if name in (*NAMES, "columns") and name not in changes and value
    ]
    kept += [(name, value) for name, value in changes.items() if value]
    return path + ("?" + urlencode(kept) if kept else "")


def columns_of(query: QueryParams) -> tuple[str, ...]:
    """Return the chosen columns in their fixed order."""
    chosen = [name for value in query.getlist("columns") for name in value.split(",")]
    return tuple(name for name in COLUMNS if name in chosen) or DEFAULT_COLUMNS


def _moment(text: str | None, where: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InputError("time_invalid", f"{text[:40]!r} is not a time in seconds since 1970", where=where) from error


def _member(type_: type, value: str, where: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    if not value:
        return None
    try:
        return type_(value)
    except ValueError as error:
        raise InputError(f"{where}_unknown_value", f"{value[:40]!r} is no {where}", where=where) from error
