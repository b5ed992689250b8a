"""`keibi software`: software changes, deciding about them, maintenance, inventories and unlock codes."""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

from keibi.cli.arguments import hours, whole
from keibi.cli.client import ApiClient, segment
from keibi.cli.output import ago, moment, say, show_json, show_table
from keibi.cli.remote import client, find_computer_id, follow, rows_in, show_more
from keibi.errors import InputError

Action = Callable[[argparse.Namespace], int]
AddCommand = Callable[..., argparse.ArgumentParser]
MODULE = "application_control"
STANDINGS = ("open", "allowed", "blocked", "recognised", "all")


def add_commands(group: "argparse._SubParsersAction[argparse.ArgumentParser]", command: AddCommand) -> None:
    """Add the commands to their group; `command` makes one, with `--json`."""
    changes = command(group, "changes", list_changes, "list software that appeared, changed or was blocked, newest first")
    _add_filter(changes)
    changes.add_argument("--by", choices=("hash", "computer", "bringer", "place"), default="hash", help="how to group")
    changes.add_argument("--limit", type=whole(1, 1000), default=50, help="rows of a page, up to 1000 (default 50)")
    changes.add_argument("--cursor", help="where the former page ended")
    for verb in ("allow", "block"):
        made = command(group, verb, decide, f"{verb} software, after a preview; --yes does it")
        made.add_argument("sha256", nargs="*", help="SHA-256 of contents")
        made.add_argument("--package", action="append", default=[], metavar="NAME[@ORIGIN]", help="unchanged files of a package")
        made.add_argument("--path", dest="patterns", action="append", default=[], metavar="PATTERN", help="such as /opt/shop/**")
        made.add_argument("--anybody", action="store_true", help="allow paths also where others than root can write")
        made.add_argument("--interpreter", action="append", default=[], metavar="PATTERN", help="its inline code")
        made.add_argument("--key", action="append", default=[], metavar="ID", help="a key that signs packages")
        made.add_argument("--all-open", metavar="TEXT", nargs="?", const="", help="all that is open, or that has this text")
        made.add_argument("--ruleset", help="the id of one of your own rulesets")
        made.add_argument("--policy", action="append", default=[], help="the id of a policy that shall use it")
        made.add_argument("--note", default="", help="why")
        made.add_argument("--tenant", help="the customer's id, where several are in sight")
        made.add_argument("--yes", action="store_true", help="do it")
        made.set_defaults(verb=verb)
    decisions = command(group, "decisions", list_decisions, "list what was decided, newest first")
    decisions.add_argument("--limit", type=whole(1, 1000), default=50, help="rows of a page, up to 1000 (default 50)")
    decisions.add_argument("--cursor", help="where the former page ended")
    back = command(group, "undo", undo, "undo a decision, after a preview; --yes does it")
    back.add_argument("decision", help="the decision's id")
    back.add_argument("--yes", action="store_true", help="do it")
    rulesets = command(group, "rulesets", list_rulesets, "list rulesets, or the entries of one")
    rulesets.add_argument("ruleset", nargs="?", help="the id of one")
    rulesets.add_argument("--text", help="only entries with this text")
    rulesets.add_argument("--limit", type=whole(1, 1000), default=50, help="rows of a page, up to 1000 (default 50)")
    rulesets.add_argument("--cursor", help="where the former page ended")
    maintenance = command(group, "maintenance", set_maintenance, "begin, lengthen or end maintenance of computers")
    maintenance.add_argument("computers", nargs="+", metavar="COMPUTER", help="names or ids")
    maintenance.add_argument("--minutes", type=whole(1, 7 * 24 * 60), default=60, help="how long (default 60)")
    maintenance.add_argument("--end", action="store_true", help="end it")
    maintenance.add_argument("--dry-run", action="store_true", help="only say which computers it reaches")
    inventory = command(group, "inventory", show_inventory, "search a computer's inventory, or have it taken anew")
    inventory.add_argument("computer", help="name or id")
    inventory.add_argument("text", nargs="?", default="", help="a part of a path, package or hash")
    inventory.add_argument("--limit", type=whole(1, 1000), default=200, help="rows of a page, up to 1000 (default 200)")
    inventory.add_argument("--after", default="", help="where the former page ended")
    inventory.add_argument("--rebuild", action="store_true", help="take it anew: what is there now becomes trusted")
    code = command(group, "unlock-code", make_unlock_code, "make the code that frees a computer without a network")
    code.add_argument("computer", help="name or id")
    code.add_argument("challenge", help="as 'keibi agent unlock' shows it there")


