"""Differences as rows: unified text from an agent, and attributes before and after."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@(.*)$")
MAX_LINES = 2000


@dataclass(frozen=True)
class DifferenceLine:
    """One line of a unified difference: "added", "removed", "same" or "hunk", with its number on either side."""

    kind: str
    before: int | None
    after: int | None
    text: str


@dataclass(frozen=True)
class AttributeChange:
    """One attribute before and after; None where the entity did not exist."""

    name: str
    before: Any
    after: Any
    is_changed: bool


def difference_lines(text: str) -> list[DifferenceLine]:
    """Return the lines of a unified difference. Lines before the first hunk (the file names) are left out."""
    lines: list[DifferenceLine] = []
    before = after = 0
    in_hunk = False
    for line in text.splitlines()[:MAX_LINES]:
        hunk = HUNK.match(line)
        if hunk:
            before, after, in_hunk = int(hunk[1]), int(hunk[2]), True
            lines.append(DifferenceLine("hunk", None, None, line))
        elif not in_hunk:
            continue
        elif line.startswith("+"):
            lines.append(DifferenceLine("added", None, after, line[1:]))
            after += 1
        elif line.startswith("-"):
            lines.append(DifferenceLine("removed", before, None, line[1:]))
            before += 1
        elif line.startswith("\\"):
            lines.append(DifferenceLine("same", None, None, line))
        else:
            lines.append(DifferenceLine("same", before, after, line[1:]))
            before, after = before + 1, after + 1
    return lines


def attribute_changes(before: Mapping[str, Any], after: Mapping[str, Any], changed: list[str]) -> list[AttributeChange]:
    """Return the attributes of both sides in one list, those that changed first."""
    names = list(dict.fromkeys([*changed, *before, *after]))
    rows = [
        AttributeChange(name, before.get(name), after.get(name), name in changed or before.get(name) != after.get(name))
        for name in names
    ]
    return sorted(rows, key=lambda row: not row.is_changed)
