"""For how long events are kept: the rules of each customer, changed after a look at what would go."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response

from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.labels import module_title
from keibi.manager.console.visit import Visit
from keibi.manager.events.model import EventQuery, RetentionRule
from keibi.manager.events.retention import DEFAULT_DAYS, MAX_DAYS
from keibi.protection.catalog import MODULES

DAY_SECONDS = 86400
ADDRESS = "/administration/retention"


@dataclass(frozen=True)
class RetentionRow:
    """One rule as the table shows it."""

    customer: str  # where several are in sight
    module: ModuleId | None
    title: str
    days: int
    is_default: bool


def retention(visit: Visit) -> Response:
    """Show the rules, and the form where one customer is chosen."""
    rules = visit.services.events.retention.rules(visit.principal)
    return visit.page(
        "retention.html",
        title=visit._("Event retention"),
        rows=[_row(visit, rule) for rule in sorted(rules, key=lambda rule: (rule.tenant_id, rule.module is None))],
        is_one_customer=visit.principal.current_tenant_id is not None or len(visit.principal.tenant_ids) == 1,
        modules=[("", _title(visit, None)), *((module.module.value, _title(visit, module.module)) for module in MODULES)],
        most_days=MAX_DAYS,
    )


def preview(visit: Visit) -> Response:
    """Show how many events a rule would remove, before it is made."""
    visit.principal.require("settings.edit", tenant_id=visit.principal.home_tenant_id)
    module, days = _module(visit), _days(visit)
    known = {rule.module: rule.days for rule in visit.services.events.retention.rules(visit.principal)}
    kept = days or (DEFAULT_DAYS if module is None else known.get(None, DEFAULT_DAYS))
    return visit.fragment(
        "retention_preview.html",
        module=module,
        module_words=_title(visit, module),
        days=days,
        kept_days=kept,
        count=_older(visit, module, kept, [key for key in known if key is not None]),
    )


def change(visit: Visit) -> Response:
    """Make, change or remove a rule."""
    visit.services.events.retention.change(visit.principal, _module(visit), _days(visit))
    return visit.go(ADDRESS, visit._("Saved."))


def _older(visit: Visit, module: ModuleId | None, days: int, own: Sequence[ModuleId]) -> int:
    """Return how many events a rule of so many days would remove today; `own` are the modules with a rule of their own."""
    # Whole days of UTC go at a time, as in `EventRetention.apply_retention`.
    until = (visit.view.now() - days * DAY_SECONDS) // DAY_SECONDS * DAY_SECONDS
    events = visit.services.events
    count = events.count(visit.principal, EventQuery(module=module, until=until))
    if module is None:
        count -= sum(events.count(visit.principal, EventQuery(module=other, until=until)) for other in own)
    return count


def _row(visit: Visit, rule: RetentionRule) -> RetentionRow:
    return RetentionRow(
        visit.customer_of(rule.tenant_id), rule.module, _title(visit, rule.module), rule.days, is_default=rule.is_default
    )


def _title(visit: Visit, module: ModuleId | None) -> str:
    return module_title(visit.catalogue, module) if module else visit._("All events without a rule of their own")


def _module(visit: Visit) -> ModuleId | None:
    name = visit.field("module")
    try:
        return ModuleId(name) if name else None
    except ValueError as error:
        raise InputError("module_unknown", f"there is no module {name[:40]!r}", where="module") from error


def _days(visit: Visit) -> int | None:
    """Return the days of the form; None takes the rule away."""
    if not visit.field("days"):
        return None
    days = visit.number_field("days", 0)
    if not 1 <= days <= MAX_DAYS:
        raise InputError("days_invalid", f"events can be kept for 1 to {MAX_DAYS} days, not {days}", where="days")
    return days


PAGES: tuple[Page, ...] = (
    get(ADDRESS, retention, "events.view"),
    post(f"{ADDRESS}/preview", preview, "settings.edit"),
    post(ADDRESS, change, "settings.edit"),
)
