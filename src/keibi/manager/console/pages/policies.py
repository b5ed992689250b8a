"""The tree of policies, one policy, and the same form for what a single computer says itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

from keibi.contract.names import ModuleId, Severity
from keibi.errors import InputError
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.pages.computers import tab_values
from keibi.manager.console.setting_form import Control, as_text, control_of, parse_form, rows_of, words_of
from keibi.manager.console.visit import Visit
from keibi.manager.policies.model import EffectiveModule, EffectiveSettings, PolicyNode, SettingHelp, Valued
from keibi.manager.policies.overrides import PolicyChange
from keibi.manager.rules.model import RuleFilter

RULES_LIMIT = 1000


@dataclass(frozen=True)
class FormField:
    """One setting as the form shows it."""

    name: str  # of the control: "setting:integrity_monitoring:baseline_mode"
    help: SettingHelp
    control: Control
    valued: Valued[Any]
    text: str


@dataclass(frozen=True)
class FormModule:
    """One module as the form shows it."""

    module: ModuleId
    title: Any
    description: Any
    states: list[str]
    state: Valued[str]
    override_count: int
    fields: list[FormField]


def policies(visit: Visit) -> Response:
    """Show the tree."""
    tree = visit.services.policies.tree(visit.principal)
    return visit.page(
        "policies.html",
        title=visit._("Policies"),
        tree=tree,
        parents=[*((policy.policy_id, policy.path) for policy in tree), ("", visit._("nothing: it stands at the top"))],
    )


def create(visit: Visit) -> Response:
    """Make a policy."""
    node = visit.services.policies.create(
        visit.principal, visit.field("name"), visit.field("parent") or None, visit.field("description")
    )
    return visit.go(f"/policies/{node.policy_id}", visit._("The policy is made."))


def settings(visit: Visit) -> Response:
    """Show every value of a policy with its origin."""
    policy_id = visit.path("policy_id")
    policy = visit.services.policies.get(visit.principal, policy_id)
    effective = visit.services.policies.effective_settings(visit.principal, policy_id)
    return visit.page(
        "policy_settings.html",
        title=policy.name,
        **frame_values(visit, policy),
        **form_values(visit, effective, f"/policies/{policy_id}", policy.tenant_id),
    )


def policy_rules(visit: Visit) -> Response:
    """Show which rules a policy assigns."""
    policy_id = visit.path("policy_id")
    policy = visit.services.policies.get(visit.principal, policy_id)
    effective = visit.services.policies.effective_settings(visit.principal, policy_id)
    return visit.page(
        "policy_rules.html",
        title=policy.name,
        **frame_values(visit, policy),
        effective=effective,
        base_address=f"/policies/{policy_id}",
        editable=visit.may("policies.edit", policy.tenant_id),
        rows=_rule_rows(visit, effective),
        severities=[severity.value for severity in Severity],
    )


def preview(visit: Visit) -> Response:
    """Show what a change of a policy would do, and to how many computers."""
    policy_id = visit.path("policy_id")
    effective = visit.services.policies.effective_settings(visit.principal, policy_id)
    change = change_of(visit, effective)
    found = visit.services.policies.preview(visit.principal, policy_id, change)
    return preview_page(visit, found, change, f"/policies/{policy_id}")


def apply(visit: Visit) -> Response:
    """Make the change that the preview showed."""
    policy_id = visit.path("policy_id")
    applied = visit.services.policies.change(
        visit.principal, policy_id, decoded_change(visit), visit.number_field("expected_version", 0)
    )
    count = applied.preview.computer_count
    words = visit.catalogue.ngettext("Saved. It reaches %(count)s computer.", "Saved. It reaches %(count)s computers.", count)
    return visit.go(f"/policies/{policy_id}", words % {"count": visit.format.number(count)})


def history(visit: Visit) -> Response:
    """Show the versions of a policy, and what differs between two of them."""
    policy_id = visit.path("policy_id")
    policy = visit.services.policies.get(visit.principal, policy_id)
    versions = visit.services.policies.versions(visit.principal, policy_id)
    before, after = _numbers(visit, versions[1].version if len(versions) > 1 else 0, policy.version)
    lines = visit.services.policies.compare_versions(visit.principal, policy_id, before, after) if before else []
    return visit.page(
        "policy_history.html",
        title=policy.name,
        **frame_values(visit, policy),
        versions=versions,
        lines=lines,
        before=before,
        after=after,
    )


def return_to(visit: Visit) -> Response:
    """Make a new version that says what an older one said."""
    policy_id = visit.path("policy_id")
    version = visit.number_field("version", 0)
    if visit.field("confirmed") != "yes":
        found = visit.services.policies.preview_return(visit.principal, policy_id, version)
        return visit.fragment(
            "policy_preview.html",
            preview=found,
            change_json="",
            apply_address=f"/policies/{policy_id}/return",
            extra_fields={"version": str(version), "confirmed": "yes"},
        )
    visit.services.policies.return_to(visit.principal, policy_id, version, visit.number_field("expected_version", 0))
    return visit.go(f"/policies/{policy_id}/history", visit._("Saved."))


def rename(visit: Visit) -> Response:
    """Give a policy another name and description."""
    policy_id = visit.path("policy_id")
    change = PolicyChange(name=visit.field("name"), description=visit.field("description"))
    visit.services.policies.change(visit.principal, policy_id, change, visit.number_field("expected_version", 0))
    return visit.go(f"/policies/{policy_id}", visit._("Saved."))


def delete(visit: Visit) -> Response:
    """Delete a policy that nothing uses."""
    visit.services.policies.delete(visit.principal, visit.path("policy_id"))
    return visit.go("/policies", visit._("The policy is deleted."))


def computer_settings(visit: Visit) -> Response:
    """Show every value of one computer with its origin."""
    computer = visit.services.computers.get(visit.principal, visit.path("computer_id"))
    effective = visit.services.policies.computers.effective_settings(visit.principal, computer.computer_id)
    values = form_values(
        visit, effective, f"/computers/{computer.computer_id}/policy", computer.tenant_id, visit.query.get("exclude", "")
    )
    return visit.page(
        "computer_policy.html",
        title=computer.display_name,
        use=visit.services.policies.computers.get(visit.principal, computer.computer_id),
        excluded=visit.query.get("exclude", ""),
        **values,
        **tab_values(visit, computer),
    )


def computer_preview(visit: Visit) -> Response:
    """Show what a change of a computer's own values would do."""
    computer_id = visit.path("computer_id")
    service = visit.services.policies.computers
    change = change_of(visit, service.effective_settings(visit.principal, computer_id))
    found = service.preview(visit.principal, computer_id, change)
    return preview_page(visit, found, change, f"/computers/{computer_id}/policy")


