import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.protection.base import Text, escape_name, unescape_name


@given(st.binary(max_size=200))
def test_every_name_comes_back_and_nothing_unprintable_gets_through(raw):
    escaped = escape_name(raw)
    assert unescape_name(escaped) == raw
    assert escaped.isprintable()
    escaped.encode("utf-8")


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b"/etc/passwd", "/etc/passwd"),
        ("/srv/日本語.txt".encode(), "/srv/日本語.txt"),
        (b"a\nb", "a\\x0ab"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"back\\slash", "back\\\\slash"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("evil\u202etxt.exe".encode(), "evil\\xe2\\x80\\xaetxt.exe"),
    ],
)
def test_names_that_could_deceive_are_shown_as_bytes(raw, escaped):
    assert escape_name(raw) == escaped


@pytest.mark.parametrize("text", ["\\", "\\q", "a\\x", "\\x1", "\\xzz"])
def test_what_no_escaping_made_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011  bytes.fromhex says it in its own words
        unescape_name(text)


def test_a_text_without_japanese_is_english_for_everybody():
    assert Text(en="Port").in_language("ja") == "Port"
    assert Text(en="Port", ja="ポート").in_language("ja") == "ポート"
