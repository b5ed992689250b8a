"""Choosing software and deciding about it: what the pages about it have in common."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response

from keibi.errors import InputError
from keibi.manager.console.filters import PERIODS
from keibi.manager.console.security import own_address
from keibi.manager.console.visit import Visit
from keibi.manager.events.model import EventRecord
from keibi.manager.software.changes import KINDS
from keibi.manager.software.choosing import INLINE, PATH, DecideBy, entries_of
from keibi.manager.software.model import ChangeFilter, ChangeGroup, DecisionRequest, GroupBy, Standing
from keibi.protection.application_control.rules import Entry, RuleAction

TEXT_FILTERS = ("path", "file", "package", "process", "user", "sha256")
SEPARATOR = "\n"
"""Stands between the parts of a group's key, and between tenant and key in a form."""
SHOWN = 8


def decide_values(visit: Visit) -> dict[str, Any]:
    """Return what templates that show groups need."""
    return {
        "may_decide": visit.may("software.decide"),
        "group_title": title_of,
        "group_value": lambda group: f"{group.tenant_id}{SEPARATOR}{group.key}",
        "program_address": program_address,
    }


def program_address(tenant_id: str, key: str) -> str:
    """Return the page of one group by content."""
    return f"/events/software/program?tenant={quote(tenant_id)}&key={quote(key, safe='')}"


def key_of(event: EventRecord) -> str:
    """Return the group by content that an event belongs to; "" where it is about no software that can be decided on."""
    record = event.details
    if event.kind not in KINDS or not event.subject or record.get("is_proof"):
        return ""
    if record.get("reason_code") == "inline_code":
        return INLINE + event.subject
    sha256 = record.get("sha256")
    return sha256 if isinstance(sha256, str) and sha256 else PATH + event.subject


def title_of(group: ChangeGroup) -> str:
    """Return how a group by content is called: the last part of its path."""
    path = group.paths[0] if group.paths else group.key.partition(":")[2]
    return path.rstrip("/").rpartition("/")[2] or path or group.key


def group_of(visit: Visit, tenant_id: str, key: str) -> ChangeGroup:
    """Return one group by content.

    Raises:
        InputError: there is none that the visitor may see.
    """
    found = find_group(visit, tenant_id, key)
    if found is None:
        raise InputError("software_not_found", f"nobody has told of the software {key[:80]!r}", hint="its events may be too old")
    return found


def find_group(visit: Visit, tenant_id: str, key: str) -> ChangeGroup | None:
    """Return one group by content, or None where the visitor may see none of that key."""
    if not key:
        return None
    who = visit.principal.in_tenant(tenant_id) if tenant_id else visit.principal
    return next(iter(visit.services.software.changes(who, ChangeFilter(keys=(key,)), "hash", None, 1).items), None)


def filter_of(query: QueryParams, now: float) -> ChangeFilter:
    """Return the filter that an address says; what it does not know is left out."""
    standing = query.get("standing") or Standing.OPEN.value
    period = PERIODS.get(query.get("period", ""), ("", 0))[1]
    words = {name: query.get(name, "").strip() for name in TEXT_FILTERS}
    return ChangeFilter(
        standing=Standing(standing) if standing in set(Standing) else None,
        text=query.get("text", "").strip(),
        path=words["path"],
        file=words["file"],
        package=words["package"],
        process=words["process"],
        user=words["user"],
        sha256=words["sha256"],
        computer_ids=tuple(one for one in query.getlist("computer") if one),
        since=now - period if period else None,
    )


def grouping_of(query: QueryParams) -> GroupBy:
    """Return how an address groups."""
    by = query.get("by", "")
    return "computer" if by == "computer" else "bringer" if by == "bringer" else "hash"


def action_of(visit: Visit) -> RuleAction:
    """Return what the form wants.

    Raises:
        InputError: it wants nothing that there is.
    """
    text = visit.field("one").partition(SEPARATOR)[0] or visit.field("action")
    try:
        return RuleAction(text)
    except ValueError as error:
        raise InputError("action_invalid", f"{text[:40]!r} is neither allow nor block", where="action") from error


