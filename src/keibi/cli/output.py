"""Showing answers: tables for people, JSON for programs (`--json`)."""

import json
import shutil
import sys
import time
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any


def say(text: str, *, is_problem: bool = False) -> None:
    """Write lines of text; `is_problem` sends them to the standard error output."""
    print(_harmless(text), file=sys.stderr if is_problem else sys.stdout)


def show_json(value: Any) -> None:
    """Write a value as JSON, one line when nobody reads along."""
    text = json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    # Valid JSON all the same: outside of its texts there is nothing unprintable but the ends of lines.
    print("".join(letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1] for letter in text))


def show_table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Write rows in aligned columns, cut to the terminal; `empty` is said when there are none."""
    if not rows:
        print(empty)
        return
    texts = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(_width(row[column]) for row in [list(headings), *texts]) for column in range(len(headings))]
    limit = shutil.get_terminal_size((200, 24)).columns
    for row in [[heading.upper() for heading in headings], *texts]:
        line = "  ".join(_padded(cell, widths[column]) for column, cell in enumerate(row)).rstrip()
        print(_cut(line, limit) if sys.stdout.isatty() else line)


def show_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Write names and values, one below the other; empty values are left out."""
    width = max((_width(name) for name, value in fields if value not in (None, "", [], {})), default=0)
    for name, value in fields:
        if value not in (None, "", [], {}):
            print(f"{_padded(name, width)}  {_one_line(value)}")


def moment(at: float | None) -> str:
    """Return a moment in the reader's own zone, "" for none."""
    return "" if not at else datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(at: float | None) -> str:
    """Return how long ago a moment was."""
    if not at:
        return "never"
    seconds = max(0, time.time() - at)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _one_line(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return _harmless(text).replace("\n", "�").replace("\t", "�")


def _harmless(text: str) -> str:
    # What came from a protected computer was escaped there; a terminal is not the place to rely on it.
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _cut(text: str, limit: int) -> str:
    if _width(text) <= limit:
        return text
    out, used = "", 0
    for character in text:
        used += _width(character)
        if used >= limit:
            break
        out += character
    return out + "…"
