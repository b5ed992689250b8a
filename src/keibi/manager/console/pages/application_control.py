"""Application control of one computer: what holds there, its inventory, maintenance, and the code that unlocks it.

The agent answers LIST_SOFTWARE with {"items": [{"path", "sha256", "size", "kind", "state", "trusted_by", "package", "user",
"process", …}], "next", "total_count", "unrecognised_count"}.
"""

from typing import Any

from starlette.responses import Response

from keibi.contract.commands import CommandKind, CommandState
from keibi.contract.names import ModuleId
from keibi.contract.status import AgentStatus, Capability, ModuleStatus
from keibi.manager.agents.model import SentCommand
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.enforcement import HOLES, level_of
from keibi.manager.console.labels import LABELS
from keibi.manager.console.pages.computers import MAINTENANCE_LENGTHS, chosen_computers, tab_values
from keibi.manager.console.visit import Visit
from keibi.manager.software.model import ChangeFilter, Standing

LOOKED_BACK = 100
LIST_LIMIT = 200
MODULE = ModuleId.APPLICATION_CONTROL
_ASKED = (CommandKind.LIST_SOFTWARE, CommandKind.BUILD_INVENTORY, CommandKind.SET_MAINTENANCE)


def software(visit: Visit) -> Response:
    """Show what application control does on a computer, and its inventory as the agent last listed it."""
    computer = visit.services.computers.get(visit.principal, visit.path("computer_id"))
    commands = visit.services.commands.list(visit.principal, computer_id=computer.computer_id, limit=LOOKED_BACK).items
    ours = [command for command in commands if command.kind in _ASKED]
    listed = next((one for one in ours if one.kind is CommandKind.LIST_SOFTWARE and one.state is CommandState.DONE), None)
    build = next((one for one in ours if one.kind is CommandKind.BUILD_INVENTORY), None)
    values: dict[str, Any] = {
        "module": _module(computer.status),
        "level": level_of(computer.status),
        "holes": HOLES,
        "capabilities": _capabilities(computer.status),
        "listed": listed,
        "items": _rows(listed),
        "waiting": [one for one in ours if not one.is_finished],
        "building": build if build is not None and not build.is_finished else None,
        "lengths": [(key, visit._(word)) for key, word in MAINTENANCE_LENGTHS.items()],
        "open_count": _open_count(visit, computer.computer_id),
        "settings": None,
        "not_enforced_codes": LABELS["not_enforced"],
        **tab_values(visit, computer),
    }
    if visit.may("policies.view", computer.tenant_id):
        found = visit.services.policies.computers.effective_settings(visit.principal, computer.computer_id)
        values["settings"] = found.modules.get(MODULE)
    if visit.is_fragment:
        return visit.fragment("computer_software_parts.html", **values)
    return visit.page("computer_software.html", title=computer.display_name, **values)


def search(visit: Visit) -> Response:
    """Ask the agent for a part of its inventory."""
    arguments = {"text": visit.field("text")[:200], "after": visit.raw_field("after"), "limit": LIST_LIMIT}
    return _send(visit, CommandKind.LIST_SOFTWARE, arguments)


def build(visit: Visit) -> Response:
    """Have the agent take its inventory anew."""
    return _send(visit, CommandKind.BUILD_INVENTORY, {})


def maintenance(visit: Visit) -> Response:
    """Begin, lengthen or end maintenance of one computer."""
    minutes = visit.number_field("minutes", 0)
    sent = visit.services.software.maintenance.start(visit.principal, [visit.path("computer_id")], [], minutes)
    if visit.field("event"):
        return visit.fragment("command_watch.html", command=sent[0], decision="")
    return visit.go(f"/computers/{visit.path('computer_id')}/software", visit._("Sent to the computer."))


def unlock(visit: Visit) -> Response:
    """Show the code for a challenge."""
    code = visit.services.software.unlock_code(visit.principal, visit.path("computer_id"), visit.field("challenge"))
    return visit.fragment("unlock_code.html", code=code)


def preview_maintenance(visit: Visit) -> Response:
    """Show which of the chosen computers a maintenance would reach."""
    ids = chosen_computers(visit)
    minutes = visit.number_field("minutes", 0)
    found = visit.services.software.maintenance.preview(visit.principal, ids, [], minutes)
    return visit.fragment(
        "maintenance_preview.html",
        preview=found,
        computer_ids=" ".join(ids),
        length=visit.format.duration(minutes * 60),
        filter_query=visit.field("filter"),
    )


def start_maintenance(visit: Visit) -> Response:
    """Begin or end maintenance of many computers."""
    minutes = visit.number_field("minutes", 0)
    sent = visit.services.software.maintenance.start(visit.principal, visit.field("computers").split(), [], minutes)
    words = visit.catalogue.ngettext("Sent to %(count)s computer.", "Sent to %(count)s computers.", len(sent))
    query = visit.field("filter")
    return visit.go("/computers" + (f"?{query}" if query else ""), words % {"count": visit.format.number(len(sent))})


def _send(visit: Visit, kind: CommandKind, arguments: dict[str, Any]) -> Response:
    computer_id = visit.path("computer_id")
    visit.services.commands.send(visit.principal, computer_id, kind, MODULE, arguments)
    return visit.go(f"/computers/{computer_id}/software#inventory", visit._("Sent to the computer."))


def _module(status: AgentStatus | None) -> ModuleStatus | None:
    return next((one for one in status.modules if one.module is MODULE), None) if status else None


def _capabilities(status: AgentStatus | None) -> list[Capability]:
    words = ("gate", "guard", "fanotify_permission", "lsm", "application_control")
    return [one for one in status.capabilities if any(word in one.name for word in words)] if status else []


def _open_count(visit: Visit, computer_id: str) -> int | None:
    if not visit.may("events.view"):
        return None
    return visit.services.software.count(visit.principal, ChangeFilter(standing=Standing.OPEN, computer_ids=(computer_id,)))


def _rows(command: SentCommand | None) -> list[dict[str, Any]]:
    """Return the listed software; anything of another shape is left out, for agents may be newer."""
    found = command.result.get("items") if command else None
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


PAGES: tuple[Page, ...] = (
    get("/computers/{computer_id}/software", software, "computers.view"),
    post("/computers/{computer_id}/software/search", search, "commands.run"),
    post("/computers/{computer_id}/software/build", build, "software.decide"),
    post("/computers/{computer_id}/software/maintenance", maintenance, "software.decide"),
    post("/computers/{computer_id}/software/unlock", unlock, "unlock.make"),
    post("/computers/maintenance/preview", preview_maintenance, "software.decide"),
    post("/computers/maintenance", start_maintenance, "software.decide"),
)
