"""Commands that ask the manager, over the same REST API that the console matches."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from keibi.cli.client import ApiClient, Profile
from keibi.cli.output import ago, moment, say, show_fields, show_json, show_table
from keibi.errors import InputError

Action = Callable[[argparse.Namespace], int]
_FINAL = {"done", "failed", "refused", "expired"}


def client(timeout_seconds: float = 30.0) -> ApiClient:
    """Return the API of the manager that the environment or the profile names."""
    return ApiClient(Profile.load(), timeout_seconds=timeout_seconds)


# --- computers


def list_computers(options: argparse.Namespace) -> int:
    """List computers."""
    page = client().get("/computers", text=options.text, state=options.state, limit=options.limit, cursor=options.cursor)
    if options.json:
        show_json(page)
        return 0
    rows = [
        (
            one["display_name"] or one["hostname"],
            one["state"],
            ", ".join(f"{module.replace('_', ' ')} {health}" for module, health in one["modules"].items()) or "-",
            f"{one['generation_in_force']}/{one['generation_wanted']}",
            ago(one["last_heartbeat_at"]),
            one["computer_id"],
        )
        for one in page["items"]
    ]
    show_table(
        ("name", "state", "modules", "policy", "heard", "id"),
        rows,
        empty="No computers. 'keibi tokens create NAME' makes a token to enrol one.",
    )
    show_more(page)
    return 0


def show_computer(options: argparse.Namespace) -> int:
    """Show one computer."""
    api = client()
    one = api.get(f"/computers/{find_computer_id(api, options.computer)}")
    if options.json:
        show_json(one)
        return 0
    show_fields(
        [
            ("name", one["display_name"] or one["hostname"]),
            ("state", one["state"]),
            ("system", one["os_pretty_name"]),
            ("addresses", one["addresses"]),
            ("agent", one["agent_version"]),
            ("heard", f"{moment(one['last_heartbeat_at'])} ({ago(one['last_heartbeat_at'])})"),
            ("policy", f"generation {one['generation_in_force']} in force, {one['generation_wanted']} wanted"),
            ("problems", [problem.get("message", str(problem)) for problem in one["problems"]]),
            ("drifts", one["drift_count"] or ""),
        ]
    )
    for module in (one.get("status") or {}).get("modules", []):
        print(f"\n{module['module']}: {module['health']} {module.get('message', '')}".rstrip())
        for lacking in module.get("not_enforced", []):
            print(f"  not enforced: {lacking['what']}: {lacking['reason']}")
    return 0


# --- commands


def run_command(options: argparse.Namespace) -> int:
    """Send a command to a computer, follow it to its end and show the result; 1 when it was not done."""
    api = client()
    computer_id = find_computer_id(api, options.computer)
    body = {"kind": options.kind, "module": options.module, "arguments": options.arguments(options)}
    answer = follow(api, api.post(f"/computers/{computer_id}/commands", body), is_quiet=options.json)
    if options.json:
        show_json(answer)
    else:
        say(answer["message"] or answer["state"])
        if answer["result"]:
            show_json(answer["result"])
    return 0 if answer["state"] == "done" else 1


def show_baseline(options: argparse.Namespace) -> int:
    """Show versions, drifts and, with --prefix, entries of a computer's baseline."""
    api = client()
    arguments = {"limit": options.limit} | ({"prefix": options.prefix} if options.prefix else {})
    body = {"kind": "list_baseline", "module": "integrity_monitoring", "arguments": arguments}
    answer = follow(api, api.post(f"/computers/{find_computer_id(api, options.computer)}/commands", body), is_quiet=True)
    if answer["state"] != "done":
        raise InputError("not_listed", answer["message"] or "the computer did not answer in time", where=options.computer)
    result = answer["result"]
    if options.json:
        show_json(result)
        return 0
    rows = [(one["version"], one["kind"], moment(one["started_at"]), one["change_count"]) for one in result["versions"]]
    show_table(("version", "made by", "at", "changes"), rows, empty="There is no baseline yet.")
    if result["drifts"]:
        print("\nDrifts that wait for a decision ('keibi approve' or 'keibi reject'):")
        drifts = [(one["change"], one["key"], ", ".join(one["changed_attributes"]), one["drift_id"]) for one in result["drifts"]]
        show_table(("change", "what", "differs in", "id"), drifts, empty="")
    if "entries" in result:
        print()
        entries = [
            (one["key"], one["type"], one["permissions"], f"{one['owner']}:{one['group']}", one.get("contents", ""))
            for one in result["entries"]
        ]
        show_table(("entry", "type", "mode", "owner", "contents"), entries, empty="Nothing is watched there.")
    return 0