def list_changes(options: argparse.Namespace) -> int:
    """List groups of software changes."""
    api = client()
    query = {"by": options.by, "limit": options.limit, "cursor": options.cursor, **_filter(api, options)}
    page = api.call("GET", "/software/changes", query=query)
    if options.json:
        show_json(page)
        return 0
    rows = [
        (
            one["standing"],
            _what(one, options.by),
            one["computer_count"],
            one["execution_count"],
            one["blocked_count"],
            _who(one["bringers"]),
            ago(one["last_at"]),
            one["sha256"] or one["key"],
        )
        for one in page["items"]
    ]
    show_table(
        ("standing", "what", "computers", "attempts", "blocked", "brought by", "seen", "sha256"),
        rows,
        empty="Nothing waits for a decision." if options.standing == "open" else "No software fits.",
    )
    if page["total"]:
        say(f"\n{page['total']} in all")
    show_more(page)
    return 0


def decide(options: argparse.Namespace) -> int:
    """Show what allowing or blocking would do, and do it with --yes."""
    api = client()
    body: dict[str, Any] = {
        "action": options.verb,
        "sha256": options.sha256,
        "packages": [_package(text) for text in options.package],
        "paths": [
            {"pattern": pattern, "only_root_writable": options.verb == "allow" and not options.anybody}
            for pattern in options.patterns
        ],
        "interpreters": options.interpreter,
        "keys": options.key,
        "rule_id": options.ruleset,
        "policy_ids": options.policy,
        "note": options.note,
        "tenant_id": options.tenant,
    }
    if options.all_open is not None:
        body["all_of"] = {"text": options.all_open}
    if options.yes:
        made = api.post("/software/decisions", body)
        if options.json:
            show_json(made)
        else:
            past = "allowed" if options.verb == "allow" else "blocked"
            count = len(made["entries"])
            say(
                f"{past} {count} item(s) on {made['computer_count']} computer(s); undo: keibi software undo {made['decision_id']}"
            )
        return 0
    preview = api.post("/software/decisions/preview", body)
    if options.json:
        show_json(preview)
        return 0
    _show_preview(preview)
    say(f"\nNothing was changed. With --yes they are {'allowed' if options.verb == 'allow' else 'blocked'}.")
    return 0


def list_decisions(options: argparse.Namespace) -> int:
    """List decisions."""
    page = client().get("/software/decisions", limit=options.limit, cursor=options.cursor)
    if options.json:
        show_json(page)
        return 0
    rows = [
        (
            moment(one["decided_at"]),
            one["action"] + (" (undone)" if one["undone_at"] else ""),
            len(one["entries"]),
            one["computer_count"],
            ", ".join(one["policies"]),
            one["decided_by"],
            one["note"],
            one["decision_id"],
        )
        for one in page["items"]
    ]
    show_table(("when", "decision", "items", "computers", "policies", "by", "note", "id"), rows, empty="Nothing was decided yet.")
    show_more(page)
    return 0


def undo(options: argparse.Namespace) -> int:
    """Show what undoing a decision would do, and do it with --yes."""
    api = client()
    where = f"/software/decisions/{segment(options.decision)}/undo"
    if options.yes:
        done = api.post(where, {})
        if options.json:
            show_json(done)
        else:
            say(f"undone: {len(done['entries'])} item(s)")
        return 0
    preview = api.post(f"{where}/preview")
    if options.json:
        show_json(preview)
        return 0
    say(f"It reaches {preview['computer_count']} computer(s): {', '.join(preview['computer_names'])}")
    say("\nNothing was changed. With --yes it is undone.")
    return 0


