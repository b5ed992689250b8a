"""Kept copies: content addressed, bounded, private."""

import hashlib
import os
import stat

import pytest

from keibi.agent.modules.integrity_monitoring.content_store import ContentStore, is_text


def digest(data):
    return hashlib.sha256(data).digest()


def keep(store, data):
    assert store.put(digest(data), data)
    return digest(data)


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "content")


def test_what_is_put_is_got_also_after_a_restart(place):
    store = ContentStore(place, max_total_bytes=10_000)
    data = b"line\n" * 1000
    key = keep(store, data)
    assert store.get(key) == data
    assert ContentStore(place, max_total_bytes=10_000).get(key) == data
    assert store.get(digest(b"something else")) is None


def test_equal_content_is_kept_once_and_only_its_owner_may_read_it(place):
    store = ContentStore(place, max_total_bytes=10_000)
    keep(store, b"a" * 5000)
    keep(store, b"a" * 5000)
    assert store.use().copy_count == 1
    (name,) = os.listdir(place)
    assert stat.S_IMODE(os.lstat(os.path.join(place, name)).st_mode) == 0o600
    assert stat.S_IMODE(os.lstat(place).st_mode) == 0o700


def test_the_copy_used_longest_ago_goes_first_and_is_counted(place):
    store = ContentStore(place, max_total_bytes=2500)
    contents = [os.urandom(1000) for _ in range(3)]  # cannot be compressed: two fit
    first, second = keep(store, contents[0]), keep(store, contents[1])
    assert store.get(first) == contents[0]
    third = keep(store, contents[2])
    assert [store.get(key) is not None for key in (first, second, third)] == [True, False, True]
    assert (store.use().copy_count, store.use().evicted_count) == (2, 1)
    assert store.use().total_bytes == sum(os.path.getsize(os.path.join(place, name)) for name in os.listdir(place))
    store.resize(0)
    assert (store.use().copy_count, store.use().total_bytes, os.listdir(place)) == (0, 0, [])


def test_what_is_larger_than_the_store_is_not_kept(place):
    store = ContentStore(place, max_total_bytes=100)
    data = os.urandom(1000)
    assert not store.put(digest(data), data)
    assert os.listdir(place) == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"junk"])
def test_a_damaged_copy_is_none_and_goes(place, damage):
    store = ContentStore(place, max_total_bytes=10_000)
    key = keep(store, b"text\n" * 100)
    with open(os.path.join(place, key.hex()), "wb") as file:
        file.write(damage)
    assert store.get(key) is None
    assert store.use().copy_count == 0


def test_a_flipped_bit_is_noticed(place):
    store = ContentStore(place, max_total_bytes=10_000)
    key = keep(store, os.urandom(1000))
    path = os.path.join(place, key.hex())
    with open(path, "r+b") as file:
        file.seek(500)
        byte = file.read(1)[0]
        file.seek(500)
        file.write(bytes([byte ^ 1]))
    assert store.get(key) is None


def test_what_a_killed_agent_left_half_written_goes_and_strangers_stay(place):
    os.makedirs(place)
    for name in ("ab" * 32 + ".new", "g" * 64, "README"):
        with open(os.path.join(place, name), "wb") as file:
            file.write(b"x")
    assert ContentStore(place, max_total_bytes=100).use().copy_count == 0
    assert sorted(os.listdir(place)) == ["README", "g" * 64]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", True),
        (b"PermitRootLogin no\n", True),
        ("設定\n".encode(), True),
        ("設定\n".encode("euc-jp"), True),
        (b"\x1b[31mred\x1b[0m\n", True),
        (b"\x7fELF\x02\x01\x01\0\0", False),
        (bytes(range(1, 32)) * 10, False),
    ],
)
def test_text_is_told_from_the_rest(data, expected):
    assert is_text(data) is expected