def restore(options: argparse.Namespace) -> int:
    """Show what restoring the file of an event would change, and do it with --yes."""
    api = client()
    event = api.get(f"/events/{options.event}")
    details = event.get("details", {})
    arguments = {"key": event["subject"], "version": details.get("baseline_version", 0)}
    where = f"/computers/{event['computer_id']}/commands"
    module = "integrity_monitoring"
    preview = follow(api, api.post(where, {"kind": "preview_restore", "module": module, "arguments": arguments}), is_quiet=True)
    if preview["state"] != "done":
        raise InputError("preview_failed", preview["message"] or "the computer did not answer", where=event["subject"])
    result = preview["result"]
    if not result["can_restore"]:
        raise InputError("cannot_restore", result["reason"], where=event["subject"])
    print(result["difference"] or result["difference_note"] or "only owner or permissions change")
    if not options.yes:
        print("\nNothing was changed. With --yes the file is restored.")
        return 0
    arguments["expected_hash"] = result["expected_hash"]
    done = follow(api, api.post(where, {"kind": "restore", "module": module, "arguments": arguments}), is_quiet=True)
    print(done["message"] or f"{event['subject']} was restored")
    return 0 if done["state"] == "done" else 1


def follow(api: ApiClient, command: dict[str, Any], *, is_quiet: bool) -> dict[str, Any]:
    """Return a command when it has ended, saying on the way how it gets on."""
    shown = ""
    while command["state"] not in _FINAL:
        time.sleep(0.25)
        command = api.get(f"/commands/{command['command_id']}")
        said = command["message"]
        if said and said != shown and not is_quiet and command["state"] not in _FINAL:
            shown = said
            percent = f"{command['progress']:.0%} " if command["progress"] is not None else ""
            say(f"{percent}{said}", is_problem=True)
    return command


# --- events


def list_events(options: argparse.Namespace) -> int:
    """Search events, newest first."""
    api = client()
    page = api.get("/events", limit=options.limit, cursor=options.cursor, **_event_filter(api, options))
    if options.json:
        show_json(page)
        return 0
    show_table(
        ("detected", "severity", "kind", "subject", "who", "id"), [_event_row(one) for one in page["items"]], empty="No events."
    )
    show_more(page)
    return 0


def show_event(options: argparse.Namespace) -> int:
    """Show one event whole."""
    event = client().get(f"/events/{options.event}")
    if options.json:
        show_json(event)
        return 0
    details = event.get("details", {})
    print(event["message"])
    actor = event["actor"] or {}
    show_fields(
        [
            ("severity", event["severity"]),
            ("detected at", moment(event["detected_at"])),
            ("changed at", moment(event["changed_at"])),
            ("rule", event["rule_id"]),
            ("why", event["reason"]),
            ("who", _who(actor)),
            ("found by", details.get("source", {}).get("kind", "")),
            ("tags", event["tags"]),
        ]
    )
    for name in details.get("changed_attributes", []):
        print(f"  {name}: {details.get('before', {}).get(name)} -> {details.get('after', {}).get(name)}")
    if details.get("difference"):
        print(f"\n{details['difference']}")
    elif details.get("difference_note"):
        print(f"\nNo difference of the content: {details['difference_note']}")
    return 0


def tail_events(options: argparse.Namespace) -> int:
    """Show events as they come, until interrupted."""
    api = client()
    if not options.json:
        print("Waiting for events; Ctrl-C ends.", file=sys.stderr)
    for line in ApiClient(Profile.load(), timeout_seconds=3600.0).lines("/events/tail", **_event_filter(api, options)):
        if not line.startswith("data:"):
            continue
        data = json.loads(line.removeprefix("data:"))
        for event in data if isinstance(data, list) else [data]:
            if options.json:
                print(json.dumps(event, ensure_ascii=False), flush=True)
            elif "event_id" in event:
                print("  ".join(str(cell) for cell in _event_row(event)), flush=True)
    return 0


def export_events(options: argparse.Namespace) -> int:
    """Write all events that match as CSV."""
    api = client()
    for line in api.lines("/events/export.csv", **_event_filter(api, options)):
        print(line)
    return 0


def _event_filter(api: ApiClient, options: argparse.Namespace) -> dict[str, Any]:
    computer = find_computer_id(api, options.computer) if options.computer else None
    return {
        "module": options.module, "severity": options.severity, "text": options.text, "kind": options.kind, "rule": options.rule,
        "tag": options.tag, "computer": computer,
        "since": time.time() - options.hours * 3600 if options.hours else None,
    }  # fmt: skip


def _event_row(event: dict[str, Any]) -> tuple[str, ...]:
    return (
        moment(event["detected_at"]), event["severity"], event["kind"], event["subject"], _who(event["actor"] or {}),
        event["event_id"],
    )  # fmt: skip


def _who(actor: dict[str, Any]) -> str:
    process, user = actor.get("process", ""), actor.get("user", "")
    login = actor.get("login_user", "")
    name = f"{user} (signed in as {login})" if login and login != user else user
    return " by ".join(part for part in (process.rpartition("/")[2], name) if part)


# --- rules and policies


def list_rules(options: argparse.Namespace) -> int:
    """List rules of the catalogue."""
    page = client().get("/rules", text=options.text, module=options.module, limit=options.limit, cursor=options.cursor)
    if options.json:
        show_json(page)
        return 0
    rows = [(one["rule_id"], one["severity"], one["source"], one["version"], one["title"]["en"]) for one in page["items"]]
    show_table(("id", "severity", "source", "version", "title"), rows, empty="No rules match.")
    show_more(page)
    return 0


