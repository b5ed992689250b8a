"""The quarantine on a real file system: what comes back, what never happens in a race, what a kill leaves. Needs root."""

import io
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from keibi.agent.modules.anti_malware.quarantine import Quarantine
from keibi.agent.modules.anti_malware.quarantine_items import Deleted, Facts, Refused, Taken, What, Why
from keibi.agent.modules.anti_malware.quarantine_names import IMMUTABLE, loosen, read_flags, write_flags
from keibi.errors import InputError, RefusedError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HARM = b"this stands for something harmful\n" * 100
FACTS = Facts(threat="Test.Harm", threat_class="test_file", event_id="e1")
KEY = bytes(range(32))
USER_READ_ACL = struct.pack(
    "<I" + "HHI" * 5, 2, 1, 6, 0xFFFFFFFF, 2, 4, 1234, 4, 4, 0xFFFFFFFF, 0x10, 4, 0xFFFFFFFF, 0x20, 4, 0xFFFFFFFF
)
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


@pytest.fixture
def quarantine(tmp_path):
    opened = Quarantine(str(tmp_path / "vault"), KEY)
    yield opened
    opened.close()


@pytest.fixture
def place(tmp_path):
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


def written(path: pathlib.Path, content: bytes = HARM) -> bytes:
    path.write_bytes(content)
    return os.fsencode(path)


class Opened:
    """A descriptor as a scanner has one."""

    def __init__(self, path):
        self.descriptor = os.open(path, os.O_RDONLY)

    def __enter__(self):
        return self.descriptor

    def __exit__(self, *_):
        os.close(self.descriptor)


def take(quarantine, path: bytes, facts=FACTS):
    with Opened(path) as descriptor:
        return quarantine.take(descriptor, path, facts)


def test_a_file_comes_back_with_owner_mode_times_attributes_acl_capabilities_and_flags(quarantine, place):
    path = written(place / "tool", os.urandom(3 * 1024 * 1024 + 17))
    content = (place / "tool").read_bytes()
    os.chown(path, 1234, 2345)
    os.setxattr(path, "user.note", b"kept")
    os.setxattr(path, "system.posix_acl_access", USER_READ_ACL)
    os.chmod(path, 0o6755)
    os.setxattr(path, "security.capability", NET_RAW)
    os.utime(path, ns=(1_111_111_111_111_111_111, 1_222_222_222_222_222_222))
    with Opened(path) as descriptor:
        write_flags(descriptor, read_flags(descriptor) | IMMUTABLE)
    before = os.stat(path)
    names = os.listxattr(path)
    attributes = {name: os.getxattr(path, name) for name in names}

    taken = take(quarantine, path)
    assert isinstance(taken, Taken)
    assert os.listdir(place) == []
    assert content[:64] not in b"".join(file.read_bytes() for file in (place.parent / "vault" / "objects").iterdir())

    restored = quarantine.restore(taken.item.id)
    after = os.stat(path)
    with Opened(path) as descriptor:
        flags = loosen(descriptor)
    assert restored.problems == ()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, 1234, 2345)
    assert (after.st_atime_ns, after.st_mtime_ns) == (1_111_111_111_111_111_111, 1_222_222_222_222_222_222)
    assert flags & IMMUTABLE
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == attributes
    assert (place / "tool").read_bytes() == content
    assert quarantine.items() == []
    assert os.listdir(place.parent / "vault" / "objects") == []
    assert [outcome.what for outcome in quarantine.outcomes()] == [What.TAKEN, What.RESTORED]


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024 - 1, 1024 * 1024, 1024 * 1024 + 1, 2 * 1024 * 1024])
def test_every_size_around_a_record_comes_back(quarantine, place, size):
    content = os.urandom(size)
    taken = take(quarantine, written(place / "file", content))
    quarantine.restore(taken.item.id)
    assert (place / "file").read_bytes() == content


