"""The state of single files, on real files of every type."""

import hashlib
import os
import socket
import subprocess
import threading
import tracemalloc

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.linux.files import (
    PACKED_STATE,
    Absent,
    ContentOutcome,
    FileState,
    FileType,
    Unreadable,
    Wish,
    hash_prefix,
    new_hasher,
    pack_stat,
    pack_state,
    read_content,
    read_file_state,
    unpack_state,
)

BOTH = Wish.STATE | Wish.CONTENT
ODD_NAMES = [b"plain", b"two\nlines", b"\xff\xfe not utf-8", b"\x1b[31mred", "日本語".encode(), b"back\\slash", b" "]


@pytest.fixture
def place(tmp_path):
    return os.fsencode(tmp_path)


def write(path, data=b"content"):
    with open(path, "wb") as file:
        file.write(data)
    return path


def read(path, wish=BOTH, **more) -> FileState:
    state = read_file_state(path, wish, **more)
    assert isinstance(state, FileState)
    return state


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
def test_a_regular_file_under_any_name_is_hashed(place, name, algorithm):
    data = os.urandom(3_000_000)
    path = write(place + b"/" + name, data)
    state = read(path, algorithm=algorithm)
    assert state.content is ContentOutcome.HASHED
    assert state.content_hash == (hashlib.sha256(data) if algorithm == "sha256" else blake3(data)).digest()
    found = os.lstat(path)
    assert (state.size, state.mode, state.inode, state.changed_ns) == (
        found.st_size,
        found.st_mode,
        found.st_ino,
        found.st_ctime_ns,
    )
    assert (state.type, state.permissions) == (FileType.REGULAR, found.st_mode & 0o7777)


def test_each_type_is_told_and_none_but_regular_files_is_opened(place):
    os.mkdir(place + b"/directory")
    os.symlink(b"nowhere", place + b"/symlink")
    os.mkfifo(place + b"/fifo")  # opening it for reading would wait for a writer
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsdecode(place + b"/socket"))
        for name in (b"directory", b"symlink", b"fifo", b"socket"):
            state = read(place + b"/" + name)
            assert (state.type, state.content, state.content_hash) == (name.decode(), ContentOutcome.NOT_ASKED, b"")
    assert read(place + b"/symlink").link_target == b"nowhere"
    assert read(b"/dev/null").type is FileType.CHARACTER_DEVICE
    assert read(b"/dev/null").device_number == os.makedev(1, 3)


def test_absent_unreadable_and_not_asked_are_three_answers(place):
    assert read_file_state(place + b"/nothing", BOTH) == Absent(place + b"/nothing")
    write(place + b"/file")
    assert read_file_state(place + b"/file/below", BOTH) == Absent(place + b"/file/below")
    too_long = read_file_state(place + b"/" + b"x" * 300, BOTH)
    assert isinstance(too_long, Unreadable)
    assert "File name too long" in too_long.problem
    assert read(place + b"/file", Wish.STATE).content is ContentOutcome.NOT_ASKED


def test_a_loop_of_symlinks_is_no_endless_loop(place):
    os.symlink(b"b", place + b"/a")
    os.symlink(b"a", place + b"/b")
    assert read(place + b"/a").type is FileType.SYMLINK
    assert isinstance(read_file_state(place + b"/a/x", BOTH), Unreadable)


def test_a_file_that_keeps_changing_is_reported_as_unstable(place):
    path = write(place + b"/busy", bytes(32 * 1024 * 1024))
    is_done = threading.Event()

    def append():
        with open(path, "ab", buffering=0) as file:
            while not is_done.is_set():
                file.write(b"x")

    writer = threading.Thread(target=append)
    writer.start()
    try:
        state = read(path, tries=2)
    finally:
        is_done.set()
        writer.join()
    assert state.is_unstable
    assert state.content_hash == b""
    assert "changed" in state.problem
    assert read(path).content is ContentOutcome.HASHED


def test_a_huge_sparse_file_is_read_in_bounded_memory_and_refused_over_the_limit(place):
    path = write(place + b"/sparse")
    os.truncate(path, 200 * 1024 * 1024)
    tracemalloc.start()
    try:
        assert read(path).content is ContentOutcome.HASHED
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()
    os.truncate(path, 1 << 40)
    state = read(path, max_content_bytes=1 << 30)
    assert (state.content, state.size) == (ContentOutcome.TOO_LARGE, 1 << 40)


def test_reading_leaves_the_access_time_alone(place):
    path = write(place + b"/file")
    os.utime(path, ns=(1, 1))
    state = read(path, BOTH | Wish.ACCESS_TIME)
    assert state.accessed_ns == os.lstat(path).st_atime_ns == 1


def test_extended_attributes_and_flags_come_when_asked_for(place):
    path = write(place + b"/file")
    os.setxattr(path, "user.b", b"2")
    os.setxattr(path, "user.a", b"\0\xff")
    assert read(path).xattrs is None
    assert list((read(path, BOTH | Wish.XATTRS).xattrs or {}).items()) == [(b"user.a", b"\0\xff"), (b"user.b", b"2")]
    assert read(write(place + b"/none"), Wish.XATTRS).xattrs is None
    before = read(path, Wish.FLAGS).flags
    if subprocess.run(["chattr", "+d", os.fsdecode(path)], check=False, capture_output=True).returncode == 0:
        assert read(path, Wish.FLAGS).flags == (before or 0) | 0x40  # STATX_ATTR_NODUMP


def test_the_hash_of_a_beginning_stays_when_a_log_grows(place):
    path = write(place + b"/log", b"one\n")
    digest = hash_prefix(path, 4)
    write(path, b"one\ntwo\n")
    assert hash_prefix(path, 4) == digest == hashlib.sha256(b"one\n").digest()
    write(path, b"One\ntwo\n")
    assert hash_prefix(path, 4) != digest
    assert hash_prefix(path, 100) is None
    os.mkfifo(place + b"/fifo")
    assert hash_prefix(place + b"/fifo", 0) is None
    assert hash_prefix(place + b"/nothing", 0) is None


def test_small_content_comes_with_its_state_and_large_content_does_not(place):
    path = write(place + b"/file", b"x" * 1000)
    found = read_content(path, 1000)
    assert found is not None
    assert (found[0].size, found[1]) == (1000, b"x" * 1000)
    assert read_content(path, 999) is None
    os.symlink(path, place + b"/link")
    os.mkfifo(place + b"/fifo")
    assert [read_content(place + name, 1000) for name in (b"/link", b"/fifo", b"/nothing", b"")] == [None] * 4


def test_an_unknown_hash_algorithm_is_named():
    with pytest.raises(ValueError, match="'md5' is no hash algorithm"):
        new_hasher("md5")


unsigned32, unsigned64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
signed64 = st.integers(-(2**63), 2**63 - 1)


@given(st.tuples(*[unsigned32] * 4, unsigned64, signed64, signed64, *[unsigned64] * 3))
def test_what_is_packed_is_what_is_unpacked(numbers):
    packed = PACKED_STATE.pack(*numbers)
    assert pack_state(unpack_state(b"/x", packed)) == packed


def test_a_state_and_an_lstat_result_are_packed_alike(place):
    for path in (place, b"/dev/null", write(place + b"/file")):
        assert pack_state(read(path)) == pack_stat(os.lstat(path))
