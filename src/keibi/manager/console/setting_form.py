"""Settings as form controls, and back: made from the JSON schema of the module's settings struct, nothing by hand.

A simple control is one field. A *map* has one row for each key that its schema allows; a *table* has one row for each struct of
a list, and empty rows to add some. The fields of both are named after the setting: `NAME.KEY`, `NAME.ROW.COLUMN`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from keibi.errors import InputError
from keibi.manager.policies.model import SettingHelp

EMPTY_ROWS = 2
MAX_ROWS = 1000
# "one of these words, and perhaps another after a comma": the one pattern that is shown as choices and not as text.
_SEQUENCE = re.compile(r"\^\(([\w|-]+)\)\( \*, \*\(\1\)\)\?\$")


@dataclass(frozen=True)
class Control:
    """How one value is edited.

    `kind` is "switch", "choice", "number", "text", "lines", "pairs", "sequence" (one or two of `choices` in order), "map"
    (`keys`, each with an `item`), "table" (`columns`), or "json" for what nothing else fits.
    """

    kind: str
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    max_length: int | None = None
    pattern: str = ""
    title: str = ""
    keys: tuple[str, ...] = ()
    item: "Control | None" = None
    columns: Mapping[str, "Control"] = field(default_factory=dict)

    @property
    def is_many(self) -> bool:
        """Whether the value is a collection, of which only the number is shown in short."""
        return self.kind in ("lines", "pairs", "map", "table")


def control_of(schema: Mapping[str, Any]) -> Control:
    """Return the control for a JSON schema."""
    control = _control_of(schema)
    return replace(control, title=str(schema.get("title", "")))


def as_text(control: Control, value: Any) -> str:
    """Return a value as the text of a simple control."""
    match control.kind:
        case "lines":
            return "\n".join(str(item) for item in value or [])
        case "pairs":
            return "\n".join(f"{key}={item}" for key, item in (value or {}).items())
        case "switch":
            return "true" if value else "false"
        case "json":
            return json.dumps(value, ensure_ascii=False, indent=2)
        case _:
            return "" if value is None else str(value)


def rows_of(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a table with their numbers, and empty ones to add to it."""
    present = [dict(row) for row in value or []]
    rows = present + [{} for _ in range(EMPTY_ROWS)]
    return [(str(number), row) for number, row in enumerate(rows)]


def words_of(value: Any) -> tuple[str, str]:
    """Return the two words of a sequence, the second of which may be empty."""
    first, _, second = str(value or "").partition(",")
    return first.strip(), second.strip()


def parse_form(help_: SettingHelp, name: str, read: Callable[[str], str]) -> Any:
    """Return the value that a person made with the control of a setting; `read` returns a field of the form, "" for none.

    Raises:
        InputError: it is not of the setting's kind; whether it is allowed is for the policy service to say.
    """
    return _parsed(control_of(help_.schema), help_.title.en, name, read)


def parse_value(help_: SettingHelp, text: str) -> Any:
    """Return the value that a person wrote into a simple control.

    Raises:
        InputError: as `parse_form`.
    """
    return parse_form(help_, "", lambda _: text)


def _control_of(schema: Mapping[str, Any]) -> Control:
    if "enum" in schema:
        return Control("choice", choices=tuple(str(value) for value in schema["enum"]))
    match schema.get("type"):
        case "boolean":
            return Control("switch")
        case "integer" | "number":
            return Control("number", least=schema.get("minimum"), most=schema.get("maximum"))
        case "string":
            pattern = str(schema.get("pattern", ""))
            if found := _SEQUENCE.fullmatch(pattern):
                return Control("sequence", choices=tuple(found[1].split("|")))
            return Control("text", max_length=schema.get("maxLength"), pattern=pattern)
        case "array":
            items = schema.get("items", {})
            if items.get("type") == "object" and items.get("properties"):
                columns = {name: control_of(part) for name, part in items["properties"].items()}
                return Control("table", columns=columns) if not any(one.is_many for one in columns.values()) else Control("json")
            return Control("json") if items.get("type") in ("object", "array") else Control("lines", item=_control_of(items))
        case "object":
            values = schema.get("additionalProperties")
            item = control_of(values) if isinstance(values, Mapping) and values else Control("text")
            keys = schema.get("propertyNames", {}).get("enum")
            if keys and not item.is_many and item.kind != "json":
                return Control("map", keys=tuple(str(key) for key in keys), item=item)
            return Control("pairs") if item.kind == "text" and not schema.get("properties") else Control("json")
        case _:
            return Control("text" if not schema.get("anyOf") else "json", max_length=schema.get("maxLength"))


def _parsed(control: Control, title: str, name: str, read: Callable[[str], str]) -> Any:
    text = read(name)
    match control.kind:
        case "switch":
            return text == "true"
        case "number":
            try:
                return int(text.strip())
            except ValueError as error:
                raise InputError(
                    "setting_not_a_number", f"{text[:40]!r} is not a whole number", where=title, hint="use digits only"
                ) from error
        case "lines":
            return [line.strip() for line in text.splitlines() if line.strip()]
        case "pairs":
            return dict(_pair(line, title) for line in text.splitlines() if line.strip())
        case "sequence":
            words = [word.strip() for word in (read(name), read(f"{name}.then"))]
            return ", ".join(word for word in words if word) if words[0] else ""
        case "map":
            item = control.item or Control("text")
            chosen = [key for key in control.keys if read(f"{name}.{key}").strip()]
            return {key: _parsed(item, f"{title}: {key}", f"{name}.{key}", read) for key in chosen}
        case "table":
            return _parsed_table(control, title, name, read)
        case "json":
            try:
                return json.loads(text)
            except ValueError as error:
                raise InputError("setting_not_json", f"this is no JSON: {error}", where=title) from error
        case _:
            return text.strip()


def _parsed_table(control: Control, title: str, name: str, read: Callable[[str], str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(MAX_ROWS):
        fields = {column: f"{name}.{number}.{column}" for column in control.columns}
        if read(f"{name}.{number}") != "row":
            return rows
        # A row counts when something was written into it; switches and choices always have a value.
        written = [column for column, one in control.columns.items() if one.kind in ("text", "number")]
        if written and not any(read(fields[column]).strip() for column in written):
            continue
        rows.append({column: _parsed(one, f"{title}: {column}", fields[column], read) for column, one in control.columns.items()})
    return rows


def _pair(line: str, title: str) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    if not equals or not name.strip():
        raise InputError(
            "setting_not_a_pair",
            f"{line[:60]!r} is not NAME=value",
            where=title,
            hint="write one NAME=value on each line",
        )
    return name.strip(), value.strip()
