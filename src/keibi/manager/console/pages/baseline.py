"""A computer's baseline: open drifts to approve or reject, versions to compare, and restoring a file from it.

The baseline is on the computer, so everything here is a command to its agent. A page shows what the newest finished command
said, and how old that is.

Arguments of the commands: decide_drift takes `decision` ("approve" or "reject") and `drift_ids`; compare_baseline takes
`before` and `after`; preview_restore and restore take `event_id`, `key`, `type`, and `version` where the event has one;
restore also takes the `expected_hash` that the preview gave.
"""

from typing import Any

from starlette.responses import Response

from keibi.contract.commands import CommandKind, CommandState
from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.agents.model import SentCommand
from keibi.manager.console.differences import attribute_changes, difference_lines
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.pages.computers import tab_values
from keibi.manager.console.visit import Visit

LOOKED_BACK = 100
MODULE = ModuleId.INTEGRITY_MONITORING


def baseline(visit: Visit) -> Response:
    """Show drifts and versions as the agent last listed them."""
    computer = visit.services.computers.get(visit.principal, visit.path("computer_id"))
    commands = visit.services.commands.list(visit.principal, computer_id=computer.computer_id, limit=LOOKED_BACK).items
    listed = _newest(commands, CommandKind.LIST_BASELINE, is_done=True)
    compared = _newest(commands, CommandKind.COMPARE_BASELINE, is_done=True)
    waiting = [
        command
        for command in commands
        if not command.is_finished and command.kind in (CommandKind.LIST_BASELINE, CommandKind.COMPARE_BASELINE)
    ]
    values: dict[str, Any] = {
        "listed": listed,
        "drifts": _rows(listed, "drifts"),
        "versions": _rows(listed, "versions"),
        "compared": compared,
        "compared_changes": _rows(compared, "changes"),
        "waiting": waiting,
    }
    if visit.is_fragment:
        return visit.fragment("baseline_parts.html", **values, **tab_values(visit, computer))
    return visit.page("computer_baseline.html", title=computer.display_name, **values, **tab_values(visit, computer))


def ask(visit: Visit) -> Response:
    """Ask the agent for its list, a comparison, or a new baseline."""
    computer_id = visit.path("computer_id")
    kind = {
        "list": CommandKind.LIST_BASELINE,
        "compare": CommandKind.COMPARE_BASELINE,
        "rebuild": CommandKind.REBUILD_BASELINE,
    }.get(visit.field("what"))
    if kind is None:
        raise InputError("command_unknown_kind", f"{visit.field('what')[:40]!r} is nothing to ask for", where="what")
    arguments = {}
    if kind is CommandKind.COMPARE_BASELINE:
        arguments = {"before": visit.number_field("before", 0), "after": visit.number_field("after", 0)}
    visit.services.commands.send(visit.principal, computer_id, kind, MODULE, arguments)
    return visit.go(f"/computers/{computer_id}/baseline", visit._("Sent to the computer."))


def decide(visit: Visit) -> Response:
    """Approve or reject drifts."""
    computer_id, decision = visit.path("computer_id"), visit.field("decision")
    if decision not in ("approve", "reject"):
        raise InputError("decision_invalid", f"{decision[:40]!r} is no decision", where="decision")
    drifts = visit.fields("drift")
    if not drifts:
        raise InputError("drift_not_chosen", visit._("Choose at least one change first."), where="drift")
    command = visit.services.commands.send(
        visit.principal, computer_id, CommandKind.DECIDE_DRIFT, MODULE, {"decision": decision, "drift_ids": drifts}
    )
    if visit.field("event"):
        return visit.fragment("command_watch.html", command=command, decision=decision)
    return visit.go(f"/computers/{computer_id}/commands/{command.command_id}", visit._("Sent to the computer."))


def preview_restore(visit: Visit) -> Response:
    """Ask the agent what restoring would do; nothing is changed by it."""
    event = visit.services.events.get(visit.principal, visit.field("event"))
    arguments = _restore_arguments(event)
    command = visit.services.commands.send(
        visit.principal, event.computer_id, CommandKind.PREVIEW_RESTORE, MODULE, arguments, expires_in_seconds=600
    )
    return visit.fragment("command_watch.html", command=command, decision="")


def restore(visit: Visit) -> Response:
    """Restore what the preview showed."""
    previewed = visit.services.commands.get(visit.principal, visit.field("command"))
    if previewed.kind is not CommandKind.PREVIEW_RESTORE or previewed.state is not CommandState.DONE:
        raise InputError("restore_not_previewed", visit._("Look at the preview first."), where="command")
    # What the preview showed is what is restored: the agent refuses when the file has changed since.
    arguments = {**previewed.arguments, "expected_hash": previewed.result.get("expected_hash", "")}
    command = visit.services.commands.send(
        visit.principal, previewed.computer_id, CommandKind.RESTORE, MODULE, arguments, expires_in_seconds=600
    )
    return visit.fragment("command_watch.html", command=command, decision="")


def watch(visit: Visit) -> Response:
    """Show how a command gets on, and the preview of a restore when it is there."""
    command = visit.services.commands.get(visit.principal, visit.path("command_id"))
    result = command.result
    return visit.fragment(
        "command_watch.html",
        command=command,
        decision=command.arguments.get("decision", ""),
        lines=difference_lines(str(result.get("difference") or "")),
        changes=attribute_changes(result.get("before") or {}, result.get("after") or {}, []),
    )


def _restore_arguments(event: Any) -> dict[str, Any]:
    record = event.details
    if not record.get("can_restore"):
        raise InputError("restore_impossible", "this event's file is not kept on the computer", hint="see its policy: content")
    arguments = {"event_id": event.event_id, "type": event.entity_type, "key": event.subject}
    if record.get("baseline_version"):
        arguments["version"] = record["baseline_version"]
    if record.get("drift_id"):
        arguments["drift_id"] = record["drift_id"]
    return arguments


def _newest(commands: Any, kind: CommandKind, *, is_done: bool) -> SentCommand | None:
    return next(
        (command for command in commands if command.kind is kind and (not is_done or command.state is CommandState.DONE)), None
    )


def _rows(command: SentCommand | None, name: str) -> list[dict[str, Any]]:
    """Return a list of mappings from an agent's answer; anything of another shape is left out, for agents may be newer."""
    found = command.result.get(name) if command else None
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


PAGES: tuple[Page, ...] = (
    get("/computers/{computer_id}/baseline", baseline, "computers.view"),
    post("/computers/{computer_id}/baseline", ask, "commands.run"),
    post("/computers/{computer_id}/drifts", decide, "drift.decide"),
    post("/computers/{computer_id}/restore/preview", preview_restore, "restore.run"),
    post("/computers/{computer_id}/restore", restore, "restore.run"),
    get("/commands/{command_id}/watch", watch, "computers.view"),
)
