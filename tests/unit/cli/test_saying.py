"""What the command line takes and shows: limits said before anything is asked, and nothing that a terminal would obey."""

import argparse
import json
import math

import pytest

from keibi.cli.arguments import hours, whole
from keibi.cli.client import segment
from keibi.cli.main import build_parser, main
from keibi.cli.output import say, show_json, show_table
from keibi.cli.remote import rows_in
from keibi.errors import InputError

HOSTILE = "a\x1b[2J\x9b31m\u202eb\x07\r\x00"


def test_nothing_that_a_computer_says_reaches_the_terminal_as_an_order(capsys):
    say(f"{HOSTILE}\n{HOSTILE}")
    say(HOSTILE, is_problem=True)
    show_table(("a", "b"), [(HOSTILE, f"x\n{HOSTILE}")], empty="")
    show_json({HOSTILE: HOSTILE})
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert all(letter.isprintable() or letter == "\n" for letter in text), ascii(text)


def test_json_says_the_same_as_the_api_whatever_is_in_it(capsys):
    value = {"text": HOSTILE, "list": [HOSTILE, "\U0001f600", "日本", "\ud83d"], "number": 1.5, "nothing": None}
    show_json(value)
    assert json.loads(capsys.readouterr().out) == value


@pytest.mark.parametrize("text", ["0", "1001", "x", "", "1.5", "9" * 50, "-1"])
def test_a_number_out_of_its_limits_is_named(text):
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 1000"):
        whole(1, 1000)(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", "1e12"])
def test_hours_are_above_nothing(text):
    with pytest.raises(argparse.ArgumentTypeError, match="hours"):
        hours(text)
    assert math.isclose(hours("0.5"), 0.5)


def test_an_id_is_one_part_of_a_path():
    assert segment("a b/../c?d") == "a%20b%2F..%2Fc%3Fd"
    for text in ("", ".", "..", "/", " "):
        with pytest.raises(InputError):
            segment(text)


def test_an_agents_answer_of_another_shape_is_no_rows():
    assert rows_in({"items": [{"a": 1}, 5, None], "failed": "x"}, "items") == [{"a": 1}]
    assert rows_in({"failed": "x"}, "failed") == rows_in({}, "failed") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("software", "maintenance", "web-01", "--minutes", "0"),
        ("software", "changes", "--limit", "0"),
        ("software", "changes", "--hours", "nan"),
        ("malware", "threats", "--hours", "-3"),
        ("malware", "allow", "a" * 64, "--computer", "x", "--days", "0"),
        ("malware", "quarantine", "list", "--state", "lost"),
    ],
)
def test_bad_input_is_told_before_the_manager_is_asked(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_every_argument_about_software_malware_and_patterns_says_what_it_is():
    parsers = {path: parser for path, parser in commands_below(build_parser()) if path[0] in ("software", "malware", "patterns")}
    assert len(parsers) > 20
    silent = [(path, action.dest) for path, parser in parsers.items() for action in parser._actions if not action.help]
    assert silent == []
    assert all(parser.description for parser in parsers.values())


def commands_below(parser, path=()):
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        return [(path, parser)]
    return [found for group in groups for name, below in group.choices.items() for found in commands_below(below, (*path, name))]
