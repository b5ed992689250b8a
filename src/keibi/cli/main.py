"""`keibi`: the command line. Each command is one function; `--json` gives programs what people get as tables."""

import argparse
import sys
from collections.abc import Callable, Sequence

from keibi.cli import local, malware, patterns, remote, software
from keibi.cli.output import say
from keibi.cli.up import BASE, PORT, Layout, down, status, up
from keibi.errors import AccessError, InputError, KeibiError

Action = Callable[[argparse.Namespace], int]
MODULE = "integrity_monitoring"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of everything that `keibi` understands."""
    parser = argparse.ArgumentParser(prog="keibi", description="Keibi protects servers from the inside.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_this_computer(commands)
    _add_agent(_group(commands, "agent", "the agent on this computer"))
    _add_manager(_group(commands, "manager", "the manager on this computer"))
    _add_computers(_group(commands, "computers", "protected computers"), commands)
    _add_events(_group(commands, "events", "what happened"))
    _add_rules(_group(commands, "rules", "the rule catalogue"))
    _add_policies(_group(commands, "policies", "the policy tree"))
    _add_patterns(_group(commands, "patterns", "imported sets of YARA rules, hashes and ClamAV databases"))
    malware.add_commands(_group(commands, "malware", "quarantine, threats and scans"), _command, _group)
    software.add_commands(_group(commands, "software", "what may run: changes, decisions, maintenance"), _command)
    tokens = _group(commands, "tokens", "enrolment tokens")
    create = _command(tokens, "create", remote.create_token, "make a token that enrols computers")
    create.add_argument("name")
    create.add_argument("--uses", type=int, default=1, help="for how many computers (default 1)")
    create.add_argument("--hours", type=float, default=24.0, help="how long it lasts (default 24)")
    audit = _group(commands, "audit", "who did what")
    verify = _command(audit, "verify", remote.verify_audit, "check that nothing in the audit trail was changed")
    verify.add_argument("--tenant", help="only this customer's chain (its id)")
    api = _command(commands, "api", remote.call_api, "call any path of the REST API")
    api.add_argument("method", choices=("GET", "POST", "PUT", "PATCH", "DELETE"), type=str.upper)
    api.add_argument("path", help="such as /computers")
    api.add_argument("--data", help="JSON, or @FILE")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 when it was done, 1 when not, 2 when it was asked wrongly, 3 without the right to."""
    options = build_parser().parse_args(arguments)
    action: Action = options.action
    try:
        return action(options)
    except KeibiError as error:
        say(f"keibi: {error.message}", is_problem=True)
        if error.where:
            say(f"  where: {error.where}", is_problem=True)
        if error.hint:
            say(f"  hint:  {error.hint}", is_problem=True)
        return 2 if isinstance(error, InputError) else 3 if isinstance(error, AccessError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        return 0


def _add_this_computer(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for name, function, about in (
        ("up", up, "protect this computer: start manager and agent, and enrol it"),
        ("down", down, "stop what 'up' started; what was gathered stays"),
        ("status", status, "say what runs"),
    ):
        made = _command(commands, name, _on_this_computer(function), about)
        made.add_argument("--port", type=int, default=PORT, help=f"the manager's port (default {PORT})")
        made.add_argument("--home", default=BASE, help=f"where everything is kept (default {BASE})")
    prove = _command(commands, "prove", _prove, "trigger each protection module harmlessly and show what arrived")
    prove.add_argument("--home", default=BASE, help=f"where 'keibi up' keeps everything (default {BASE})")
    prove.add_argument("--seconds", type=float, default=10.0, help="how long to wait for each event (default 10)")


def _on_this_computer(function: Callable[[Layout], int]) -> Action:
    return lambda options: function(Layout(options.home, options.port))


def _prove(options: argparse.Namespace) -> int:
    from keibi.cli.prove.run import prove

    return prove(Layout(options.home), options.seconds, as_json=options.json)


def _add_agent(group: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for name, action, about in (
        ("status", local.agent_status, "how the agent and its modules are"),
        ("scan", local.agent_scan, "scan for changes now"),
        ("doctor", local.agent_doctor, "look for what is wrong, and say what to do"),
        ("leave-safe-mode", local.leave_safe_mode, "start again what crashed too often"),
        ("unlock", local.agent_unlock, "let application control block nothing for a while, with a one-time code"),
        ("enrol", local.agent_enrol, "make this computer known to a manager"),
        ("run", local.agent_run, "run the agent in the foreground"),
    ):
        made = _command(group, name, action, about)
        made.add_argument("--config", default="", help="the agent's configuration file")
        if name == "scan":
            made.add_argument("paths", nargs="*", help="only these paths (default: all that is watched)")
        if name == "unlock":
            made.add_argument("code", nargs="*", help="the console's answer to the challenge; without it, show a challenge")
            made.add_argument("--minutes", type=float, default=60.0, help="for how long (default 60)")
        if name == "enrol":
            made.add_argument("--manager", required=True, metavar="URL", help="such as https://manager.example:8443")
            made.add_argument("--token", required=True, help="from the console, or 'keibi tokens create'")
            made.add_argument("--ca", required=True, metavar="FILE", help="the manager's certificate authority")
            made.add_argument("--again", action="store_true", help="give this computer a new identity")


def _add_manager(group: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = _command(group, "run", local.manager_run, "run the manager in the foreground")
    reset = _command(group, "reset-password", local.reset_password, "give a user another password, read from standard input")
    reset.add_argument("name")
    for made in (run, reset):
        made.add_argument("--config", default="", help="the manager's configuration file")
        made.add_argument("--state", default="", help="the manager's directory")


def _add_computers(
    group: "argparse._SubParsersAction[argparse.ArgumentParser]", commands: "argparse._SubParsersAction[argparse.ArgumentParser]"
) -> None:
    listing = _command(group, "list", remote.list_computers, "list computers")
    listing.add_argument("text", nargs="?", help="part of a name or address")
    listing.add_argument("--state", choices=("online", "offline", "never", "disabled"))
    _paged(listing)
    _command(group, "show", remote.show_computer, "show one computer").add_argument("computer", help="name or id")
    for name, kind, about in (
        ("scan", "scan", "scan a computer for changes, and follow the scan"),
        ("rebuild-baseline", "rebuild_baseline", "take what is there now as the new baseline"),
    ):
        made = _command(commands, name, remote.run_command, about)
        made.add_argument("computer", help="name or id")
        made.add_argument("--path", action="append", default=[], help="only this path; may be given again")
        made.set_defaults(kind=kind, module=MODULE, arguments=_scan_arguments)
    made = _command(commands, "restore", remote.restore, "show what restoring a file would change; --yes does it")
    made.add_argument("event", help="the id of the event that tells of the change")
    made.add_argument("--yes", action="store_true", help="do it")
    made = _command(commands, "baseline", remote.show_baseline, "show a computer's baseline: versions, drifts, entries")
    made.add_argument("computer", help="name or id")
    made.add_argument("--prefix", default="", help="show the entries at and below this path")
    made.add_argument("--limit", type=int, default=20, help="how many versions and entries (default 20)")
    for decision in ("approve", "reject"):
        made = _command(commands, decision, remote.run_command, f"{decision} drifts of a computer")
        made.add_argument("computer", help="name or id")
        made.add_argument("drift", nargs="+", help="ids of drifts")
        made.set_defaults(
            kind="decide_drift",
            module=MODULE,
            arguments=lambda options, decision=decision: {"decision": decision, "drift_ids": options.drift},
        )


def _scan_arguments(options: argparse.Namespace) -> dict[str, object]:
    return {"paths": options.path} if options.path else {}


def _add_events(group: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    listing = _command(group, "list", remote.list_events, "search events, newest first")
    _paged(listing)
    for made in (
        listing,
        _command(group, "tail", remote.tail_events, "show events as they come"),
        _command(group, "export", remote.export_events, "write events as CSV"),
    ):
        made.add_argument("--text", help="a part of the path, message or rule")
        made.add_argument("--computer", help="name or id")
        made.add_argument("--severity", choices=("low", "medium", "high", "critical"), help="this or graver")
        made.add_argument("--module")
        made.add_argument("--kind", help="such as file.updated")
        made.add_argument("--rule")
        made.add_argument("--tag")
        made.add_argument("--hours", type=float, help="only the last so many hours")
    _command(group, "show", remote.show_event, "show one event whole").add_argument("event")


def _add_rules(group: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    listing = _command(group, "list", remote.list_rules, "list rules")
    listing.add_argument("text", nargs="?", help="part of an id, title or description")
    listing.add_argument("--module")
    _paged(listing)
    _command(group, "show", remote.show_rule, "show one rule").add_argument("rule")
    _command(group, "check", remote.check_rule, "check rule files, without a manager").add_argument("files", nargs="+")
    add = _command(group, "add", remote.add_rule, "add an own rule from a YAML file")
    add.add_argument("file")
    add.add_argument("--module", default=MODULE)


def _add_policies(group: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    _command(group, "list", remote.list_policies, "show the tree")
    export = _command(group, "export", remote.export_policy, "write a policy as YAML")
    export.add_argument("policy", help="the policy's id")
    export.add_argument("--with-children", action="store_true")
    load = _command(group, "import", remote.import_policy, "apply a policy file")
    load.add_argument("file")
    load.add_argument("--dry-run", action="store_true", help="only show what it would change")


def _add_patterns(group: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    load = _command(group, "import", patterns.import_patterns, "import a file or folder as a set, or as its next version")
    load.add_argument("path", help=".yar, SHA-256 list, ClamAV database, zip or tar of such files, or a folder")
    load.add_argument("--name", help="of the set (default: from the file's name)")
    load.add_argument("--kind", choices=("auto", "yara", "hashes", "clamav"), help="what it is (default: as its files say)")
    load.add_argument("--licence", help="under which terms the patterns may be used")
    load.add_argument("--description", help="what the set is for")
    load.add_argument("--for-all", action="store_true", help="share it with all customers (provider)")
    load.add_argument("--dry-run", action="store_true", help="only show what would be taken and refused")
    load.add_argument("--strict", action="store_true", help="end with 1 when anything was refused")
    _command(group, "list", patterns.list_patterns, "list sets")
    _command(group, "show", patterns.show_patterns, "show a set, its versions and what was refused").add_argument(
        "name", help="of the set, or its id"
    )
    back = _command(group, "rollback", patterns.roll_back, "make another version of a set current")
    back.add_argument("name", help="of the set, or its id")
    back.add_argument("version", type=int, help="its number, as 'show' lists it")
    use = _command(group, "assign", patterns.assign, "use a set in a policy")
    use.add_argument("name", help="of the set, or its id")
    use.add_argument("policy", help="path ('Base > Linux'), name or id")
    use.add_argument("--remove", action="store_true", help="use it there no longer")
    _command(group, "delete", patterns.delete, "delete a set that no policy uses").add_argument(
        "name", help="of the set, or its id"
    )


def _paged(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--cursor", help="where the former page ended")


def _group(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str
) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    made = commands.add_parser(name, help=about, description=about[0].upper() + about[1:])
    return made.add_subparsers(metavar="COMMAND", required=True)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, action: Action, about: str
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=about, description=about[0].upper() + about[1:])
    made.add_argument("--json", action="store_true", help="answer in JSON")
    made.set_defaults(action=action)
    return made


if __name__ == "__main__":
    sys.exit(main())
