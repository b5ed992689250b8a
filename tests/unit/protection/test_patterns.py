import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.errors import InputError
from keibi.protection.patterns import Patterns, substitute


def model(pattern: list[str], name: list[str]) -> bool:
    """The definition, as a recursion."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(name)
        return any(model(pattern[1:], name[start:]) for start in range(len(name) + 1))
    if not name:
        return False
    part = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern[0]), re.DOTALL)
    return part.fullmatch(name[0]) is not None and model(pattern[1:], name[1:])


part = st.text("ab*?.é", min_size=1, max_size=4).filter(lambda text: "**" not in text and text not in (".", ".."))
patterns = st.lists(part | st.just("**"), min_size=1, max_size=5)
names = st.lists(st.text("ab.é\n", min_size=1, max_size=4), min_size=1, max_size=5)


@given(patterns, names)
def test_matching_is_what_the_definition_says(pattern, name):
    assert Patterns(["/".join(pattern)]).match("/".join(name).encode()) == model(pattern, name)


@given(patterns, names)
def test_the_way_to_a_match_is_never_cut_off(pattern, name):
    compiled = Patterns(["/".join(pattern)])
    if model(pattern, name):
        for depth in range(len(name)):
            assert compiled.may_match_below("/".join(name[:depth]).encode())


@given(patterns, names, names)
def test_what_is_matched_with_all_below_has_no_exception(pattern, name, below):
    compiled = Patterns(["/".join(pattern), "/".join(pattern) + "/**"] if pattern[-1] != "**" else ["/".join(pattern)])
    if compiled.match("/".join(name).encode()):
        assert compiled.match_with_all_below("/".join(name).encode())
        assert compiled.match("/".join(name + below).encode())


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("passwd", b"passwd", True),
        ("passwd", b"passwd-", False),
        ("*.conf", b"a.conf", True),
        ("*.conf", b"d/a.conf", False),
        ("**/*.conf", b"a.conf", True),
        ("**/*.conf", b"d/e/a.conf", True),
        ("ssh/**", b"ssh", False),
        ("ssh/**", b"ssh/a/b", True),
        ("/tmp/**", b"/tmp/x", True),
        ("tcp/*/22", b"tcp/0.0.0.0/22", True),
        ("a?", b"a\xff", True),
        ("a?", "aあ".encode(), True),
        ("[x]+(y)", b"[x]+(y)", True),
        ("?/??/**", "a/é/a".encode(), False),
        ("??", "日本".encode(), True),
        ("??", "日".encode(), False),
    ],
)
def test_examples(pattern, name, expected):
    assert Patterns([pattern]).match(name) is expected


def test_only_directories_on_the_way_are_entered():
    compiled = Patterns(["ssh/sshd_config", "cron.*/**"])
    assert compiled.may_match_below(b"")
    assert compiled.may_match_below(b"ssh")
    assert not compiled.may_match_below(b"ssh/deeper")
    assert compiled.may_match_below(b"cron.d/a/b")
    assert not compiled.may_match_below(b"apt")
    assert not Patterns([]).may_match_below(b"")


@pytest.mark.parametrize("pattern", ["", "a**", "a//b", "a/", "a/../b", "./a", "x\0y", "a" * 5000])
def test_a_pattern_that_can_match_nothing_is_refused_with_the_reason(pattern):
    with pytest.raises(InputError) as refused:
        Patterns([pattern])
    assert refused.value.code == "pattern_invalid"


def test_no_pattern_takes_longer_than_its_name_is_long():
    compiled = Patterns(["*a" * 30 + "b"])
    started = time.monotonic()
    assert not compiled.match(b"a" * 4000)
    assert time.monotonic() - started < 1


def test_variables_are_put_in_and_a_missing_one_is_named():
    assert substitute("${ROOT}/conf", {"ROOT": "/srv"}) == "/srv/conf"
    with pytest.raises(InputError, match=r"\$\{ROOT\}"):
        substitute("${ROOT}/conf", {})