def computer_apply(visit: Visit) -> Response:
    """Make a change of a computer's own values."""
    computer_id = visit.path("computer_id")
    visit.services.policies.computers.change(
        visit.principal, computer_id, decoded_change(visit), visit.number_field("expected_version", 0)
    )
    return visit.go(f"/computers/{computer_id}/policy", visit._("Saved."))


def frame_values(visit: Visit, policy: PolicyNode) -> dict[str, Any]:
    """Return what the head of a policy's page needs: itself, and the places that it could be moved to."""
    places: list[tuple[str, str]] = []
    if visit.may("policies.edit", policy.tenant_id):
        below = {policy.policy_id}
        for other in visit.services.policies.tree(visit.principal):  # parents come before their children
            if other.parent_id in below:
                below.add(other.policy_id)
            elif other.tenant_id == policy.tenant_id and other.policy_id not in below:
                places.append((other.policy_id, other.path))
        places.append(("", visit._("nothing: it stands at the top")))
    return {"policy": policy, "places": places}


def form_values(
    visit: Visit, effective: EffectiveSettings, base_address: str, tenant_id: str, excluded: str = ""
) -> dict[str, Any]:
    """Return what `policy_form.html` needs. `excluded` is a path that is put into the field of paths never watched."""
    return {
        "effective": effective,
        "base_address": base_address,
        "editable": visit.may("policies.edit", tenant_id),
        "parts": [_form_module(part, excluded) for part in effective.modules.values()],
        "rows_of": rows_of,
        "words_of": words_of,
    }


def change_of(visit: Visit, effective: EffectiveSettings) -> PolicyChange:
    """Return what the form changes: only what differs from what is in effect, or goes back to what is inherited."""
    reset = set(visit.fields("reset"))
    change: dict[str, Any] = {"modules": {}}
    for module, part in effective.modules.items():
        patch: dict[str, Any] = {}
        _put(patch, "state", f"state:{module.value}", visit, reset, part.state, lambda text: text)
        settings_patch: dict[str, Any] = {}
        for name, valued in part.settings.items():
            help_ = part.help[name]
            field_name = f"setting:{module.value}:{name}"
            _put(settings_patch, name, field_name, visit, reset, valued, _parser(help_, field_name, visit))
        rules_patch = _rules_patch(visit, part)
        if settings_patch:
            patch["settings"] = settings_patch
        if rules_patch:
            patch["rules"] = rules_patch
        if patch:
            change["modules"][module.value] = patch
    _put(change, "heartbeat_seconds", "heartbeat_seconds", visit, reset, effective.heartbeat_seconds, int)
    return convert_change(change)


