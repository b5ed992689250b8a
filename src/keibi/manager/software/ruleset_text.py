"""Entries put into, and taken out of, the YAML of a ruleset; comments and the order of all else stay.

An entry that is put in is one line. A text in which `entries` is written in a way that cannot be edited line by line is written
anew as a whole, without its comments.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import yaml

from keibi.manager.rules.model import Words
from keibi.manager.rules.yaml_text import YamlDocument, YamlProblem, read_yaml
from keibi.protection.application_control.rules import Entry, RuleAction

DESCRIPTIONS = {
    RuleAction.ALLOW: (
        "Software that somebody decided to allow.",
        "許可することに決めたソフトウェアです。",
    ),
    RuleAction.BLOCK: (
        "Software that somebody decided to block; it is blocked in detect mode too.",
        "ブロックすることに決めたソフトウェアです。検出モードでもブロックします。",
    ),
}
_NOT_COMPARED = ("note", "name", "size")


def identity(entry: Entry) -> tuple[Any, ...]:
    """Return what makes an entry the one that it is: all but its note, and for a content its name and size."""
    values = msgspec.to_builtins(entry)
    left_out = _NOT_COMPARED if values["kind"] == "hash" else ("note",)
    return tuple(sorted((name, json.dumps(value)) for name, value in values.items() if name not in left_out))


def new_ruleset(rule_id: str, title: Words, action: RuleAction, severity: str) -> str:
    """Return the text of a ruleset without entries."""
    description, description_ja = DESCRIPTIONS[action]
    return (
        f"# Written by decisions in the console; edit it as you like.\nid: {rule_id}\nversion: 1\n"
        f"title:\n  en: {_quoted(title.en)}\n  ja: {_quoted(title.ja)}\n"
        f"description:\n  en: {_quoted(description)}\n  ja: {_quoted(description_ja)}\n"
        f"severity: {severity}\naction: {action.value}\nentries: []\n"
    )


def with_entries(text: str, entries: Sequence[Entry]) -> str:
    """Return the text with these entries after the ones that it has.

    Raises:
        YamlProblem: the text cannot be read.
    """
    if not entries:
        return text
    document = read_yaml(text)
    wanted = _value(document)
    wanted["entries"] = [*(wanted.get("entries") or []), *(msgspec.to_builtins(entry) for entry in entries)]
    return _checked(_appended(text, document, [line_of(entry) for entry in entries]), wanted)


def without_entries(text: str, numbers: Collection[int]) -> str:
    """Return the text without the entries of these numbers, counted from 0.

    Raises:
        YamlProblem: the text cannot be read.
    """
    document = read_yaml(text)
    wanted = _value(document)
    before = wanted.get("entries") or []
    wanted["entries"] = [entry for number, entry in enumerate(before) if number not in numbers]
    return _checked(_removed(text, document, len(before), set(numbers)), wanted)


def _value(document: YamlDocument) -> dict[str, Any]:
    if not isinstance(document.value, dict):
        raise YamlProblem("a rule is a mapping of names to values")
    return dict(document.value)


def _checked(edited: str | None, wanted: dict[str, Any]) -> str:
    """Return the edited text if it says what is wanted, else a text that does."""
    if edited is not None:
        try:
            if read_yaml(edited).value == wanted:
                return edited
        except YamlProblem:
            pass
    return yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True, width=1000)


def _appended(text: str, document: YamlDocument, new: list[str]) -> str | None:
    place = document.places.get(("entries",))
    lines = text.splitlines()
    if place is None or place.column != 1:
        return None
    before = document.value.get("entries") or []
    if not before:
        head = lines[place.line - 1]
        if head.split("#")[0].replace(" ", "") not in ("entries:[]", "entries:"):
            return None
        return "\n".join([*lines[: place.line - 1], "entries:", *(f"  {line}" for line in new), *lines[place.line :]]) + "\n"
    indent = _indent(lines, document, len(before) - 1)
    if indent is None:
        return None
    end = _end_of_entries(lines, document, place.line)
    return "\n".join([*lines[:end], *(f"{indent}{line}" for line in new), *lines[end:]]) + "\n"


def _removed(text: str, document: YamlDocument, count: int, numbers: set[int]) -> str | None:
    place = document.places.get(("entries",))
    lines = text.splitlines()
    if place is None or place.column != 1 or any(_indent(lines, document, number) is None for number in range(count)):
        return None
    starts = [document.places["entries", number].line - 1 for number in range(count)]
    if len(set(starts)) != count:
        return None
    end = _end_of_entries(lines, document, place.line)
    if len(numbers) >= count:
        return "\n".join([*lines[: place.line - 1], "entries: []", *lines[end:]]) + "\n"
    gone: set[int] = set()
    for number, (start, following) in enumerate(zip(starts, [*starts[1:], end], strict=True)):
        if number in numbers:
            gone |= set(range(start, following))
    return "\n".join(line for at, line in enumerate(lines) if at not in gone) + "\n"


def _indent(lines: Sequence[str], document: YamlDocument, number: int) -> str | None:
    """Return what stands before the dash of an entry; None where it does not begin with a dash on a line of its own."""
    place = document.places["entries", number]
    before = lines[place.line - 1][: place.column - 1]
    return before[: before.index("-")] if before.strip() == "-" else None


def _end_of_entries(lines: Sequence[str], document: YamlDocument, start: int) -> int:
    """Return how many lines there are up to the end of the entries, without what belongs to the next key."""
    following = [place.line - 1 for path, place in document.places.items() if len(path) == 1 and place.line > start]
    end = min(following, default=len(lines))
    while end > start and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    return end


def line_of(entry: Entry) -> str:
    """Return an entry as one line of a list."""
    values = ", ".join(f"{name}: {_quoted(value)}" for name, value in msgspec.to_builtins(entry).items())
    return f"- {{{values}}}"


def _quoted(value: Any) -> str:
    if isinstance(value, str) and value.isascii() and value.isidentifier() and value.lower() not in _WORDS:
        return value
    # JSON is YAML, except for the separators of lines that YAML knows beside "\n": those are escaped.
    return json.dumps(value, ensure_ascii=not (isinstance(value, str) and value.isprintable()))


_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
