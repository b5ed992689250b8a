"""Settings as form controls, and back: made from the JSON schema of the module's settings struct, nothing by hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keibi.errors import InputError
from keibi.manager.policies.model import SettingHelp


@dataclass(frozen=True)
class Control:
    """How one value is edited. `kind` is "switch", "choice", "number", "text", "lines" or "pairs"."""

    kind: str
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    max_length: int | None = None


def control_of(schema: Mapping[str, Any]) -> Control:
    """Return the control for a JSON schema. What no control fits is edited as text."""
    schema = _resolved(schema)
    if "enum" in schema:
        return Control("choice", choices=tuple(str(value) for value in schema["enum"]))
    match schema.get("type"):
        case "boolean":
            return Control("switch")
        case "integer" | "number":
            return Control("number", least=schema.get("minimum"), most=schema.get("maximum"))
        case "array":
            return Control("lines")
        case "object":
            return Control("pairs")
        case _:
            return Control("text", max_length=schema.get("maxLength"))


def as_text(control: Control, value: Any) -> str:
    """Return a value as the text of its control."""
    match control.kind:
        case "lines":
            return "\n".join(str(item) for item in value or [])
        case "pairs":
            return "\n".join(f"{key}={item}" for key, item in (value or {}).items())
        case "switch":
            return "true" if value else "false"
        case _:
            return "" if value is None else str(value)


def parse_value(help_: SettingHelp, text: str) -> Any:
    """Return the value that a person wrote into the control of a setting.

    Raises:
        InputError: it is not of the setting's kind; whether it is allowed is for the policy service to say.
    """
    control = control_of(help_.schema)
    match control.kind:
        case "switch":
            return text == "true"
        case "number":
            try:
                return int(text.strip())
            except ValueError as error:
                raise InputError(
                    "setting_not_a_number", f"{text[:40]!r} is not a whole number", where=help_.title.en, hint="use digits only"
                ) from error
        case "lines":
            return [line.strip() for line in text.splitlines() if line.strip()]
        case "pairs":
            return dict(_pair(line, help_) for line in text.splitlines() if line.strip())
        case _:
            return text.strip()


def _pair(line: str, help_: SettingHelp) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    if not equals or not name.strip():
        raise InputError(
            "setting_not_a_pair",
            f"{line[:60]!r} is not NAME=value",
            where=help_.title.en,
            hint="write one NAME=value on each line",
        )
    return name.strip(), value.strip()


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    found: Mapping[str, Any] = schema.get("$defs", {}).get(reference.rpartition("/")[2], {})
    return found
