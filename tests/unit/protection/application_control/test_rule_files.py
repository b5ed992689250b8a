"""A ruleset that is wrong is told where and what to do."""

from typing import Any

import pytest

from keibi.protection.application_control.rule_files import rule_from_builtins
from keibi.protection.application_control.rules import HashEntry, InterpreterEntry, Rule

CONTENT = "0123456789abcdef" * 4


def written(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "ac-test",
        "version": 1,
        "title": {"en": "Test"},
        "description": {"en": "Test."},
        "severity": "high",
        "action": "block",
        "entries": list(entries),
        **more,
    }


def test_every_kind_of_entry_is_read():
    rule, problems = rule_from_builtins(
        written(
            {"kind": "hash", "sha256": CONTENT, "size": 3, "name": "x", "note": "why"},
            {"kind": "package", "name": "nginx*", "origin": "Debian"},
            {"kind": "signer", "key_id": "6ED0E7B82643E131"},
            {"kind": "path", "pattern": "/tmp/**", "user": "www-data"},
            {"kind": "interpreter", "path": "/usr/bin/python*", "inline": ["command"], "from_uid": 1000},
            samples={"match": [{"sha256": CONTENT, "size": 3}], "no_match": [{"sha256": CONTENT, "size": 4}]},
        ),
        needs_samples=True,
    )
    assert problems == []
    assert isinstance(rule, Rule)
    assert isinstance(rule.entries[0], HashEntry)
    assert isinstance(rule.entries[4], InterpreterEntry)


def test_an_empty_ruleset_waits_for_decisions():
    assert rule_from_builtins(written())[1] == []


WRONG = {
    "no such kind": (written({"kind": "hahs", "sha256": CONTENT}), "entries[0].kind"),
    "no kind": (written({"sha256": CONTENT}), "entries[0]"),
    "short hash": (written({"kind": "hash", "sha256": "abc"}), "entries[0].sha256"),
    "upper case": (written({"kind": "hash", "sha256": CONTENT.upper()}), "entries[0].sha256"),
    "negative size": (written({"kind": "hash", "sha256": CONTENT, "size": -1}), "entries[0].size"),
    "every package": (written({"kind": "package", "name": "*"}), "entries[0].name"),
    "no package": (written({"kind": "package", "name": " "}), "entries[0].name"),
    "no key": (written({"kind": "signer", "key_id": "12"}), "entries[0].key_id"),
    "relative": (written({"kind": "path", "pattern": "tmp/x"}), "entries[0].pattern"),
    "everything": (written({"kind": "path", "pattern": "/**"}), "entries[0].pattern"),
    "no pattern": (written({"kind": "path", "pattern": "/a**"}), "entries[0].pattern"),
    "no inline": (written({"kind": "interpreter", "path": "/x", "inline": []}), "entries[0].inline"),
    "negative uid": (written({"kind": "interpreter", "path": "/x", "from_uid": -1}), "entries[0].from_uid"),
    "unknown field": (written({"kind": "hash", "sha265": CONTENT, "sha256": CONTENT}), "entries[0].sha265"),
    "id of another module": (written(id="im-test"), "id"),
    "no version": (written(version=0), "version"),
    "no title": (written(title={"en": " "}), "title.en"),
    "no technique": (written(techniques=["T1"]), "techniques[0]"),
    "no action": (written(action="ban"), "action"),
    "samples": (
        written({"kind": "hash", "sha256": CONTENT}, samples={"match": [{"sha256": ""}], "no_match": [{"sha256": ""}]}),
        "samples",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_problem_is_told_with_its_place(name):
    value, path = WRONG[name]
    _, problems = rule_from_builtins(value)
    assert [problem.path for problem in problems][:1] == [path]
    assert problems[0].message


def test_a_misspelt_field_is_guessed():
    _, problems = rule_from_builtins(written({"kind": "hash", "sha265": CONTENT, "sha256": CONTENT}))
    assert problems[0].hint == "did you mean 'sha256'?"


def test_a_shipped_ruleset_needs_samples():
    _, problems = rule_from_builtins(written({"kind": "hash", "sha256": CONTENT}), needs_samples=True)
    assert problems[0].path == "samples"
