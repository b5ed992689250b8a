"""The baseline database: pages, versions, and what is left after a kill or damage."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keibi.agent.linux.files import ContentOutcome, FileState, Wish
from keibi.agent.modules.integrity_monitoring.baseline import Baseline, FileChange, LoggedChange, VersionKind
from keibi.agent.modules.integrity_monitoring.file_pages import PAGE_ENTRIES, join_path, split_path
from keibi.errors import InputError, RefusedError, TryLaterError


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "baseline.db")


@pytest.fixture
def baseline(path):
    opened = Baseline.open(path)
    yield opened
    opened.close()


def state(path, number=0, **more):
    hashed = {"content": ContentOutcome.HASHED, "content_hash": bytes([number % 256]) * 32} if number else {}
    return FileState(
        path=path, mode=0o100644, uid=0, gid=0, link_count=1, size=number, modified_ns=number, changed_ns=number, inode=1,
        device=1, **hashed | more,
    )  # fmt: skip


def store(baseline, kind, *states, deleted=(), is_logged=True):
    with baseline.transaction():
        version = baseline.begin_version(kind, at=1.0)
        changes = [FileChange(each.path, None, each) for each in states] + [FileChange(gone, None, None) for gone in deleted]
        baseline.store_files(version, changes, is_logged=is_logged)
        baseline.finish_version(version, at=2.0)
    return version


@pytest.mark.parametrize("name", [b"/", b"/a", b"/a/b", b"/a/\xff\n", b"/a b/c"])
def test_a_path_is_split_and_joined_without_loss(name):
    assert join_path(*split_path(name)) == name


def test_all_that_is_known_of_a_file_comes_back(baseline):
    full = state(
        b"/etc/\xff\n", 7, asked=Wish.STATE | Wish.CONTENT | Wish.XATTRS, link_target=b"\xfe", xattrs={b"security.x": b"\0"},
        flags=0x10, accessed_ns=5,
    )  # fmt: skip
    plain = state(b"/etc/x", 0, content=ContentOutcome.UNREADABLE)
    store(baseline, VersionKind.BUILD, full, plain, state(b"/", 1))
    found = baseline.file(full.path)
    assert found == full
    assert found.asked == full.asked
    assert baseline.file(plain.path) == plain
    assert baseline.file(b"/") == state(b"/", 1)
    assert baseline.file(b"/etc/y") is baseline.file(b"/none/x") is None


def test_only_what_lies_below_a_directory_is_listed(baseline):
    paths = [b"/a/x", b"/a/b/x", b"/a/b/c/x", b"/a/bc/x", b"/a/b0/x", b"/a/b-/x", b"/ab/x", b"/x"]
    store(baseline, VersionKind.BUILD, *[state(each) for each in paths])
    assert sorted(each.path for each in baseline.files_under(b"/a/b")) == [b"/a/b/c/x", b"/a/b/x"]
    assert sorted(each.path for each in baseline.files_under(b"/")) == sorted(paths)
    assert baseline.count() == len(paths)


names = st.binary(min_size=1, max_size=3).filter(lambda name: b"/" not in name and b"\0" not in name)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(names, st.one_of(st.none(), st.integers(1, 300)), max_size=40), max_size=6))
def test_the_store_equals_a_dictionary(steps):
    with tempfile.TemporaryDirectory() as directory:
        baseline = Baseline.open(os.path.join(directory, "b.db"))
        model = {}
        for step in steps:
            changes = {}
            for name, number in step.items():
                for path in (b"/d/" + name, b"/e/" + name):
                    changes[path] = None if number is None else state(path, number)
            version = store(
                baseline,
                VersionKind.SCAN,
                *[each for each in changes.values() if each],
                deleted=[path for path, each in changes.items() if each is None],
            )
            before = dict(model)
            model |= changes
            model = {path: each for path, each in model.items() if each}
            assert {each.path: each for each in baseline.files_under(b"/")} == model
            if version > 1:
                logged = {change.key: change.after for change in baseline.changes_between(version - 1, version)}
                assert logged == {
                    path: model.get(path) for path in before.keys() | model.keys() if before.get(path) != model.get(path)
                }
        baseline.close()


def test_a_change_in_a_huge_directory_rewrites_one_page(baseline):
    count = PAGE_ENTRIES * 5
    store(baseline, VersionKind.BUILD, *[state(b"/d/%06d" % n, 1) for n in range(count)])
    before = {page.first: page for page in baseline.pages(b"/d")}
    assert len(before) == 5
    store(baseline, VersionKind.REAL_TIME, state(b"/d/000700", 2), state(b"/d/000701x", 2))
    after = {page.first: page for page in baseline.pages(b"/d")}
    touched = {first for first in after if before.get(first) != after[first]}
    assert touched == {b"%06d" % (PAGE_ENTRIES * 2), max(first for first in after if first < b"%06d" % (PAGE_ENTRIES * 3))}
    assert baseline.file(b"/d/000700").size == 2
    assert baseline.count() == count + 1
    store(baseline, VersionKind.REAL_TIME, state(b"/d/!", 3))  # sorts before all others
    assert [each.path for page in baseline.pages(b"/d") for each in page.entries()] == sorted(
        each.path for each in baseline.files_under(b"/d")
    )
    assert baseline.count() == count + 2


def test_two_versions_are_compared_over_what_lies_between(baseline):
    first = store(baseline, VersionKind.BUILD, state(b"/a", 1), state(b"/b", 1), is_logged=False)
    store(baseline, VersionKind.SCAN, state(b"/a", 2), state(b"/c", 1))
    store(baseline, VersionKind.SCAN, state(b"/a", 3), state(b"/b", 9))
    last = store(baseline, VersionKind.APPROVE, state(b"/b", 1), deleted=[b"/c"])
    assert list(baseline.changes_between(first, last)) == [LoggedChange("file", b"/a", state(b"/a", 1), state(b"/a", 3))]
    assert {change.key for change in baseline.changes_between(last - 1, last)} == {b"/b", b"/c"}
    versions = baseline.versions()
    assert [(each.kind, each.entry_count, each.change_count) for each in versions] == [
        (VersionKind.BUILD, 2, 0),
        (VersionKind.SCAN, 3, 2),
        (VersionKind.SCAN, 3, 2),
        (VersionKind.APPROVE, 2, 2),
    ]
    with baseline.transaction():
        assert baseline.keep_versions(2) == 2
    assert [each.version for each in baseline.versions()] == [last - 1, last]
    with pytest.raises(InputError, match="version 1 is not kept"):
        list(baseline.changes_between(first, last))


def test_other_entities_live_beside_the_files(baseline):
    with baseline.transaction():
        first = baseline.begin_version(VersionKind.BUILD)
        baseline.store_entity(first, "user", b"root", {"uid": 0, "shell": "/bin/sh"}, is_logged=False)
        baseline.store_entity(first, "user", b"\xff", {"uid": 7}, is_logged=False)
        second = baseline.begin_version(VersionKind.SCAN)
        baseline.store_entity(second, "user", b"root", {"shell": "/bin/bash", "uid": 0})
        baseline.store_entity(second, "user", b"\xff", None)
        baseline.store_entity(second, "port", b"tcp/0.0.0.0/22", {"process": "sshd"})
    assert baseline.entities("user") == {b"root": {"uid": 0, "shell": "/bin/bash"}}
    assert baseline.entity("port", b"tcp/0.0.0.0/22") == {"process": "sshd"}
    assert baseline.entity("user", b"\xff") is None
    assert baseline.count() == 2
    assert list(baseline.changes_between(first, second)) == [
        LoggedChange("port", b"tcp/0.0.0.0/22", None, {"process": "sshd"}),
        LoggedChange("user", b"root", {"uid": 0, "shell": "/bin/sh"}, {"uid": 0, "shell": "/bin/bash"}),
        LoggedChange("user", b"\xff", {"uid": 7}, None),
    ]


def test_the_callers_own_table_is_in_the_same_transaction(baseline):
    baseline.connection.execute("CREATE TABLE outbox (sequence INTEGER PRIMARY KEY, event BLOB)")

    def store_and_fail():
        with baseline.transaction() as connection:
            connection.execute("INSERT INTO outbox VALUES (1, x'00')")
            baseline.store_files(baseline.begin_version(VersionKind.SCAN), [FileChange(b"/a", None, state(b"/a"))])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store_and_fail()
    assert baseline.connection.execute("SELECT count(*) FROM outbox").fetchone()[0] == 0
    assert (baseline.count(), baseline.versions()) == (0, [])


def test_settings_are_kept(baseline, path):
    assert baseline.setting("hash_algorithm") is None
    with baseline.transaction():
        baseline.put_setting("hash_algorithm", b"sha256")
        baseline.put_setting("hash_algorithm", b"blake3")
    again = Baseline.open(path, is_checked=False)
    assert again.setting("hash_algorithm") == b"blake3"
    again.close()


def test_only_the_owner_may_read_the_database(baseline, path):
    for suffix in ("", "-wal", "-shm"):
        assert stat.S_IMODE(os.stat(path + suffix).st_mode) == 0o600


WRITER = """
import sys
from keibi.agent.linux.files import FileState
from keibi.agent.modules.integrity_monitoring.baseline import Baseline, FileChange, VersionKind
baseline = Baseline.open(sys.argv[1])
number = 0
while True:
    number += 1
    with baseline.transaction():
        version = baseline.begin_version(VersionKind.REAL_TIME, note=str(number))
        for name in (b"/d/a", b"/e/b"):
            state = FileState(path=name, mode=33188, uid=0, gid=0, link_count=1, size=number, modified_ns=0, changed_ns=0,
                              inode=0, device=0)
            baseline.store_files(version, [FileChange(name, None, state)])
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_whole_transactions(path):
    for rounds in (3, 25, 60):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
            told = 0
            for line in writer.stdout:
                told = int(line)
                if told >= rounds:
                    break
            writer.send_signal(signal.SIGKILL)
        baseline = Baseline.open(path)
        one, other = baseline.file(b"/d/a").size, baseline.file(b"/e/b").size
        assert one == other == int(baseline.versions()[-1].note) >= told
        baseline.close()