def list_rulesets(options: argparse.Namespace) -> int:
    """List rulesets, or the entries of one."""
    api = client()
    if options.ruleset is None:
        rulesets = api.get("/software/rulesets")
        if options.json:
            show_json(rulesets)
            return 0
        rows = [
            (
                one["rule_id"],
                one["action"],
                one["entry_count"],
                one["computer_count"],
                ", ".join(name for _, name in one["policies"]) or "-",
                one["title"]["en"],
            )
            for one in rulesets
        ]
        show_table(("id", "does", "entries", "computers", "policies", "title"), rows, empty="No rulesets.")
        return 0
    where = f"/software/rulesets/{segment(options.ruleset)}/entries"
    page = api.get(where, text=options.text, limit=options.limit, cursor=options.cursor)
    if options.json:
        show_json(page)
        return 0
    entries = [(one["kind"], _entry(one["entry"]), one["entry"].get("note", "")) for one in page["items"]]
    show_table(("kind", "what", "note"), entries, empty="No entries.")
    show_more(page)
    return 0


def set_maintenance(options: argparse.Namespace) -> int:
    """Begin, lengthen or end maintenance."""
    api = client()
    body = {
        "computer_ids": [find_computer_id(api, name) for name in options.computers],
        "minutes": 0 if options.end else options.minutes,
    }
    if options.dry_run:
        preview = api.post("/software/maintenance/preview", body)
        if options.json:
            show_json(preview)
            return 0
        say(f"It reaches {preview['computer_count']} computer(s): {', '.join(preview['computer_names'])}")
        for name, words in (("offline_names", "not online now"), ("without_names", "application control is off")):
            if preview[name]:
                say(f"  {words}: {', '.join(preview[name])}")
        return 0
    ended = [follow(api, sent, is_quiet=True) for sent in api.post("/software/maintenance", body)]
    if options.json:
        show_json(ended)
    else:
        rows = [(one["computer_name"], one["state"], one["message"] or _until(one["result"].get("until", 0.0))) for one in ended]
        show_table(("computer", "state", "until"), rows, empty="")
    return 0 if all(one["state"] == "done" for one in ended) else 1


def show_inventory(options: argparse.Namespace) -> int:
    """Search a computer's inventory, or have it taken anew."""
    api = client()
    where = f"/computers/{find_computer_id(api, options.computer)}/commands"
    if options.rebuild:
        done = follow(api, api.post(where, {"kind": "build_inventory", "module": MODULE}), is_quiet=options.json)
        if options.json:
            show_json(done)
        else:
            say(done["message"] or done["state"])
        return 0 if done["state"] == "done" else 1
    arguments = {"text": options.text, "after": options.after, "limit": options.limit}
    answer = follow(api, api.post(where, {"kind": "list_software", "module": MODULE, "arguments": arguments}), is_quiet=True)
    if answer["state"] != "done":
        raise InputError("not_listed", answer["message"] or "the computer did not answer in time", where=options.computer)
    result = answer["result"]
    if options.json:
        show_json(result)
        return 0
    rows = [
        (
            one.get("path"),
            one.get("kind"),
            _standing_of(one),
            (one.get("package") or {}).get("name", "") or one.get("process"),
            str(one.get("sha256"))[:16],
        )
        for one in rows_in(result, "items")
    ]
    show_table(("path", "kind", "standing", "from", "sha256"), rows, empty="Nothing in the inventory fits.")
    unrecognised = f"{result.get('unrecognised_count')} unrecognised{_said_of_malware(result)}"
    say(f"\n{result.get('total_count')} in the inventory, {unrecognised}")
    if result.get("next"):
        say(f"More: --after {result['next']}")
    return 0


