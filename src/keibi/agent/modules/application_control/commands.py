"""What a person can ask of the inventory."""

from typing import Any

from keibi.agent.modules.application_control.examined import Examinations
from keibi.agent.modules.application_control.inventory import Inventory, Software
from keibi.agent.modules.application_control.lasting import MAX_MINUTES
from keibi.errors import InputError
from keibi.protection.base import escape_name, unescape_name

MAX_LISTED = 1000


def list_software(inventory: Inventory, examinations: Examinations, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a page of the inventory: {"text", "after", "limit"} in, `items`, `next` and the counts out.

    Raises:
        InputError: an argument is wrong.
    """
    text, after, limit = arguments.get("text", ""), arguments.get("after", ""), arguments.get("limit", 200)
    if not isinstance(text, str) or not isinstance(after, str) or not isinstance(limit, int):
        raise InputError("argument_invalid", "text and after are texts, limit is a number")
    try:
        start = unescape_name(after)
    except ValueError as error:
        raise InputError("argument_invalid", f"after is no escaped path: {error}") from error
    limit = max(1, min(MAX_LISTED, limit))
    found = inventory.page(text.strip(), start, limit)
    total, unrecognised = inventory.count()
    gaps = examinations.gaps([one.sha256 for one in found])
    counts = examinations.counts()
    return {
        "items": [shown(one, gaps.get(one.sha256)) for one in found],
        "next": escape_name(found[-1].path) if len(found) == limit else "",
        "total_count": total,
        "unrecognised_count": unrecognised,
        "unexamined_count": counts.unexamined,
        "malicious_count": counts.malicious,
    }


def shown(software: Software, gap: str | None) -> dict[str, Any]:
    """Return one file of the inventory as JSON types.

    `gap` says why its content was not wholly scanned for malware; "" where it was, None where nobody tried.
    """
    package = software.package
    return {
        "path": escape_name(software.path),
        "sha256": software.sha256,
        "size": software.key.size,
        "kind": str(software.kind),
        "state": "trusted" if software.is_trusted else "malicious" if software.threat else "unrecognised",
        "threat": software.threat,
        "malware_scan": _scan_word(software, gap),
        "not_scanned": gap or "",
        "trusted_by": str(software.trusted_by) if software.is_trusted else "",
        "package": {"name": package.name, "version": package.version, "origin": package.origin, "signer": package.signer}
        if package is not None
        else None,
        "first_seen_at": software.first_seen_at,
        "user": software.user,
        "process": software.process,
        "previous_sha256": software.previous_sha256,
    }


def _scan_word(software: Software, gap: str | None) -> str:
    """Return how a file was scanned before it was trusted: "whole", "partly", "not", or "package": its distributor vouches."""
    if gap is not None:
        return "partly" if gap else "whole"
    return "package" if software.package is not None else "not"


def minutes_of(arguments: dict[str, Any]) -> float:
    """Return for how long something is asked for; 0 ends it.

    Raises:
        InputError: no number, or too long.
    """
    minutes = arguments.get("minutes")
    if not isinstance(minutes, int | float) or isinstance(minutes, bool) or not 0 <= minutes <= MAX_MINUTES:
        raise InputError(
            "argument_invalid", f"minutes must be a number from 0 to {MAX_MINUTES}, not {minutes!r}", hint="0 ends it"
        )
    return float(minutes)
