import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.protection.integrity_monitoring.rule_files import rule_from_builtins

GOOD = {
    "id": "im-test",
    "version": 1,
    "title": {"en": "Test", "ja": "試験"},
    "description": {"en": "Watches."},
    "severity": "high",
    "entities": [{"type": "file", "base": "/etc", "include": ["*.conf"]}],
    "samples": {
        "match": [{"type": "file", "key": "/etc/a.conf", "change": "created"}],
        "no_match": [{"type": "file", "key": "/etc/a.txt", "change": "created"}],
    },
}


def changed(path: str, value: object) -> dict:
    written = copy.deepcopy(GOOD)
    at = written
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        at = at[part]
    at[last] = value
    return written


def test_a_good_rule_has_no_problem():
    rule, problems = rule_from_builtins(GOOD, needs_samples=True)
    assert problems == []
    assert rule is not None
    assert rule.title.in_language("ja") == "試験"


@pytest.mark.parametrize(
    ("path", "value", "place", "said"),
    [
        ("severity", "severe", "severity", "severe"),
        ("severty", "high", "severty", "no field"),
        ("entities.0.bsae", "/x", "entities[0].bsae", "no field"),
        ("id", "Test", "id", "no rule id"),
        ("version", 0, "version", "counts from 1"),
        ("entities", [], "entities", "watches nothing"),
        ("entities.0.base", "etc", "entities[0].base", "not an absolute path"),
        ("entities.0.include", ["ok", "a**"], "entities[0].include[1]", "whole part"),
        ("entities.0.exclude", [""], "entities[0].exclude[0]", "empty"),
        ("entities.0.attributes", ["standard", "sha1"], "entities[0].attributes[1]", "sha1"),
        ("techniques", ["T1"], "techniques[0]", "no MITRE"),
        ("samples.match.0.key", "/srv/a", "samples", "does not report"),
        ("title", {"ja": "x"}, "title", "en"),
    ],
)
def test_a_problem_is_told_with_its_place(path, value, place, said):
    _, problems = rule_from_builtins(changed(path, value))
    assert [problem.path for problem in problems] == [place]
    assert said in problems[0].message


def test_a_misspelt_field_gets_the_nearest_name():
    _, problems = rule_from_builtins(changed("severty", "high"))
    assert problems[0].hint == "did you mean 'severity'?"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(json_values)
def test_anything_at_all_gives_problems_and_no_exception(written):
    rule, problems = rule_from_builtins(written)
    assert rule is None
    assert problems


@given(st.sampled_from(["include", "exclude", "attributes"]), st.lists(st.text(max_size=10), max_size=3))
def test_any_words_in_a_set_give_a_rule_or_problems(field, words):
    rule, _ = rule_from_builtins(changed(f"entities.0.{field}", words))
    assert rule is not None