def test_a_damaged_database_is_moved_aside_and_says_so(path):
    baseline = Baseline.open(path)
    store(baseline, VersionKind.BUILD, *[state(b"/d/%06d" % n, 1) for n in range(2000)])
    baseline.close()
    with open(path, "r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(20 * 4096))
    with pytest.raises(RefusedError, match=r"damaged.*moved to") as caught:
        Baseline.open(path)
    assert caught.value.code == "baseline_corrupt"
    assert [name for name in os.listdir(os.path.dirname(path)) if ".damaged-" in name]
    fresh = Baseline.open(path)
    assert fresh.count() == 0
    fresh.close()


def test_a_file_that_is_no_database_is_moved_aside(path):
    with open(path, "wb") as file:
        file.write(b"not a database at all" * 1000)
    with pytest.raises(RefusedError, match="not a database"):
        Baseline.open(path)
    Baseline.open(path).close()


def test_a_database_of_a_newer_keibi_is_left_alone(path):
    Baseline.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(InputError, match="schema 99, newer than"):
        Baseline.open(path)
    assert os.path.exists(path)


def test_a_missing_directory_is_no_damage(tmp_path):
    with pytest.raises(TryLaterError, match="cannot be opened"):
        Baseline.open(str(tmp_path / "none" / "baseline.db"))