def show_rule(options: argparse.Namespace) -> int:
    """Show one rule."""
    show_json(client().get(f"/rules/{options.rule}"))
    return 0


def check_rule(options: argparse.Namespace) -> int:
    """Check rule files on this computer, without a manager; 1 when one has a problem."""
    # Imported here: reading YAML is the manager's, and the agent's package does without.
    from keibi.contract.names import ModuleId
    from keibi.manager.rules.checking import check_text

    failed = False
    for path in options.files:
        text = _read(path)
        prefix = next((line[3:].strip().strip("'\"")[:3] for line in text.splitlines() if line.startswith("id:")), "")
        module = {"ac-": ModuleId.APPLICATION_CONTROL, "am-": ModuleId.ANTI_MALWARE}.get(prefix, ModuleId.INTEGRITY_MONITORING)
        _, problems = check_text(module, text, needs_samples=True)
        for problem in problems:
            failed = True
            place = f"{path}:{problem.line}:{problem.column}" if problem.line else path
            print(f"{place}: {problem.message}" + (f" ({problem.hint})" if problem.hint else ""))
    if not failed:
        print(f"{len(options.files)} rule file(s) are good")
    return int(failed)


def add_rule(options: argparse.Namespace) -> int:
    """Add an own rule from a YAML file."""
    added = client().post("/rules", {"text": _read(options.file), "module": options.module})
    print(f"added {added.get('rule_id', added)}")
    return 0


def list_policies(options: argparse.Namespace) -> int:
    """Show the policy tree."""
    nodes = client().get("/policies")
    if options.json:
        show_json(nodes)
        return 0
    children: dict[str | None, list[dict[str, Any]]] = {}
    for node in nodes:
        children.setdefault(node["parent_id"], []).append(node)

    def show(parent: str | None, depth: int) -> None:
        for node in children.get(parent, []):
            print(f"{'  ' * depth}{node['name']}  (version {node['version']}, {node['policy_id']})")
            show(node["policy_id"], depth + 1)

    show(None, 0)
    return 0


def export_policy(options: argparse.Namespace) -> int:
    """Write a policy as YAML."""
    answer = client().get(f"/policies/{options.policy}/export", with_children=options.with_children or None)
    print(answer["text"] if isinstance(answer, dict) else answer, end="")
    return 0


def import_policy(options: argparse.Namespace) -> int:
    """Apply a policy file, or with --dry-run show what it would change."""
    show_json(client().post("/policies/import", {"text": _read(options.file)}, dry_run=options.dry_run))
    return 0


# --- administration


def create_token(options: argparse.Namespace) -> int:
    """Make an enrolment token and show it this once."""
    body = {"name": options.name, "max_uses": options.uses, "lasts_seconds": options.hours * 3600}
    show_json(client().post("/enrolment-tokens", body))
    return 0


def verify_audit(options: argparse.Namespace) -> int:
    """Check the chain of the audit trail; 1 when a link was changed or removed."""
    answer = client().get("/audit/verify", tenant_id=options.tenant)
    show_json(answer)
    chains = answer if isinstance(answer, list) else [answer]
    return 0 if all(chain.get("is_whole", chain.get("is_intact", False)) for chain in chains) else 1


def call_api(options: argparse.Namespace) -> int:
    """Call any path of the API."""
    body = None
    if options.data is not None:
        text = _read(options.data.removeprefix("@")) if options.data.startswith("@") else options.data
        try:
            body = json.loads(text)
        except ValueError as error:
            raise InputError("data_malformed", f"--data is no JSON: {error}") from error
    path = "/" + options.path.removeprefix("/").removeprefix("api/v1/")
    answer = client().call(options.method.upper(), path, body=body)
    if isinstance(answer, str):
        print(answer)
    elif answer is not None:
        show_json(answer)
    return 0


# --- parts


def find_computer_id(api: ApiClient, name: str) -> str:
    """Return the id of the computer that is meant: an id, or a name that only one has."""
    if len(name) == 32 and all(letter in "0123456789abcdef" for letter in name):
        return name
    found = [one for one in every(api, "/computers", text=name) if name in (one["hostname"], one["display_name"])]
    if len(found) == 1:
        return str(found[0]["computer_id"])
    if not found:
        raise InputError("computer_unknown", f"there is no computer called {name!r}", hint="'keibi computers list' lists them")
    raise InputError("computer_ambiguous", f"{len(found)} computers are called {name!r}", hint="give the id instead")


def rows_in(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list out of an agent's result; anything of another shape is left out, for it is the agent's word."""
    found = result.get(name)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def every(api: ApiClient, path: str, **query: Any) -> Iterator[dict[str, Any]]:
    """Yield all rows of a list, page by page."""
    cursor: str | None = None
    while True:
        page = api.get(path, **query, limit=1000, cursor=cursor)
        yield from page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("file_unreadable", f"cannot read the file: {error}", where=path) from error


def show_more(page: dict[str, Any]) -> None:
    """Say how the next page is had, if there is one."""
    if page.get("next_cursor"):
        print(f"\nMore: --cursor {page['next_cursor']}")