def test_restore_overwrites_nothing_follows_no_link_and_makes_no_directory(quarantine, place):
    path = written(place / "file")
    item = take(quarantine, path).item
    written(place / "file", b"new and innocent")
    with pytest.raises(InputError, match="something of that name") as occupied:
        quarantine.restore(item.id)
    assert occupied.value.code == "quarantine_occupied"
    (place / "file").unlink()
    (place / "file").symlink_to("/nonexistent/target")
    with pytest.raises(InputError, match="something of that name"):
        quarantine.restore(item.id)
    (place / "file").unlink()
    moved = place.rename(place.parent / "moved")
    with pytest.raises(InputError, match="directory cannot be entered"):
        quarantine.restore(item.id)
    place.symlink_to(moved)
    with pytest.raises(InputError, match="directory cannot be entered"):
        quarantine.restore(item.id)
    assert list(moved.iterdir()) == []
    other = os.fsencode(moved / "elsewhere")
    assert quarantine.restore(item.id, to=other).path == other
    assert (moved / "elsewhere").read_bytes() == HARM


def test_hard_links_are_made_useless_and_counted(quarantine, place):
    path = written(place / "file")
    os.chmod(path, 0o4755)
    os.link(path, place / "other")
    taken = take(quarantine, path)
    assert taken.item.other_names_count == 1
    assert (place / "other").stat().st_mode & 0o7777 == 0
    quarantine.restore(taken.item.id)
    assert (place / "file").stat().st_mode & 0o7777 == 0o4755


def test_an_immutable_directory_is_left_immutable(quarantine, place):
    path = written(place / "file")
    directory = os.open(place, os.O_RDONLY)
    try:
        write_flags(directory, read_flags(directory) | IMMUTABLE)
        assert isinstance(take(quarantine, path), Taken)
        assert read_flags(directory) & IMMUTABLE
    finally:
        loosen(directory)
        os.close(directory)
    assert list(place.iterdir()) == []


def test_a_file_that_has_changed_moved_or_vanished_is_refused_and_stays(quarantine, place):
    path = written(place / "file")
    changed = take(quarantine, path, Facts(threat="T", sha256="0" * 64))
    assert changed.why is Why.CHANGED
    with Opened(path) as descriptor:
        os.rename(path, place / "aside")
        written(place / "file", b"innocent")
        followed = quarantine.take(descriptor, path, FACTS)
    assert isinstance(followed, Taken)
    assert followed.item.path == os.fsencode(place / "aside")
    assert (place / "file").read_bytes() == b"innocent"
    with Opened(path) as descriptor:
        os.unlink(path)
        assert quarantine.take(descriptor, path, FACTS).why is Why.GONE
    assert len(quarantine.items()) == 1
    with Opened(place) as descriptor:
        assert quarantine.take(descriptor, os.fsencode(place), FACTS).why is Why.NOT_REGULAR


def test_a_link_on_the_way_is_not_followed(quarantine, place):
    written(place / "file")
    (place.parent / "link").symlink_to(place)
    through = os.fsencode(place.parent / "link" / "file")
    with Opened(place / "file") as descriptor:
        # Where the kernel says that the file is, it is taken; the link's directory is not touched.
        assert quarantine.take(descriptor, through, FACTS).item.path == os.fsencode(place / "file")
    assert (place.parent / "link").is_symlink()


def test_delete_takes_exactly_the_scanned_file(quarantine, place):
    path = written(place / "file")
    with Opened(path) as descriptor:
        assert isinstance(quarantine.delete(descriptor, path, FACTS), Deleted)
    assert list(place.iterdir()) == []
    assert quarantine.items() == []
    path = written(place / "file")
    with Opened(path) as descriptor:
        assert quarantine.delete(descriptor, path, Facts(threat="T", sha256="1" * 64)).why is Why.CHANGED
    assert (place / "file").read_bytes() == HARM


def test_the_oldest_go_first_and_are_told(tmp_path, place):
    now = [1000.0]
    quarantine = Quarantine(str(tmp_path / "vault"), KEY, max_bytes=3 * len(HARM), clock=lambda: now[0])
    for number in range(4):
        now[0] += 1
        taken = take(quarantine, written(place / f"file{number}"))
    assert [item.path.rpartition(b"/")[2] for item in taken.expired] == [b"file0"]
    assert len(quarantine.items()) == 3
    now[0] += 10
    quarantine.set_limits(3 * len(HARM), 8.5)
    assert len(quarantine.expire()) == 3
    assert [outcome.what for outcome in quarantine.outcomes()].count(What.EXPIRED) == 4
    quarantine.set_limits(10, 0)
    assert take(quarantine, written(place / "large")).why is Why.TOO_LARGE
    assert os.listdir(tmp_path / "vault" / "objects") == []
    quarantine.forget_outcomes(quarantine.outcomes()[-1].sequence)
    assert quarantine.outcomes() == []
    quarantine.close()


