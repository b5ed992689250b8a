"""The catalogue of rules, one rule, and the editor of own rules."""

from typing import Any

from starlette.responses import Response

from keibi.contract.names import ModuleId, Severity
from keibi.errors import InputError
from keibi.manager.console.differences import difference_lines
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.formatting import DAY
from keibi.manager.console.rule_examples import rule_for, trial_for
from keibi.manager.console.visit import Visit
from keibi.manager.events.model import EventQuery
from keibi.manager.rules.model import RuleFilter, RuleInvalidError, RuleSource
from keibi.manager.rules.yaml_text import YamlProblem, read_yaml
from keibi.protection.catalog import MODULES
from keibi.protection.integrity_monitoring.rules import Change, EntityType

PAGE_LIMIT = 100


def rules(visit: Visit) -> Response:
    """List the rules, narrowed by what stands in the address."""
    query = visit.query
    filters = RuleFilter(
        module=_member(ModuleId, query.get("module", "")),
        source=_member(RuleSource, query.get("source", "")),
        severity_at_least=_member(Severity, query.get("severity", "")),
        text=query.get("text", "").strip(),
        entity_type=query.get("entity", ""),
        is_assigned={"yes": True, "no": False}.get(query.get("assigned", "")),
    )
    page = visit.services.rules.list(visit.principal, filters, query.get("cursor"), PAGE_LIMIT)
    return visit.page(
        "rules.html",
        title=visit._("Rules"),
        page=page,
        filters=filters,
        is_filtered=any(query.get(name) for name in ("module", "source", "severity", "text", "entity", "assigned")),
        modules=[(module.module.value, module.title.in_language(visit.language)) for module in MODULES],
        entities=[entity.value for entity in EntityType],
        severities=[severity.value for severity in Severity],
    )


def rule(visit: Visit) -> Response:
    """Show one rule: what it watches, where it is used, its versions and its events."""
    found = visit.services.rules.get(visit.principal, visit.path("rule_id"))
    versions = visit.services.rules.versions(visit.principal, found.rule_id)
    before = visit.query.get("before", "")
    lines = []
    if before.isdigit():
        compared = visit.services.rules.compare(visit.principal, found.rule_id, int(before), found.version)
        lines = difference_lines(compared.difference)
    count = None
    if visit.may("events.view"):
        count = visit.services.events.count(visit.principal, EventQuery(rule_id=found.rule_id, since=visit.view.now() - 30 * DAY))
    return visit.page(
        "rule.html",
        title=found.title.in_language(visit.language),
        rule=found,
        versions=versions,
        lines=lines,
        compared=before,
        event_count=count,
        trial=trial_for(found.module, found.body),
    )


def new(visit: Visit) -> Response:
    """Show the editor with a rule to begin from."""
    copied = visit.query.get("copy", "")
    module = _member(ModuleId, visit.query.get("module", "")) or ModuleId.INTEGRITY_MONITORING
    text = rule_for(module)
    if copied:
        source = visit.services.rules.get(visit.principal, copied)
        module, text = source.module, source.text.replace(f"id: {copied}", f"id: {copied}-own", 1)
    return _editor(visit, "", text, module)


def edit(visit: Visit) -> Response:
    """Show the editor with an own rule."""
    found = visit.services.rules.get(visit.principal, visit.path("rule_id"))
    if found.source is not RuleSource.OWN:
        raise InputError(
            "rule_shipped", visit._("A shipped rule cannot be changed."), hint=visit._("Copy it and change the copy.")
        )
    return _editor(visit, found.rule_id, found.text, found.module, found.version)


def check(visit: Visit) -> Response:
    """Say what is wrong with the text of the editor, line by line."""
    checked = visit.services.rules.validate(_module(visit), visit.raw_field("text"))
    return visit.fragment("rule_problems.html", problems=checked.problems, is_valid=checked.is_valid)


def save(visit: Visit) -> Response:
    """Keep an own rule, if nothing is wrong with it."""
    text, rule_id = visit.raw_field("text").replace("\r\n", "\n"), visit.field("rule_id")
    service = visit.services.rules
    try:
        if rule_id:
            kept = service.update(visit.principal, rule_id, text, visit.number_field("expected_version", 0) or None)
        else:
            kept = service.create(visit.principal, _module(visit), text)
    except RuleInvalidError as error:
        return visit.fragment("rule_problems.html", problems=error.problems, is_valid=False)
    return visit.go(f"/rules/{kept.rule_id}", visit._("The rule is saved."))


def delete(visit: Visit) -> Response:
    """Delete an own rule."""
    visit.services.rules.delete(visit.principal, visit.path("rule_id"), also_unassign=visit.field("unassign") == "on")
    return visit.go("/rules", visit._("The rule is deleted."))


def try_it(visit: Visit) -> Response:
    """Say whether a rule would report a change that somebody describes."""
    sample = visit.field("sample")
    change = {"sample": sample} if sample else _described(visit.raw_field("change"))
    rule_id = visit.field("rule_id")
    text = "" if rule_id and not visit.raw_field("text") else visit.raw_field("text")
    try:
        trial = visit.services.rules.try_rule(
            visit.principal, change, rule_id="" if text else rule_id, module=_module(visit), text=text
        )
    except RuleInvalidError as error:
        return visit.fragment("rule_problems.html", problems=error.problems, is_valid=False)
    return visit.fragment("rule_trial.html", trial=trial, module=_module(visit))


def _described(text: str) -> dict[str, Any]:
    try:
        value = read_yaml(text).value
    except YamlProblem as error:
        raise InputError("trial_unreadable", error.message, where=f"line {error.place.line}", hint=error.hint) from error
    if not isinstance(value, dict):
        raise InputError("trial_unreadable", "the change is not a mapping", where="change", hint="write type, key and change")
    return value


def _editor(visit: Visit, rule_id: str, text: str, module: ModuleId, version: int = 0) -> Response:
    return visit.page(
        "rule_editor.html",
        title=visit._("Change the rule") if rule_id else visit._("New rule"),
        rule_id=rule_id,
        text=text,
        module=module,
        version=version,
        trial=trial_for(module),
        changes=[change.value for change in Change],
        modules=[] if rule_id else [(built.module.value, built.title.in_language(visit.language)) for built in MODULES],
    )


def _module(visit: Visit) -> ModuleId:
    return _member(ModuleId, visit.field("module")) or ModuleId.INTEGRITY_MONITORING


def _member(type_: Any, value: str) -> Any:
    return type_(value) if value in {member.value for member in type_} else None


PAGES: tuple[Page, ...] = (
    get("/rules", rules, "rules.view"),
    get("/rules/new", new, "rules.edit"),
    post("/rules/check", check, "rules.view"),
    post("/rules/try", try_it, "rules.view"),
    post("/rules", save, "rules.edit"),
    get("/rules/{rule_id}", rule, "rules.view"),
    get("/rules/{rule_id}/edit", edit, "rules.edit"),
    post("/rules/{rule_id}/delete", delete, "rules.edit"),
)
