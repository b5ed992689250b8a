"""`keibi patterns`: imported sets of YARA rules, hashes and ClamAV databases."""

import argparse
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from keibi.cli.client import ApiClient
from keibi.cli.output import moment, say, show_fields, show_json, show_table
from keibi.cli.remote import client
from keibi.errors import InputError

SHOWN_REFUSALS = 50
IMPORT_SECONDS = 1500.0


def import_patterns(options: argparse.Namespace) -> int:
    """Import a file or a folder and show the report; 1 when something was refused and --strict is given."""
    api = client(timeout_seconds=IMPORT_SECONDS)
    with _opened(options.path) as (file, file_name):
        outcome = api.upload(
            "/patterns/import",
            file,
            file_name=file_name,
            name=options.name,
            kind=options.kind,
            licence=options.licence,
            description=options.description,
            for_all=options.for_all or None,
            dry_run=options.dry_run or None,
        )
    report = outcome["report"]
    if options.json:
        show_json(outcome)
    else:
        made = outcome["pattern_set"]
        kept = f"version {made['current']['number']} of {made['name']}" if made else "nothing was kept (a trial)"
        show_fields([("imported", kept), *_report_fields(report)])
        _show_refused(report)
    return 1 if options.strict and report["refused_count"] else 0


def list_patterns(options: argparse.Namespace) -> int:
    """List pattern sets."""
    sets = client().get("/patterns")
    if options.json:
        show_json(sets)
        return 0
    rows = [
        (
            one["name"],
            one["current"]["number"],
            _taken(one["current"]["report"]),
            "all customers" if one["is_shared"] else "",
            moment(one["current"]["imported_at"]),
            one["set_id"],
        )
        for one in sets
    ]
    show_table(
        ("name", "version", "holds", "shared with", "imported", "id"), rows, empty="No sets. 'keibi patterns import FILE'."
    )
    return 0


def show_patterns(options: argparse.Namespace) -> int:
    """Show one set with its versions and where it is used."""
    api = client()
    one = api.get(f"/patterns/{_set_id(api, options.name)}")
    if options.json:
        show_json(one)
        return 0
    show_fields(
        [
            ("name", one["name"]),
            ("description", one["description"]),
            ("used by", [use["name"] for use in one["uses"]]),
            *_report_fields(one["current"]["report"]),
        ]
    )
    say("")
    rows = [
        (
            f"{version['number']}{' (current)' if version['is_current'] else ''}",
            version["file_name"],
            version["licence"],
            _taken(version["report"]),
            moment(version["imported_at"]),
            version["imported_by"],
        )
        for version in one["versions"]
    ]
    show_table(("version", "file", "licence", "holds", "imported", "by"), rows, empty="")
    _show_refused(one["current"]["report"])
    return 0


def roll_back(options: argparse.Namespace) -> int:
    """Make another version of a set current."""
    api = client()
    one = api.post(f"/patterns/{_set_id(api, options.name)}/return", {"number": options.version})
    if options.json:
        show_json(one)
    else:
        say(f"{one['name']} is at version {one['current']['number']} now")
    return 0


def assign(options: argparse.Namespace) -> int:
    """Use a set in a policy, or no longer."""
    api = client()
    body = {"policy_id": _policy_id(api, options.policy), "is_assigned": not options.remove}
    done = api.post(f"/patterns/{_set_id(api, options.name)}/assign", body)
    if options.json:
        show_json(done)
    else:
        say(f"saved; it reaches {done['preview']['computer_count']} computers")
    return 0


def delete(options: argparse.Namespace) -> int:
    """Delete a set that no policy uses."""
    api = client()
    api.call("DELETE", f"/patterns/{_set_id(api, options.name)}")
    if options.json:
        show_json(None)
    else:
        say(f"deleted {options.name}")
    return 0


@contextmanager
def _opened(path: str) -> Iterator[tuple[IO[bytes], str]]:
    """Open a file, or a folder packed into one; gives it with the name that it is sent under."""
    name = os.path.basename(os.path.abspath(path))
    try:
        if os.path.isdir(path):
            with tempfile.TemporaryFile() as packed:
                with tarfile.open(fileobj=packed, mode="w") as archive:
                    archive.add(path, arcname=name)
                packed.seek(0)
                yield packed, f"{name}.tar"
            return
        with open(path, "rb") as file:
            yield file, name
    except OSError as error:
        raise InputError("file_unreadable", f"cannot read: {error.strerror}", where=path) from error


def _set_id(api: ApiClient, name: str) -> str:
    """Return the id of a set by its name (the own one before a shared one) or its id."""
    sets = api.get("/patterns")
    found = [one for one in sets if name in (one["name"], one["set_id"])]
    if not found:
        names = ", ".join(sorted({one["name"] for one in sets})) or "none"
        raise InputError("pattern_set_not_found", f"there is no pattern set {name!r}", hint=f"there are: {names}")
    return str(min(found, key=lambda one: one["is_shared"])["set_id"])


def _policy_id(api: ApiClient, name: str) -> str:
    """Return the id of a policy by its path, its name or its id."""
    policies = api.get("/policies")
    found = [one for one in policies if name in (one["policy_id"], one["path"], one["name"])]
    if len(found) != 1:
        what = "there is no" if not found else "there are several with the name of"
        hint = "give the path, such as 'Base > Linux'; 'keibi policies list' shows them"
        raise InputError("policy_not_found", f"{what} policy {name!r}", hint=hint)
    return str(found[0]["policy_id"])


def _report_fields(report: dict[str, Any]) -> list[tuple[str, Any]]:
    licences = [f"{one['name'] or 'none named'} ({one['count']})" for one in report["licences"]]
    return [
        ("taken", _taken(report)),
        ("refused", report["refused_count"]),
        ("files read", report["files_count"]),
        ("licences", licences),
        ("notes", report["notes"]),
    ]


def _taken(report: dict[str, Any]) -> str:
    return ", ".join(f"{count} {what}" for what, count in report["accepted"].items())


def _show_refused(report: dict[str, Any]) -> None:
    if not report["refused"]:
        return
    say("\nRefused:")
    rows = [(one["where"], one["what"], one["reason"]) for one in report["refused"][:SHOWN_REFUSALS]]
    show_table(("where", "what", "why"), rows, empty="")
    if report["refused_count"] > SHOWN_REFUSALS:
        say(f"… and {report['refused_count'] - SHOWN_REFUSALS} more; --json has up to 1,000 of them")