def _standing_of(one: Mapping[str, Any]) -> str:
    why = one.get("trusted_by") or one.get("threat")
    scan = {"not": ", not scanned for malware", "partly": ", not fully scanned for malware"}.get(str(one.get("malware_scan")), "")
    said = f"{one.get('state')} ({why})" if why else str(one.get("state"))
    return said + scan if one.get("state") == "trusted" else said


def _said_of_malware(result: Mapping[str, Any]) -> str:
    said = f", {result['malicious_count']} hold malware" if result.get("malicious_count") else ""
    return said + (f", {result['unexamined_count']} not scanned for malware" if result.get("unexamined_count") else "")


def make_unlock_code(options: argparse.Namespace) -> int:
    """Make the code for a challenge."""
    api = client()
    answer = api.post(f"/computers/{find_computer_id(api, options.computer)}/unlock-code", {"challenge": options.challenge})
    if options.json:
        show_json(answer)
    else:
        say(answer["code"])
    return 0


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", help="a part of a path, package, process, user or hash")
    parser.add_argument("--standing", choices=STANDINGS, default="open", help="default: what nobody has decided on")
    parser.add_argument("--computer", help="name or id")
    parser.add_argument("--process", help="the program that brought it")
    parser.add_argument("--user", help="who brought it, or ran it")
    parser.add_argument("--path", help="exactly, or below it when it ends in /")
    parser.add_argument("--file", help="the last part of the path; * stands for anything")
    parser.add_argument("--package", help="the package that it belongs to, or that brought it")
    parser.add_argument("--hash", help="the SHA-256, or its beginning")
    parser.add_argument("--hours", type=hours, help="only the last so many hours")


def _filter(api: ApiClient, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "text": options.text,
        "standing": None if options.standing == "all" else options.standing,
        "computer": find_computer_id(api, options.computer) if options.computer else None,
        "process": options.process,
        "user": options.user,
        "path": options.path,
        "file": options.file,
        "package": options.package,
        "sha256": options.hash,
        "since": time.time() - options.hours * 3600 if options.hours else None,
    }


def _show_preview(preview: dict[str, Any]) -> None:
    for entry in preview["new_entries"][:20]:
        say(f"  {entry['kind']:12}{_entry(entry)}")
    if len(preview["new_entries"]) > 20:
        say(f"  and {len(preview['new_entries']) - 20} more")
    if preview["known_count"]:
        say(f"  {preview['known_count']} are in the ruleset already")
    say(f"Into {', '.join(preview['rule_ids'])}, used by {', '.join(name for _, name in preview['policies'])}.")
    for line in preview["change"]["lines"]:
        say(f"  {line['sentence']['en']}")
    say(f"It reaches {preview['change']['computer_count']} computer(s): {', '.join(preview['change']['computer_names'])}")
    if preview["off_count"]:
        say(f"On {preview['off_count']} of these computers application control is switched off: nothing happens there.")


def _package(text: str) -> dict[str, str]:
    name, _, origin = text.partition("@")
    return {"name": name, "origin": origin}


def _entry(entry: dict[str, Any]) -> str:
    if entry["kind"] == "hash":
        return f"{entry['sha256']} {entry.get('name', '')}".strip()
    if entry["kind"] == "package":
        return " ".join(part for part in (entry["name"], entry.get("version", ""), entry.get("origin", "")) if part)
    return str(entry.get("pattern") or entry.get("path") or entry.get("key_id", ""))


def _what(group: dict[str, Any], by: str) -> str:
    if by == "computer":
        return str(group["key"])
    if by == "bringer":
        return _who(group["bringers"])
    more = f" and {group['path_count'] - 1} more" if group["path_count"] > 1 else ""
    return f"{group['paths'][0] if group['paths'] else group['key']}{more}"


def _who(bringers: list[dict[str, str]]) -> str:
    if not bringers:
        return ""
    first = bringers[0]
    named = first.get("package") or first.get("process", "").rpartition("/")[2]
    user = f" as {first['user']}" if first.get("user") else ""
    return f"{named}{user}" + (f" and {len(bringers) - 1} more" if len(bringers) > 1 else "")


def _until(at: float) -> str:
    return moment(at) if at else "ended"