@pytest.mark.skipif(shutil.which("7z") is None, reason="7z is not installed")
def test_an_exported_archive_is_opened_by_7z_with_the_password_only(quarantine, place, tmp_path):
    content = os.urandom(2 * 1024 * 1024 + 5)
    item = take(quarantine, written(place / "döner\n.bin", content)).item
    archive = tmp_path / "harm.zip"
    with archive.open("wb") as target:
        quarantine.export(item.id, target, "infected")
    assert content[:100] not in archive.read_bytes()
    wrong = subprocess.run(["7z", "t", "-pwrong", archive], capture_output=True, check=False)
    assert wrong.returncode != 0
    done = subprocess.run(["7z", "x", "-pinfected", f"-o{tmp_path / 'out'}", archive], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    extracted = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(extracted) == 2
    assert b"Test.Harm" in extracted.pop("metadata.json")
    assert list(extracted.values()) == [content]
    with pytest.raises(InputError, match="needs a password"):
        quarantine.export(item.id, io.BytesIO(), "")


@pytest.mark.parametrize(
    "damage", ["cut a record", "cut a byte", "swap records", "flip a bit", "take another's", "append", "remove"]
)
def test_a_tampered_object_is_refused_and_nothing_is_written(quarantine, place, damage):
    item = take(quarantine, written(place / "file", os.urandom(3 * 1024 * 1024))).item
    other = take(quarantine, written(place / "other", os.urandom(3 * 1024 * 1024))).item
    sealed = place.parent / "vault" / "objects" / item.id
    data, record = sealed.read_bytes(), 1024 * 1024 + 16
    match damage:
        case "cut a record":
            data = data[: 2 * record]
        case "cut a byte":
            data = data[:-1]
        case "swap records":
            data = data[record : 2 * record] + data[:record] + data[2 * record :]
        case "flip a bit":
            data = data[:5] + bytes([data[5] ^ 1]) + data[6:]
        case "take another's":
            data = (sealed.parent / other.id).read_bytes()
        case "append":
            data += data[:record]
    sealed.unlink()
    if damage != "remove":
        sealed.write_bytes(data)
    with pytest.raises(RefusedError) as refused:
        quarantine.restore(item.id)
    assert refused.value.code == "quarantine_damaged"
    assert list(place.iterdir()) == []
    quarantine.discard(item.id)
    assert [kept.id for kept in quarantine.items()] == [other.id]


def test_tampered_metadata_are_noticed(quarantine, place, tmp_path):
    one, other = (take(quarantine, written(place / name)).item for name in ("one", "other"))
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(f"""
            import sqlite3
            connection = sqlite3.connect({str(tmp_path / 'vault' / 'quarantine.db')!r})
            connection.execute("UPDATE item SET metadata = (SELECT metadata FROM item WHERE id = ?) WHERE id = ?",
                               ({one.id!r}, {other.id!r}))
            connection.commit()
        """)],
        check=True,
    )  # fmt: skip
    assert [item.id for item in quarantine.items()] == [one.id]
    assert quarantine.damaged() == [other.id]
    with pytest.raises(RefusedError, match="do not authenticate"):
        quarantine.get(other.id)


# --- races

SWAPPER = """
import os, sys, time
place, precious, harm, pause = sys.argv[1].encode(), sys.argv[2].encode(), sys.argv[3].encode(), float(sys.argv[4])
leaf = place + b"/inner/file"
fill = open(harm, "rb").read()
def leaf_is(make):
    try: os.unlink(leaf + b".new")
    except FileNotFoundError: pass
    make(leaf + b".new"); os.rename(leaf + b".new", leaf)
def malware(path):
    with open(path, "wb") as file: file.write(fill)
turns = 0
while True:
    for make in (malware, lambda p: os.symlink(precious + b"/0", p), malware, lambda p: os.link(precious + b"/1", p), malware):
        try: leaf_is(make)
        except OSError: pass
        time.sleep(pause)
    turns += 1
    if turns % 3 == 0:
        try:
            os.rename(place + b"/inner", place + b"/hidden"); os.symlink(precious, place + b"/inner")
            time.sleep(pause)
            os.unlink(place + b"/inner"); os.rename(place + b"/hidden", place + b"/inner")
        except OSError: pass
"""


