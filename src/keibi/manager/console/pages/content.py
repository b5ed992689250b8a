"""Content (updates): pattern sets that were imported, what came of each import, where a set is used, and its versions."""

import os
import shutil
from collections.abc import Sequence

from starlette.datastructures import UploadFile
from starlette.responses import Response

from keibi.errors import InputError
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.language import N_
from keibi.manager.console.names import policy_choices
from keibi.manager.console.visit import Visit
from keibi.manager.patterns.importers.model import ImportKind
from keibi.manager.patterns.model import MAX_UPLOAD_BYTES, ImportOutcome
from keibi.manager.patterns.service import MANAGE, UPLOAD, VIEW
from keibi.manager.policies.pattern_use import use_pattern_set

IMPORT_ADDRESS = "/content/import"
KINDS = {
    ImportKind.AUTO: N_("As its files say"),
    ImportKind.YARA: N_("YARA rules"),
    ImportKind.HASHES: N_("SHA-256 hashes"),
    ImportKind.CLAMAV: N_("ClamAV database"),
}


def content(visit: Visit) -> Response:
    """List pattern sets."""
    return _listed(visit, None)


def import_file(visit: Visit) -> Response:
    """Import an uploaded file, or only say what would come of it, and show the report."""
    upload = visit.form.get("file")
    if not isinstance(upload, UploadFile) or not upload.filename:
        raise InputError("file_missing", visit._("Choose a file first."))
    with visit.services.patterns.store.workspace() as directory:
        with open(os.path.join(directory, UPLOAD), "wb") as file:
            shutil.copyfileobj(upload.file, file, 1024 * 1024)
        outcome = visit.services.patterns.import_file(
            visit.principal,
            directory,
            upload.filename,
            name=visit.field("name").strip(),
            kind=ImportKind(visit.field("kind", ImportKind.AUTO)) if visit.field("kind") in set(ImportKind) else ImportKind.AUTO,
            licence=visit.field("licence"),
            description=visit.field("description"),
            is_for_all=visit.field("for_all") == "on",
            is_trial=visit.field("trial") == "yes",
        )
    return _listed(visit, outcome)


def show(visit: Visit) -> Response:
    """Show one set."""
    shown = visit.services.patterns.get(visit.principal, visit.path("set_id"))
    used = {use.target_id for use in shown.uses}
    choices = [(policy_id, path) for policy_id, path in policy_choices(visit) if policy_id not in used]
    return visit.page(
        "content_set.html", title=shown.name, shown=shown, policies=choices, may_change=_may_change(visit, shown.is_shared)
    )


def assign(visit: Visit) -> Response:
    """Use a set in a policy."""
    return _use(visit, is_used=True)


def unassign(visit: Visit) -> Response:
    """Take a set out of a policy."""
    return _use(visit, is_used=False)


def return_to(visit: Visit) -> Response:
    """Make another version current."""
    set_id = visit.path("set_id")
    visit.services.patterns.return_to(
        visit.principal, set_id, visit.number_field("number", 0), visit.number_field("expected_version", 0)
    )
    return visit.go(f"/content/{set_id}", visit._("Another version is current now."))


def delete(visit: Visit) -> Response:
    """Delete a set."""
    visit.services.patterns.delete(visit.principal, visit.path("set_id"))
    return visit.go("/content", visit._("The pattern set is deleted."))


def _use(visit: Visit, *, is_used: bool) -> Response:
    set_id = visit.path("set_id")
    name = visit.services.patterns.get(visit.principal, set_id).name
    done = use_pattern_set(visit.services.policies, visit.principal, visit.field("policy"), name, is_used=is_used)
    count = done.preview.computer_count
    words = visit.catalogue.ngettext("Saved. It reaches %(count)s computer.", "Saved. It reaches %(count)s computers.", count)
    return visit.go(f"/content/{set_id}", words % {"count": visit.format.number(count)})


def _listed(visit: Visit, outcome: ImportOutcome | None) -> Response:
    return visit.page(
        "content.html",
        title=visit._("Content"),
        sets=visit.services.patterns.list(visit.principal),
        outcome=outcome,
        kinds=[(kind.value, visit._(word)) for kind, word in KINDS.items()],
        may_share=visit.principal.may(MANAGE, tenant_id=None),
    )


def _may_change(visit: Visit, is_shared: bool) -> bool:
    return visit.principal.may(MANAGE, tenant_id=None) if is_shared else visit.principal.may_somewhere(MANAGE)


PAGES: Sequence[Page] = (
    get("/content", content, VIEW),
    Page(IMPORT_ADDRESS, import_file, ("POST",), MANAGE, upload_bytes=MAX_UPLOAD_BYTES),
    get("/content/{set_id}", show, VIEW),
    post("/content/{set_id}/assign", assign, "policies.edit"),
    post("/content/{set_id}/unassign", unassign, "policies.edit"),
    post("/content/{set_id}/return", return_to, MANAGE),
    post("/content/{set_id}/delete", delete, MANAGE),
)
