"""What the settings of a module are called, in which limits, and since which version of the agent; and checking values."""

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from cronsim import CronSim, CronSimError

from keibi.errors import InputError
from keibi.manager.policies.model import SettingHelp
from keibi.manager.rules.model import Words
from keibi.protection.base import Module

MAX_SCHEMA_DEPTH = 12


def properties_of(module: Module) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each settings field, with references put in place."""
    schema = msgspec.json.schema(module.settings_type)
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    fields: dict[str, dict[str, Any]] = definitions[module.settings_type.__name__]["properties"]
    keys = _closed_keys(module.settings_type)
    return {name: {**_inlined(field, definitions), **keys.get(name, {})} for name, field in fields.items()}


def help_of(module: Module) -> dict[str, SettingHelp]:
    """Return the help of each settings field, in the order of the struct."""
    helps = {}
    for name, field in properties_of(module).items():
        plain = {
            key: value for key, value in field.items() if not key.startswith("x-") and key not in ("$ref", "title", "description")
        }
        helps[name] = SettingHelp(
            name=name,
            title=Words(field.get("title", name), field.get("x-title-ja", "")),
            description=Words(field.get("description", ""), field.get("x-description-ja", "")),
            unit=field.get("x-unit", ""),
            schema=plain,
        )
    return helps


def known_to(module: Module, settings: Mapping[str, Any], agent_version: int) -> dict[str, Any]:
    """Return the settings that an agent knows whose struct has that version; others would be refused by it as unknown."""
    if agent_version >= module.settings_version:
        return dict(settings)
    fields = properties_of(module)
    return {name: value for name, value in settings.items() if fields[name].get("x-since", 1) <= agent_version}


def check_settings(module: Module, values: Mapping[str, Any], where: str) -> None:
    """Do nothing when every value may stand in its field.

    Raises:
        InputError: an unknown field, with the nearest known one; a value of the wrong type or outside its limits.
    """
    names = [field.name for field in msgspec.structs.fields(module.settings_type)]
    for name, value in values.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the settings are: {', '.join(names)}"
            raise InputError(
                "setting_unknown", f"{module.title.en} has no setting {name!r}", where=f"{where}.settings.{name}", hint=hint
            )
        try:
            msgspec.convert({name: value}, module.settings_type)
        except msgspec.ValidationError as error:
            message = str(error).partition(" - at ")[0]
            raise InputError(
                "setting_invalid",
                f"{name} cannot be {_shortened(value)}: {message}",
                where=f"{where}.settings.{name}",
                hint=properties_of(module)[name].get("description", ""),
            ) from error
        if name.endswith("_schedule") and value:
            _check_schedule(name, str(value), f"{where}.settings.{name}")


def _check_schedule(name: str, text: str, where: str) -> None:
    try:
        CronSim(text, datetime.now(UTC))
        is_five = len(text.split()) == 5
    except CronSimError as error:
        raise InputError("setting_invalid", f"{name} cannot be {text!r}: {error}", where=where, hint=_CRON_HINT) from error
    if not is_five:
        raise InputError("setting_invalid", f"{name} cannot be {text!r}: it needs five fields", where=where, hint=_CRON_HINT)


_CRON_HINT = "minute, hour, day of the month, month, day of the week: `17 3 * * *` is every day at 03:17"


def _inlined(part: Any, definitions: Mapping[str, dict[str, Any]], depth: int = 0) -> Any:
    """Return a part of a schema with what it refers to in its place. Settings do not contain themselves, so it ends."""
    if depth > MAX_SCHEMA_DEPTH:
        return {}
    if isinstance(part, list):
        return [_inlined(item, definitions, depth + 1) for item in part]
    if not isinstance(part, dict):
        return part
    own = {key: _inlined(value, definitions, depth + 1) for key, value in part.items() if key != "$ref"}
    if "$ref" not in part:
        return own
    return {**_inlined(definitions.get(_referred(part), {}), definitions, depth + 1), **own}


def _closed_keys(settings_type: type[msgspec.Struct]) -> dict[str, dict[str, Any]]:
    """Return the keys that each mapping with a closed set of them may have, which msgspec leaves out of its schema."""
    found = {}
    for field in msgspec.structs.fields(settings_type):
        type_ = msgspec.inspect.type_info(field.type)
        while isinstance(type_, msgspec.inspect.Metadata):
            type_ = type_.type
        if isinstance(type_, msgspec.inspect.DictType) and isinstance(type_.key_type, msgspec.inspect.EnumType):
            found[field.name] = {"propertyNames": {"enum": [str(member.value) for member in type_.key_type.cls]}}
    return found


def _referred(field: Mapping[str, Any]) -> str:
    return str(field.get("$ref", "")).rpartition("/")[2]


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