@pytest.mark.parametrize("pause", [0.0, 0.04])
def test_nothing_precious_is_damaged_while_names_and_directories_are_swapped(quarantine, place, tmp_path, pause):
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in ("0", "1", "file"):
        (precious / name).write_bytes(b"precious " + name.encode())
    (place / "inner").mkdir()
    (tmp_path / "harm").write_bytes(HARM)
    leaf = os.fsencode(place / "inner" / "file")
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, place, precious, tmp_path / "harm", str(pause)])
    taken, refused = 0, {}
    try:
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            try:
                descriptor = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                if os.pread(descriptor, 1 << 16, 0) != HARM:
                    continue
                answer = quarantine.take(descriptor, leaf, FACTS)
            finally:
                os.close(descriptor)
            if isinstance(answer, Taken):
                taken += 1
            else:
                refused[answer.why] = refused.get(answer.why, 0) + 1
            assert swapper.poll() is None
    finally:
        swapper.kill()
        swapper.wait()
    for name in ("0", "1", "file"):
        assert (precious / name).read_bytes() == b"precious " + name.encode()
        assert (precious / name).stat().st_mode & 0o777 == 0o644
    assert sorted(os.listdir(precious)) == ["0", "1", "file"]
    for item in quarantine.items():
        target = os.fsencode(tmp_path / "again")
        quarantine.restore(item.id, to=target)
        assert (tmp_path / "again").read_bytes() == HARM
        (tmp_path / "again").unlink()
    assert set(refused) <= {Why.GONE, Why.MOVED, Why.LINK, Why.CHANGED}
    if pause:
        assert taken > 0, refused
    # What was moved to and fro by mistake and lost its name meanwhile is known, and swept as far as its name is free.
    (place / "hidden").rename(place / "inner") if (place / "hidden").exists() and not (place / "inner").exists() else None
    left = quarantine.sweep()
    found = {os.fsencode(path) for path in place.rglob(".keibi-taken-*")}
    assert found <= set(left)


# --- kills

KILLED = """
import os, signal, sys
from keibi.agent.modules.anti_malware.quarantine import Quarantine
from keibi.agent.modules.anti_malware.quarantine_items import Facts
vault, path, step, act = sys.argv[1], os.fsencode(sys.argv[2]), sys.argv[3], sys.argv[4]
def kill(name):
    if name == step:
        os.kill(os.getpid(), signal.SIGKILL)
quarantine = Quarantine(vault, bytes(range(32)), step=kill)
if act in ("take", "delete"):
    descriptor = os.open(path, os.O_RDONLY)
    getattr(quarantine, act)(descriptor, path, Facts(threat="Test.Harm", event_id="e1"))
else:
    getattr(quarantine, act)(quarantine.items()[0].id)
"""


def killed_at(step: str, act: str, vault: pathlib.Path, path: pathlib.Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, vault, path, step, act], check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL, f"it never came to the step {step!r}"


@pytest.mark.parametrize("step", ["begun", "linked", "sealed", "harmless", "renamed", "unlinked", "kept"])
def test_after_a_kill_at_any_step_a_file_is_either_taken_or_as_it_was(tmp_path, place, step):
    path = place / "file"
    written(path)
    os.chmod(path, 0o755)
    os.link(path, place / "other")
    killed_at(step, "take", tmp_path / "vault", path)
    quarantine = Quarantine(str(tmp_path / "vault"), KEY)
    recovered = quarantine.recover()
    assert recovered.left == ()
    if step in ("begun", "linked"):
        assert path.read_bytes() == HARM
        assert path.stat().st_mode & 0o777 == 0o755
        assert quarantine.items() == []
        assert os.listdir(tmp_path / "vault" / "objects") == []
        assert [outcome.what for outcome in quarantine.outcomes()] == [What.UNDONE]
        assert quarantine.outcomes()[0].item.facts.event_id == "e1"
    else:
        assert sorted(os.listdir(place)) == ["other"]
        assert (place / "other").stat().st_mode & 0o777 == 0
        assert [outcome.what for outcome in quarantine.outcomes()] == [What.TAKEN]
        (item,) = quarantine.items()
        quarantine.restore(item.id)
        assert path.read_bytes() == HARM
        assert path.stat().st_mode & 0o777 == 0o755
    assert quarantine.recover().finished == ()
    quarantine.close()