def convert_change(change: Mapping[str, Any]) -> PolicyChange:
    """Return a change from JSON types.

    Raises:
        InputError: it has a value of the wrong kind.
    """
    try:
        return msgspec.convert(change, PolicyChange)
    except msgspec.ValidationError as error:
        raise InputError("policy_change_invalid", f"the change cannot be made: {error}") from error


def decoded_change(visit: Visit) -> PolicyChange:
    """Return the change that a preview carried.

    Raises:
        InputError: it is damaged.
    """
    try:
        return msgspec.json.decode(visit.raw_field("change"), type=PolicyChange)
    except msgspec.MsgspecError as error:
        raise InputError("policy_change_invalid", f"the change cannot be made: {error}") from error


def preview_page(visit: Visit, found: Any, change: PolicyChange, address: str) -> Response:
    """Show a preview with the change in it, to be sent back as it is."""
    return visit.fragment(
        "policy_preview.html",
        preview=found,
        change_json=msgspec.json.encode(change).decode(),
        apply_address=address,
        extra_fields={},
    )


def _put(patch: dict[str, Any], key: str, name: str, visit: Visit, reset: set[str], valued: Valued[Any], parse: Any) -> None:
    if name in reset:
        patch[key] = None
    elif name in visit.form:
        value = parse(visit.raw_field(name))
        if value != _plain(valued.value):
            patch[key] = value


def _rules_patch(visit: Visit, part: EffectiveModule) -> dict[str, Any]:
    """Return changes of rules; only the rules whose rows were sent count, since boxes that are not ticked are not sent."""
    known = {rule.rule_id: rule for rule in part.rules}
    assigned = set(visit.fields("assigned"))
    back = set(visit.fields("reset_rule"))
    patch: dict[str, Any] = {}
    for rule_id in visit.fields("rule"):
        rule = known.get(rule_id)
        if rule_id in back:
            patch[rule_id] = None
            continue
        fields: dict[str, Any] = {}
        is_assigned = rule_id in assigned
        if is_assigned != (rule.is_assigned.value if rule else False):
            fields["is_assigned"] = is_assigned
        severity = visit.field(f"severity:{rule_id}")
        if rule and severity and severity != rule.severity.value:
            fields["severity"] = severity
        if fields:
            patch[rule_id] = fields
    return patch


def _parser(help_: SettingHelp, name: str, visit: Visit) -> Any:
    # A control of many fields is named by a hidden one, whose text says nothing: the value is read from all of them.
    return lambda _text: parse_form(help_, name, visit.raw_field)


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _form_module(part: EffectiveModule, excluded: str) -> FormModule:
    fields = []
    for name, valued in part.settings.items():
        help_ = part.help[name]
        control = control_of(help_.schema)
        text = as_text(control, _plain(valued.value))
        if name == "excluded_paths" and excluded and excluded not in text.splitlines():
            text = f"{text}\n{excluded}".strip()
        fields.append(FormField(f"setting:{part.module.value}:{name}", help_, control, valued, text))
    return FormModule(part.module, part.title, part.description, part.states, part.state, part.override_count, fields)


def _rule_rows(visit: Visit, effective: EffectiveSettings) -> list[dict[str, Any]]:
    """Return every rule of the catalogue with what this level says of it, assigned ones first."""
    known = {rule.rule_id: rule for part in effective.modules.values() for rule in part.rules}
    catalogue = visit.services.rules.list(visit.principal, RuleFilter(), limit=RULES_LIMIT)
    rows = [{"row": row, "rule": known.get(row.rule_id)} for row in catalogue.items]
    return sorted(rows, key=lambda row: not (row["rule"] is not None and row["rule"].is_assigned.value))


def _numbers(visit: Visit, before: int, after: int) -> tuple[int, int]:
    try:
        return int(visit.query.get("before", before)), int(visit.query.get("after", after))
    except ValueError as error:
        raise InputError("version_invalid", "a version is a whole number", where="before, after") from error


PAGES: tuple[Page, ...] = (
    get("/policies", policies, "policies.view"),
    post("/policies", create, "policies.edit"),
    get("/policies/{policy_id}", settings, "policies.view"),
    post("/policies/{policy_id}", apply, "policies.edit"),
    post("/policies/{policy_id}/preview", preview, "policies.edit"),
    get("/policies/{policy_id}/rules", policy_rules, "policies.view"),
    get("/policies/{policy_id}/history", history, "policies.view"),
    post("/policies/{policy_id}/return", return_to, "policies.edit"),
    post("/policies/{policy_id}/name", rename, "policies.edit"),
    post("/policies/{policy_id}/delete", delete, "policies.edit"),
    get("/computers/{computer_id}/policy", computer_settings, "policies.view"),
    post("/computers/{computer_id}/policy/preview", computer_preview, "policies.edit"),
    post("/computers/{computer_id}/policy", computer_apply, "policies.edit"),
)
