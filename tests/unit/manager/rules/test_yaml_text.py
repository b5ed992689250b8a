"""YAML that people write, read with limits."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.manager.rules.yaml_text import MAX_TEXT_BYTES, YamlProblem, parse_path, read_yaml, with_fields, write_path

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc-_é日本", min_size=1, max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "told", "line"),
    [
        ("", "empty", 1),
        ("a: [1\nb: 2", "not YAML", 2),
        ("a: 1\nb: 2\na: 3", "'a' stands here a second time", 3),
        ("a:\n  " + "[" * 30 + "]" * 30, "levels deep", 2),
        ("[" * 100_000, "", 1),
        ("a: &x [*x]", "contains itself", 1),
        ("a: !!python/object/apply:os.system [ls]", "tag", 1),
        ("a: !!binary aGVsbG8=", "tag", 1),
        ("a: &x {b: 1}\nc: {<<: *x}", "plain text", 2),
        ("? [a, b]\n: 1", "plain text", 1),
        ("a: 1\n---\nb: 2", "more than one document", 2),
        ("a: &x 1\nb: [" + "*x, " * 70 + "*x]", "aliases", 2),
        ("x" * (MAX_TEXT_BYTES + 1), "bytes", 1),
        ("a: \x00", "not YAML", 1),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(text, told, line):
    with pytest.raises(YamlProblem) as refused:
        read_yaml(text)
    assert told in refused.value.message
    assert refused.value.place.line == line


def test_aliases_of_aliases_stop_at_a_limit():
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 9)]
    with pytest.raises(YamlProblem, match="unfolds"):
        read_yaml("\n".join(lines))


def test_dates_and_words_stay_as_they_are_written():
    assert read_yaml("a: 2026-11-26\nb: yes\nc: 0x10\nd: 'no'").value == {"a": "2026-11-26", "b": True, "c": 16, "d": "no"}


def test_every_part_knows_its_line():
    document = read_yaml("id: x\nentities:\n  - type: file\n    include:\n      - a\n      - b\n")
    assert document.place_of(("entities", 0, "include", 1)).line == 6
    assert document.place_of(("entities", 0, "nothing", "here")).line == 3
    assert document.place_of(("unknown",)).line == 1


def test_paths_read_and_write():
    assert parse_path("$.entities[0].include[12]") == ("entities", 0, "include", 12)
    assert write_path(("entities", 0, "include", 12)) == "entities[0].include[12]"
    assert parse_path("$[...].a") == ("...", "a")
    assert parse_path("$") == ()


def test_a_path_with_an_unknown_key_finds_the_only_place_that_fits():
    document = read_yaml("rules:\n  one: {a: 1}\n  two: {b: 2}\n  three: {a: 3}\n")
    assert document.place_of(("rules", "...", "b")).line == 3
    assert document.place_of(("rules", "...", "a")).line == 1


def test_fields_are_put_in_and_comments_stay():
    text = "# Ours.\nid: a  # stable\nversion: 1\ntitle: {en: x}\n"
    assert with_fields(text, {"version": 2}) == "# Ours.\nid: a  # stable\nversion: 2\ntitle: {en: x}\n"
    assert with_fields("# Ours.\ntitle: {en: x}\n", {"version": 3}) == "# Ours.\nversion: 3\ntitle: {en: x}\n"
    for odd in ("{id: a, version: 1}", "version:\n  1\n", "version: &v 1\nother: *v\n"):
        with pytest.raises(YamlProblem):
            with_fields(odd, {"version": 2})


@given(VALUES)
def test_whatever_json_has_comes_back_as_it_was(value):
    import yaml

    text = yaml.safe_dump(value, allow_unicode=True)
    assert read_yaml(text).value == value


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_and_nothing_else(text):
    with contextlib.suppress(YamlProblem):
        read_yaml(text)