@pytest.mark.parametrize("step", ["removing", "harmless", "renamed", "unlinked"])
def test_after_a_kill_a_deletion_is_finished(tmp_path, place, step):
    written(place / "file")
    killed_at(step, "delete", tmp_path / "vault", place / "file")
    quarantine = Quarantine(str(tmp_path / "vault"), KEY)
    quarantine.recover()
    assert list(place.iterdir()) == []
    assert quarantine.items() == []
    assert [outcome.what for outcome in quarantine.outcomes()] == [What.REMOVED]
    quarantine.close()


@pytest.mark.parametrize(("act", "step"), [("discard", "key gone"), ("restore", "restored"), ("restore", "key gone")])
def test_after_a_kill_nothing_is_lost_while_it_is_restored_or_discarded(tmp_path, place, act, step):
    path = place / "file"
    quarantine = Quarantine(str(tmp_path / "vault"), KEY)
    take(quarantine, written(path))
    quarantine.close()
    killed_at(step, act, tmp_path / "vault", path)
    quarantine = Quarantine(str(tmp_path / "vault"), KEY)
    quarantine.recover()
    assert path.exists() == (act == "restore")
    assert len(quarantine.items()) == (step == "restored")
    assert len(os.listdir(tmp_path / "vault" / "objects")) == len(quarantine.items())
    quarantine.close()


def test_without_its_copy_the_recovery_leaves_a_file_where_it_is(tmp_path, place):
    written(place / "file")
    killed_at("sealed", "take", tmp_path / "vault", place / "file")
    for sealed in (tmp_path / "vault" / "objects").iterdir():
        sealed.unlink()
    quarantine = Quarantine(str(tmp_path / "vault"), KEY)
    assert len(quarantine.recover().undone) == 1
    assert (place / "file").read_bytes() == HARM
    assert quarantine.items() == []
    assert [outcome.what for outcome in quarantine.outcomes()] == [What.UNDONE]
    quarantine.close()


def test_another_file_that_got_the_same_inode_is_not_taken_by_the_recovery(tmp_path, place):
    path = place / "file"
    written(path)
    killed_at("sealed", "take", tmp_path / "vault", path)
    before = path.stat()
    with path.open("r+b") as file:  # the same inode, size and time, but another content: as after a reuse
        file.write(b"T")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    quarantine = Quarantine(str(tmp_path / "vault"), KEY)
    quarantine.recover()
    assert path.read_bytes() == b"T" + HARM[1:]
    assert len(quarantine.items()) == 1
    quarantine.close()


def test_a_file_of_another_root_is_taken_and_restored_there(quarantine, place):
    written(place / "file")
    with Opened(place / "file") as descriptor:
        taken = quarantine.take(descriptor, b"/place/file", FACTS, root=os.fsencode(place.parent))
        assert taken.item.path == b"/place/file"
    assert list(place.iterdir()) == []
    quarantine.restore(taken.item.id)
    assert (place / "file").read_bytes() == HARM


def test_a_read_only_place_is_refused_and_the_copy_forgotten(quarantine, place, tmp_path):
    written(place / "file")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "--bind", place, mounted], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        answer = take(quarantine, os.fsencode(mounted / "file"))
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)
    assert answer.why is Why.READ_ONLY
    assert quarantine.items() == []
    assert os.listdir(tmp_path / "vault" / "objects") == []
    assert quarantine.outcomes() == []


def test_two_who_find_the_same_file_take_it_once(quarantine, place):
    path = written(place / "file", os.urandom(8 * 1024 * 1024))
    answers = []
    start = threading.Barrier(4)

    def act():
        with Opened(path) as descriptor:
            start.wait()
            answers.append(quarantine.take(descriptor, path, FACTS))

    threads = [threading.Thread(target=act) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(answer, Taken) for answer in answers) == 1
    passing = {Why.GONE, Why.MOVED, Why.LINK, Why.CHANGED, Why.BUSY}
    assert {answer.why for answer in answers if isinstance(answer, Refused)} <= passing
    assert len(quarantine.items()) == 1