def chosen_entries(visit: Visit, action: RuleAction) -> tuple[str | None, Sequence[Entry]]:
    """Return tenant and entries of a form: written out, of one group, of those ticked, or of all that fit the filter."""
    written = visit.raw_field("entries")
    if written:
        return visit.field("tenant") or None, entries_in(written)
    by = visit.field("decide_by")
    decide_by: DecideBy = "package" if by == "package" else "path" if by == "path" else "hash"
    one = visit.field("one").replace("\r\n", SEPARATOR).split(SEPARATOR, 2)
    service = visit.services.software
    if len(one) == 3:
        groups: Sequence[ChangeGroup] = [group_of(visit, one[1], one[2])]
    elif visit.field("all") == "on":
        groups = service.all_of(visit.principal, filter_of(QueryParams(visit.field("filter")), visit.view.now()))
    else:
        pairs = [value.replace("\r\n", SEPARATOR).partition(SEPARATOR) for value in visit.fields("group")]
        keys = tuple(key for _, _, key in pairs)
        tenants = {tenant for tenant, _, _ in pairs}
        if len(tenants) > 1:
            raise InputError("tenant_not_chosen", "the chosen software is of several customers", hint="choose a customer first")
        who = visit.principal.in_tenant(next(iter(tenants))) if tenants else visit.principal
        groups = service.changes(who, ChangeFilter(keys=keys), "hash", None, 1000).items if keys else []
    if not groups:
        raise InputError("nothing_chosen", visit._("Choose at least one first."), where="group")
    tenants = {group.tenant_id for group in groups}
    if len(tenants) > 1:
        raise InputError("tenant_not_chosen", "the chosen software is of several customers", hint="choose a customer first")
    # A path that is blocked is blocked whoever may write there; one that is allowed needs root's hand.
    return tenants.pop(), entries_of(groups, decide_by, only_root_writable=action is RuleAction.ALLOW)


def entries_in(text: str) -> list[Entry]:
    """Return the entries that a form carries.

    Raises:
        InputError: they are none.
    """
    try:
        return msgspec.json.decode(text, type=list[Entry])
    except msgspec.MsgspecError as error:
        raise InputError("entries_invalid", f"the entries of the form cannot be read: {error}", where="entries") from error


def entry_kind(entry: Entry) -> str:
    """Return the kind of an entry: "hash", "package", …."""
    return str(msgspec.to_builtins(entry)["kind"])


def entry_words(entry: Entry) -> str:
    """Return an entry in a few words: its name, pattern or hash."""
    values = msgspec.to_builtins(entry)
    match values["kind"]:
        case "hash":
            return f"{values.get('name', '')} {values['sha256'][:12]}…".strip()
        case "package":
            return " ".join(part for part in (values["name"], values.get("version", ""), values.get("origin", "")) if part)
        case "signer":
            return str(values["key_id"])
        case "path":
            return str(values["pattern"])
    return str(values.get("path", ""))


def back_of(visit: Visit) -> str:
    """Return where a form came from: one of our own addresses, never another host's."""
    return own_address(visit.field("back"), "/events/software")


def show_preview(visit: Visit, request: DecisionRequest, tenant_id: str | None, back: str) -> Response:
    """Return the dialog that says what a decision would do.

    Raises:
        AccessError: the visitor may not decide there. InputError: it cannot be done, and why.
    """
    found = visit.services.software.decisions.preview(visit.principal, request, tenant_id)
    who = visit.principal.in_tenant(found.tenant_id)
    rulesets = visit.services.software.rulesets.list(who) if visit.may("rules.view") else []
    policies = visit.services.policies.tree(who) if visit.may("policies.view") else []
    return visit.fragment(
        "software_preview.html",
        preview=found,
        request=request,
        entries_json=msgspec.json.encode(request.entries).decode(),
        shown=[(entry_kind(entry), entry_words(entry)) for entry in found.new_entries[:SHOWN]],
        rulesets=[
            (row.rule_id, row.title.in_language(visit.language))
            for row in rulesets
            if row.is_own and row.action is request.action
        ],
        policies=[(node.policy_id, node.path) for node in policies],
        back=back,
    )
