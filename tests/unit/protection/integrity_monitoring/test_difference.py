import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.protection.integrity_monitoring.difference import compare_contents, mask_secrets

SECRET = "Zk9-very.secret_value"


@pytest.mark.parametrize(
    "line",
    [
        "password = {}",
        "DB_PASSWORD={}",
        'export API_KEY="{}"',
        "  secret: '{}'",
        '"client_secret": "{}",',
        "requirepass {}",
        "bindpw {}",
        "mysql --password={} -u root",
        "url = postgres://app:{}@db.example/app",
        "Authorization: Bearer {}",
        "auth_token => {}",
        "spring.datasource.password={}",
        "root:$6$salt${}:19000:0:99999:7:::",
        "AWS_SECRET_ACCESS_KEY = {}",
    ],
)
def test_usual_shapes_of_secrets_are_masked(line):
    masked, count = mask_secrets(line.format(SECRET))
    assert SECRET not in masked
    assert count >= 1


@pytest.mark.parametrize(
    "line",
    [
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "passwd:         files systemd",
        "password\trequisite\tpam_deny.so",
        "auth sufficient pam_unix.so try_first_pass nullok",
        "root:x:0:0:root:/root:/bin/bash",
        "AuthorizedKeysFile .ssh/authorized_keys",
        "Port 22",
        "0 3 * * * root /usr/local/bin/backup --quiet",
    ],
)
def test_ordinary_lines_stay_readable(line):
    assert mask_secrets(line) == (line, 0)


def test_a_private_key_is_masked_whole_even_if_its_end_is_missing():
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\nAAAA\n"
    for text in (key + "-----END OPENSSH PRIVATE KEY-----\nafter", key):
        masked, count = mask_secrets("before\n" + text)
        assert "b3Blb" not in masked
        assert masked.startswith("before\n")
        assert count == 1


def test_a_changed_password_shows_as_changed_and_shows_neither():
    found = compare_contents(b"user = a\npassword = hunter22\n", b"user = a\npassword = hunter33\n", name="/etc/app.conf")
    assert "-password = ‹masked 1›" in found.text
    assert "+password = ‹masked 2›" in found.text
    assert "hunter" not in found.text
    assert found.masked_count == 2


@given(
    st.text("abcdefgh0123456789-_", min_size=8, max_size=30),
    st.lists(st.text(max_size=30)),
    st.lists(st.text(max_size=30)),
    st.sampled_from(["password = {}", "api_key: {}", "x://u:{}@h/", "token={}"]),
)
def test_no_secret_is_ever_in_a_difference(secret, before, after, shape):
    line = shape.format("Q" + secret)
    old = "\n".join([*before, line, *after])
    new = "\n".join([*after, line, "more", *before])
    assert "Q" + secret not in compare_contents(old.encode(), new.encode(), name="f").text


def test_a_difference_is_unified_and_names_the_file():
    found = compare_contents(b"1+1=2\n", b"1*1=1\n", name="/srv/test.txt")
    assert found.text.splitlines() == [
        "--- /srv/test.txt (before)",
        "+++ /srv/test.txt (after)",
        "@@ -1,2 +1,2 @@",
        "-1+1=2",
        "+1*1=1",
        " ",
    ]
    assert found.note == ""


def test_a_binary_file_has_no_difference_and_says_why():
    assert compare_contents(b"\x7fELF\0\1", b"\x7fELF\0\2", name="f").note == "binary"


def test_other_encodings_are_read():
    for encoding in ("utf-16", "euc_jp", "cp932"):
        found = compare_contents("設定=甲\n".encode(encoding), "設定=乙\n".encode(encoding), name="f")
        assert "+設定=乙" in found.text, encoding


def test_control_characters_cannot_command_a_terminal():
    text = compare_contents(b"a\n", b"a\x1b[2J\x07\n", name="f").text
    assert "\\x1b[2J\\x07" in text
    assert "\x1b" not in text


def test_a_long_difference_is_cut_and_says_so():
    found = compare_contents(b"", b"\n".join(b"line %d" % number for number in range(15000)), name="f", max_characters=1000)
    assert len(found.text) <= 1000
    assert found.note == "cut after 1000 characters"


def test_the_worst_input_takes_bounded_time():
    old = b"\n".join(b"%d" % (number % 7) for number in range(20000))
    new = b"\n".join(b"%d" % (number % 5) for number in range(20000))
    started = time.monotonic()
    compare_contents(old, new, name="f")
    compare_contents(b"password=" * 30000, b"a" * 250_000, name="f")
    assert time.monotonic() - started < 10


def test_only_line_ends_differ():
    assert "line ends" in compare_contents(b"a\nb\n", b"a\r\nb\r\n", name="f").note
