"""Policies moved, copied, and as files: written out, and read in after a dry run."""

import re
from urllib.parse import quote

from starlette.responses import Response

from keibi.errors import InputError
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.language import N_
from keibi.manager.console.security import PAGE_HEADERS
from keibi.manager.console.visit import Visit

LINE = re.compile(r"line (\d+), column (\d+)$")
IMPORT_ACTIONS = {"create": N_("New"), "change": N_("Changes"), "unchanged": N_("Stays as it is")}


def move(visit: Visit) -> Response:
    """Show what moving a policy would do; once that is confirmed, move it."""
    policy_id, parent = visit.path("policy_id"), visit.field("parent")
    if visit.field("confirmed") != "yes":
        return visit.fragment(
            "policy_preview.html",
            preview=visit.services.policies.preview_move(visit.principal, policy_id, parent or None),
            change_json="",
            apply_address=f"/policies/{policy_id}/move",
            extra_fields={"parent": parent, "confirmed": "yes"},
            apply_word=visit._("Move it"),
            back_word=visit._("Cancel"),
        )
    applied = visit.services.policies.move(visit.principal, policy_id, parent or None, visit.number_field("expected_version", 0))
    count = applied.preview.computer_count
    words = visit.catalogue.ngettext("Saved. It reaches %(count)s computer.", "Saved. It reaches %(count)s computers.", count)
    return visit.go(f"/policies/{policy_id}", words % {"count": visit.format.number(count)})


def duplicate(visit: Visit) -> Response:
    """Make a copy beside a policy and go to it."""
    copy = visit.services.policies.duplicate(visit.principal, visit.path("policy_id"), visit.field("name"))
    return visit.go(f"/policies/{copy.policy_id}", visit._("The policy is made."))


def export(visit: Visit) -> Response:
    """Send a policy as a YAML file, with all below it if that is asked."""
    policy = visit.services.policies.get(visit.principal, visit.path("policy_id"))
    text = visit.services.policies.code.export(visit.principal, policy.policy_id, with_children=visit.query.get("below") == "yes")
    headers = {**PAGE_HEADERS, "Content-Disposition": f"attachment; filename*=UTF-8''{quote(policy.name, safe='')}.yaml"}
    return Response(text, media_type="application/yaml", headers=headers)


def import_page(visit: Visit) -> Response:
    """Show where a file is pasted or chosen."""
    return visit.page("policy_import.html", title=visit._("Import policies"))


def preview_import(visit: Visit) -> Response:
    """Do a dry run of a file and show what it would do."""
    text = visit.raw_field("text")
    try:
        found = visit.services.policies.code.preview_import(visit.principal, text)
    except InputError as error:
        return visit.fragment("policy_import_problem.html", 422, error=error, place=_place(visit, error.where))
    return visit.fragment("policy_import_preview.html", found=found, text=text, actions=IMPORT_ACTIONS)


def import_file(visit: Visit) -> Response:
    """Read a file in, whole or not at all."""
    done = visit.services.policies.code.import_file(visit.principal, visit.raw_field("text"))
    words = visit.catalogue.ngettext(
        "Saved. It reaches %(count)s computer.", "Saved. It reaches %(count)s computers.", done.computer_count
    )
    return visit.go("/policies", words % {"count": visit.format.number(done.computer_count)})


def _place(visit: Visit, where: str) -> str:
    """Return where in the file something is wrong, in the reader's language if it is a line."""
    found = LINE.match(where)
    return visit._("line %(line)s, column %(column)s") % {"line": found[1], "column": found[2]} if found else where


PAGES: tuple[Page, ...] = (
    get("/policies/import", import_page, "policies.edit"),
    post("/policies/import", import_file, "policies.edit"),
    post("/policies/import/preview", preview_import, "policies.edit"),
    post("/policies/{policy_id}/move", move, "policies.edit"),
    post("/policies/{policy_id}/duplicate", duplicate, "policies.edit"),
    get("/policies/{policy_id}/export", export, "policies.view"),
)
