"""Entries in and out of a ruleset's text: what people wrote around them stays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keibi.contract.names import ModuleId
from keibi.manager.rules.model import Words
from keibi.manager.rules.texts import checked
from keibi.manager.software.ruleset_text import identity, new_ruleset, with_entries, without_entries
from keibi.protection.application_control.rules import (
    HashEntry,
    InterpreterEntry,
    PackageEntry,
    PathEntry,
    RuleAction,
)

HEAD = "id: ac-own-x\nversion: 3 # kept\ntitle: {en: X}\ndescription: {en: X}\nseverity: low\naction: allow\n"
A, B, C = (HashEntry(sha256=letter * 64, name=f"/opt/{letter}") for letter in "abc")


def entries_of(text):
    return list(checked(ModuleId.APPLICATION_CONTROL, text).entries)


@pytest.mark.parametrize(
    "entries",
    [
        "entries: []\n",
        "entries: []  # none yet\n",
        "entries:\n  - {kind: hash, sha256: %s}\n" % ("d" * 64),
        "entries:\n- kind: hash\n  sha256: %s\n\n# after\n" % ("d" * 64),
        "entries: [{kind: hash, sha256: %s}]\n" % ("d" * 64),
        "entries:\n    -\n      kind: package\n      name: bash\n",
        "entries:\n  - kind: path\n    pattern: |-\n      /opt/x\n",
    ],
)
@pytest.mark.parametrize("tail", ["", "techniques: [T1059]\n", "# the end\nreferences:\n  - somewhere\n"])
def test_entries_come_after_those_that_are_there_and_go_again(entries, tail):
    text = HEAD + entries + tail
    before = entries_of(text)
    more = with_entries(text, [A, B])
    assert entries_of(more) == [*before, A, B]
    again = with_entries(more, [C])
    assert entries_of(again) == [*before, A, B, C]
    count = len(before)
    assert entries_of(without_entries(again, {count, count + 2})) == [*before, B]
    assert entries_of(without_entries(again, range(count + 3))) == []
    assert entries_of(with_entries(without_entries(again, range(count + 3)), [C])) == [C]


def test_comments_and_order_stay():
    text = "# first\n" + HEAD + "entries:\n  # why\n  - {kind: package, name: bash} # because\n# last\nreferences: [a]\n"
    assert with_entries(text, [A]) == text.replace(
        "# because\n", f'# because\n  - {{kind: hash, sha256: "{A.sha256}", name: "/opt/a"}}\n'
    ).replace(f'"{A.sha256}"', A.sha256)


def test_a_new_ruleset_is_valid_and_holds_its_titles():
    text = new_ruleset("ac-own-blocked-software", Words("Blocked: all", "ブロック"), RuleAction.BLOCK, "high")
    rule = checked(ModuleId.APPLICATION_CONTROL, text)
    assert (rule.title.en, rule.title.ja, rule.action, rule.entries) == ("Blocked: all", "ブロック", RuleAction.BLOCK, [])


def test_a_note_and_a_name_do_not_make_another_entry():
    assert identity(A) == identity(HashEntry(sha256=A.sha256, note="other", size=4))
    assert identity(PackageEntry(name="a")) != identity(PackageEntry(name="a", origin="b"))


TEXTS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=30)
ENTRIES = st.one_of(
    st.builds(HashEntry, sha256=st.text("0123456789abcdef", min_size=64, max_size=64), name=TEXTS, note=TEXTS),
    st.builds(PackageEntry, name=TEXTS.filter(lambda text: bool(text.strip())), origin=TEXTS, note=TEXTS),
    st.builds(PathEntry, pattern=st.sampled_from(["/opt/**", "/srv/a b/*", "/x/yes", "/x/#1"]), user=TEXTS),
    st.builds(InterpreterEntry, path=st.sampled_from(["/usr/bin/perl*", "/usr/bin/no"])),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ENTRIES, max_size=6), st.lists(ENTRIES, max_size=6), st.sets(st.integers(0, 11)))
def test_whatever_the_entries_hold_they_come_back_as_they_were(first, second, gone):
    text = with_entries(with_entries(HEAD + "entries: []\n", first), second)
    assert entries_of(text) == [*first, *second]
    left = [entry for number, entry in enumerate([*first, *second]) if number not in gone]
    assert entries_of(without_entries(text, gone & set(range(len(first) + len(second))))) == left
