"""Settings as form controls and back: simple ones, maps, tables; made from schemas, nothing by hand."""

from enum import StrEnum
from typing import Annotated

import msgspec
import pytest

from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from keibi.errors import InputError
from keibi.manager.console.setting_form import as_text, control_of, parse_form, rows_of, words_of
from keibi.manager.policies.settings_help import help_of
from keibi.protection.base import Module, Text
from keibi.protection.catalog import MODULES


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Door(msgspec.Struct, frozen=True):
    name: str
    width: int = 3
    is_open: bool = False
    colour: Colour = Colour.RED


class Nested(msgspec.Struct, frozen=True):
    doors: list[Door]


class Everything(msgspec.Struct, frozen=True):
    switch: bool = True
    number: int = 1
    text: str = ""
    choice: Colour = Colour.RED
    lines: list[str] = []
    pairs: dict[str, str] = {}
    responses: dict[Colour, Annotated[str, msgspec.Meta(pattern="^(pass|deny)( *, *(pass|deny))?$")]] = {}
    limits: dict[Colour, int] = {}
    doors: list[Door] = []
    deep: list[Nested] = []


MODULE = Module(
    module=ModuleId.FIREWALL,
    title=Text("x"),
    description=Text("x"),
    states=(ModuleState.OFF,),
    default_state=ModuleState.OFF,
    settings_type=Everything,
    settings_version=1,
    rule_type=Door,
)
HELPS = help_of(MODULE)


def parsed(name, **form):
    return parse_form(HELPS[name], name, lambda field: form.get(field, ""))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("switch", "switch"),
        ("number", "number"),
        ("text", "text"),
        ("choice", "choice"),
        ("lines", "lines"),
        ("pairs", "pairs"),
        ("responses", "map"),
        ("limits", "map"),
        ("doors", "table"),
        ("deep", "json"),
    ],
)
def test_each_kind_of_value_has_a_control_that_fits(name, kind):
    assert control_of(HELPS[name].schema).kind == kind


def test_every_setting_of_every_module_has_a_control_of_its_own():
    for module in MODULES:
        for name, help_ in help_of(module).items():
            assert control_of(help_.schema).kind != "json", f"{module.module}.{name}"


def test_a_map_holds_what_was_chosen_and_leaves_out_the_rest():
    control = control_of(HELPS["responses"].schema)
    assert control.keys == ("red", "green")
    assert control.item.choices == ("pass", "deny")
    assert parsed("responses", **{"responses.red": "pass", "responses.red.then": "deny"}) == {"red": "pass, deny"}
    assert parsed("responses", **{"responses.red": "", "responses.red.then": "deny"}) == {}
    assert parsed("limits", **{"limits.green": "7"}) == {"green": 7}
    with pytest.raises(InputError):
        parsed("limits", **{"limits.green": "seven"})
    assert words_of("pass, deny") == ("pass", "deny")
    assert words_of("pass") == ("pass", "")


def test_a_table_has_empty_rows_to_add_and_forgets_rows_that_were_emptied():
    rows = rows_of([{"name": "front", "width": 9}])
    assert [number for number, _ in rows] == ["0", "1", "2"]
    form = {}
    for number, (name, width) in enumerate([("front", "9"), ("", ""), ("back", "1")]):
        form |= {f"doors.{number}": "row", f"doors.{number}.name": name, f"doors.{number}.width": width}
        form |= {f"doors.{number}.is_open": "true", f"doors.{number}.colour": "green"}
    assert parsed("doors", **form) == [
        {"name": "front", "width": 9, "is_open": True, "colour": "green"},
        {"name": "back", "width": 1, "is_open": True, "colour": "green"},
    ]


def test_what_fits_nothing_is_edited_as_json():
    value = [{"doors": [{"name": "front"}]}]
    text = as_text(control_of(HELPS["deep"].schema), value)
    assert parsed("deep", deep=text) == value
    with pytest.raises(InputError):
        parsed("deep", deep="{")
