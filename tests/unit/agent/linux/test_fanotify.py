"""Reading fanotify's records, whatever bytes come."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.linux.fanotify import CREATE, ONDIR, RENAME, FileEvent, parse_events
from keibi.errors import RefusedError

HANDLE = st.binary(min_size=0, max_size=64)
NAME = st.binary(max_size=255).filter(lambda name: b"\0" not in name and name != b".")


def info(kind: int, handle: bytes, name: bytes | None) -> bytes:
    body = b"FILESYST" + struct.pack("=Ii", len(handle), 1) + handle + (b"" if name is None else name + b"\0")
    body += b"\0" * (-len(body) % 4)
    return struct.pack("=BBH", kind, 0, 4 + len(body)) + body


def record(mask: int, pid: int, *infos: bytes) -> bytes:
    body = b"".join(infos)
    return struct.pack("=IBBHQii", 24 + len(body), 3, 0, 24, mask, -1, pid) + body


def handle_of(handle: bytes) -> bytes:
    return b"FILESYST" + struct.pack("=Ii", len(handle), 1) + handle


@given(st.lists(st.tuples(st.sampled_from([CREATE, CREATE | ONDIR]), st.integers(0, 2**31 - 1), HANDLE, NAME), max_size=10))
def test_every_name_comes_back_as_it_was_written(wanted):
    data = b"".join(record(mask, pid, info(2, handle, name)) for mask, pid, handle, name in wanted)
    assert parse_events(data) == [FileEvent(mask, pid, handle_of(handle), name) for mask, pid, handle, name in wanted]


@given(HANDLE, NAME, HANDLE, NAME)
def test_a_rename_has_both_names(old_handle, old_name, new_handle, new_name):
    data = record(RENAME, 7, info(10, old_handle, old_name), info(12, new_handle, new_name))
    expected = FileEvent(RENAME, 7, handle_of(old_handle), old_name, handle_of(new_handle), new_name)
    assert parse_events(data) == [expected]


def test_a_directory_itself_has_no_name():
    for one in (info(2, b"handle12", b"."), info(3, b"handle12", None)):
        assert parse_events(record(CREATE, 1, one)) == [FileEvent(CREATE, 1, handle_of(b"handle12"), b"")]


def test_records_of_other_kinds_are_passed_over():
    pidfd = struct.pack("=BBHi", 4, 0, 8, 5)
    assert parse_events(record(CREATE, 1, pidfd, info(2, b"handle12", b"name")))[0].name == b"name"


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_read_or_refused(data):
    try:
        parse_events(data)
    except RefusedError as error:
        assert error.code == "fanotify_malformed"  # noqa: PT017 - both outcomes are right


@given(st.binary(max_size=80), st.integers(0, 103), st.integers(0, 255))
def test_damaged_records_are_read_or_refused(name, place, byte):
    data = bytearray(record(CREATE, 1, info(2, b"handle12", name.replace(b"\0", b"x"))))
    data[place % len(data)] = byte
    try:
        parse_events(bytes(data))
    except RefusedError as error:
        assert error.code == "fanotify_malformed"  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize(
    "data",
    [
        b"short",
        struct.pack("=IBBHQii", 24, 2, 0, 24, 0, 0, 0),
        struct.pack("=IBBHQii", 0, 3, 0, 24, 0, 0, 0),
        struct.pack("=IBBHQii", 24, 3, 0, 0, 0, 0, 0),
        struct.pack("=IBBHQii", 9000, 3, 0, 24, 0, 0, 0),
        record(CREATE, 1, struct.pack("=BBH", 2, 0, 0)),
        record(CREATE, 1, struct.pack("=BBH8sIi", 2, 0, 20, b"FILESYST", 4000, 1)),
    ],
)
def test_what_makes_no_sense_is_refused(data):
    with pytest.raises(RefusedError):
        parse_events(data)
