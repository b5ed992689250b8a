"""Rulesets as tables: what is in them, and where they apply."""

import msgspec
from starlette.responses import Response

from keibi.errors import InputError
from keibi.manager.console.deciding import entry_words, show_preview
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.visit import Visit
from keibi.manager.software.model import DecisionRequest
from keibi.protection.application_control.rules import (
    Entry,
    HashEntry,
    InterpreterEntry,
    PackageEntry,
    PathEntry,
    SignerEntry,
)

PAGE_LIMIT = 100
KINDS = ("hash", "package", "signer", "path", "interpreter")


def rulesets(visit: Visit) -> Response:
    """List the rulesets."""
    return visit.page(
        "software_rulesets.html", title=visit._("Rulesets"), rulesets=visit.services.software.rulesets.list(visit.principal)
    )


def ruleset(visit: Visit) -> Response:
    """Show one ruleset with its entries."""
    found = visit.services.software.rulesets.get(visit.principal, visit.path("rule_id"))
    text, kind = visit.query.get("text", "").strip(), visit.query.get("kind", "")
    page = visit.services.software.rulesets.entries(
        visit.principal, found.rule_id, text, kind if kind in KINDS else "", visit.query.get("cursor"), PAGE_LIMIT
    )
    return visit.page(
        "software_ruleset.html",
        title=found.title.in_language(visit.language),
        ruleset=found,
        page=page,
        text=text,
        kind=kind,
        kinds=KINDS,
        is_filtered=bool(text or kind),
        entry_words=entry_words,
        entry_json=lambda entry: msgspec.json.encode(entry).decode(),
        entry_note=lambda entry: entry.note,
        may_change=found.is_own and visit.may("software.decide", found.tenant_id),
    )


def write_entry(visit: Visit) -> Response:
    """Show what putting an entry into a ruleset would do; deciding does it."""
    entry = _written(visit)
    found = visit.services.software.rulesets.get(visit.principal, visit.path("rule_id"))
    request = DecisionRequest(
        action=found.action,
        entries=(entry,),
        rule_id=found.rule_id,
        policy_ids=tuple(policy_id for policy_id, _ in found.policies),
    )
    return show_preview(visit, request, found.tenant_id, f"/events/software/rulesets/{found.rule_id}")


def remove(visit: Visit) -> Response:
    """Take entries out of a ruleset."""
    rule_id = visit.path("rule_id")
    entries = [msgspec.json.decode(value, type=Entry) for value in visit.fields("entry")]
    if not entries:
        raise InputError("nothing_chosen", visit._("Choose at least one first."), where="entry")
    found = visit.services.software.rulesets.get(visit.principal, rule_id)
    count = visit.services.software.decisions.remove_entries(visit.principal, rule_id, entries, found.tenant_id)
    words = visit.catalogue.ngettext("%(count)s entry was taken out.", "%(count)s entries were taken out.", count)
    return visit.go(f"/events/software/rulesets/{rule_id}", words % {"count": visit.format.number(count)})


def _written(visit: Visit) -> Entry:
    kind, value, note = visit.field("kind"), visit.field("value"), visit.field("note")
    if not value:
        raise InputError("nothing_chosen", visit._("Write what is meant first."), where="value")
    match kind:
        case "hash":
            return HashEntry(sha256=value.lower(), note=note)
        case "package":
            name, _, origin = value.partition(" ")
            return PackageEntry(name=name, origin=origin.strip(), note=note)
        case "signer":
            return SignerEntry(key_id=value.replace(" ", ""), note=note)
        case "path":
            return PathEntry(pattern=value, only_root_writable=visit.field("anybody") != "on", note=note)
        case "interpreter":
            return InterpreterEntry(path=value, note=note)
    raise InputError("entry_kind", f"{kind[:40]!r} is no kind of entry", where="kind")


PAGES: tuple[Page, ...] = (
    get("/events/software/rulesets", rulesets, "rules.view"),
    get("/events/software/rulesets/{rule_id}", ruleset, "rules.view"),
    post("/events/software/rulesets/{rule_id}/entries", write_entry, "software.decide"),
    post("/events/software/rulesets/{rule_id}/entries/remove", remove, "software.decide"),
)
