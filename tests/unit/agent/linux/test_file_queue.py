"""Listing and hashing of whole directories: the C part and its Python twin are held against each other."""

import os
import socket
import stat
import threading
import time
from contextlib import contextmanager

import pytest

from keibi.agent.linux.file_queue import Answer, file_reader
from keibi.agent.linux.files import PACKED_STATE, ContentOutcome, Wish, new_hasher, pack_stat

READERS = {"native": file_reader(), "python": file_reader(allow_native=False)}
BOTH = Wish.CONTENT | Wish.STATE


@pytest.fixture(params=READERS)
def reader(request):
    return READERS[request.param]


@pytest.fixture
def tree(tmp_path):
    """A directory with every type, odd names and sizes around the block and buffer boundaries."""
    place = os.fsencode(tmp_path) + b"/tree"
    os.mkdir(place)
    for size in (0, 1, 55, 56, 63, 64, 65, 1024, 131_071, 131_072, 131_073, 1_048_576, 3_000_001):
        with open(place + b"/%d" % size, "wb") as file:
            file.write(os.urandom(size))
    for name in (b"a\nb", b"\xff", b"~", b".hidden", b"..dots", "日本".encode()):
        with open(place + b"/" + name, "wb") as file:
            file.write(name)
    os.mkdir(place + b"/directory")
    os.symlink(b"directory", place + b"/link")
    os.mkfifo(place + b"/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsdecode(place + b"/socket"))
    return place


@contextmanager
def opened(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def hash_all(reader, root, listings, algorithm="sha256", *, threads=2, wish=BOTH, **options):
    """Return {ticket: Answer} of (path, listing) pairs."""
    queue = reader.new_queue(algorithm, **options)
    workers = [threading.Thread(target=queue.run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for ticket, (path, listing) in enumerate(listings):
            wishes = bytes([wish.value]) * (len(listing[1]) // PACKED_STATE.size)
            queue.add(ticket, root, path, listing[0], listing[1], wishes, False)
        queue.close()
        answers = {}
        while len(answers) < len(listings):
            answers |= {answer.ticket: answer for answer in map(Answer._make, queue.take(10))}
        return answers
    finally:
        queue.cancel()
        for worker in workers:
            worker.join()


def by_name(listing, answer):
    names = listing[0].split(b"\0")
    digests = [answer.digests[at : at + 32] for at in range(0, len(answer.digests), 32)]
    return {
        name: (ContentOutcome(outcome), digests.pop(0) if outcome == 1 else b"")
        for name, outcome in zip(names, answer.outcomes, strict=True)
    }


def test_the_c_part_is_built():
    assert READERS["native"].is_native
    assert not READERS["python"].is_native


def test_both_list_the_same(tree):
    with opened(tree) as root:
        native, python = (tuple(reader.list_directory(root, b"", False)) for reader in READERS.values())
    assert native == python
    names, states, directories, mounts, problems = native
    assert names.split(b"\0") == sorted(os.listdir(tree))
    assert states == b"".join(pack_stat(os.lstat(tree + b"/" + name)) for name in sorted(os.listdir(tree)))
    assert (directories, mounts, problems) == ([b"directory"], [], [])


def test_an_empty_directory_has_an_empty_listing(reader, tree):
    with opened(tree) as root:
        assert tuple(reader.list_directory(root, b"directory", False)) == (b"", b"", [], [], [])


def test_a_directory_of_many_entries_is_listed_whole(reader, tree):
    for number in range(3000):
        os.close(os.open(tree + b"/directory/%064d" % number, os.O_CREAT))
    with opened(tree) as root:
        listing = reader.list_directory(root, b"directory", False)
    assert listing[0].split(b"\0") == [b"%064d" % number for number in range(3000)]


def test_a_mount_point_among_the_entries_is_named(reader):
    if os.lstat("/").st_dev == os.lstat("/proc").st_dev:
        pytest.skip("/proc is no mount here")
    with opened(b"/") as root:
        assert b"proc" in reader.list_directory(root, b"", False)[3]


@pytest.mark.parametrize("path", [b"nothing", b"fifo", b"1/below", b"x" * 5000])
def test_what_cannot_be_listed_raises(reader, tree, path):
    with opened(tree) as root, pytest.raises(OSError, match=r"No such file|Not a directory|too long"):
        reader.list_directory(root, path, False)


def test_a_symlink_on_the_way_is_followed_only_when_loose(reader, tree):
    os.mkdir(tree + b"/directory/inner")
    with opened(tree) as root:
        for path in (b"link", b"link/inner"):
            with pytest.raises(OSError, match=r"symbolic|Not a directory"):
                reader.list_directory(root, path, False)
        assert reader.list_directory(root, b"link", True)[2] == [b"inner"]


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
def test_every_regular_file_is_hashed_as_the_library_does(reader, tree, algorithm):
    with opened(tree) as root:
        listing = reader.list_directory(root, b"", False)
        answers = hash_all(
            reader, root, [(b"", listing), (b"directory", reader.list_directory(root, b"directory", False))], algorithm
        )
    assert answers[1] == Answer(1, b"", b"", b"")
    for name, (outcome, digest) in by_name(listing, answers[0]).items():
        path = tree + b"/" + name
        if stat.S_ISREG(os.lstat(path).st_mode):
            hasher = new_hasher(algorithm)
            with open(path, "rb") as file:
                hasher.update(memoryview(file.read()))
            assert (outcome, digest) == (ContentOutcome.HASHED, hasher.digest()), name
        else:
            assert outcome is ContentOutcome.NOT_ASKED


def test_only_wanted_content_is_read(reader, tree):
    with opened(tree) as root:
        listing = reader.list_directory(root, b"", False)
        answers = hash_all(reader, root, [(b"", listing)], wish=Wish.STATE)
    assert not any(answers[0].outcomes)


def test_many_directories_and_threads_answer_each_once(reader, tmp_path):
    place = os.fsencode(tmp_path)
    for number in range(200):
        os.mkdir(place + b"/%d" % number)
        for name in range(number % 5):
            with open(place + b"/%d/%d" % (number, name), "wb") as file:
                file.write(b"%d" % number)
    with opened(place) as root:
        listings = [(b"%d" % n, reader.list_directory(root, b"%d" % n, False)) for n in range(200)]
        answers = hash_all(reader, root, listings, threads=4)
    assert sorted(answers) == list(range(200))
    assert all(answers[number].outcomes == b"\1" * (number % 5) for number in range(200))
    assert len({digest for answer in answers.values() for digest in [answer.digests[:32]] if digest}) == 160


def test_what_changed_since_the_listing_is_no_hash(reader, tree):
    with opened(tree) as root:
        listing = reader.list_directory(root, b"", False)
        os.unlink(tree + b"/64")
        os.unlink(tree + b"/65")
        os.mkfifo(tree + b"/65")  # would hang who opens it without thought
        os.unlink(tree + b"/1024")
        os.symlink(b"63", tree + b"/1024")
        with open(tree + b"/55", "ab") as file:
            file.write(b"more")
        with open(tree + b"/new", "wb") as file:
            file.write(b"x")
        os.rename(tree + b"/new", tree + b"/56")
        found = by_name(listing, hash_all(reader, root, [(b"", listing)])[0])
    assert {name: found[name][0] for name in (b"64", b"65", b"1024", b"55", b"56", b"63")} == {
        b"64": ContentOutcome.VANISHED,
        b"65": ContentOutcome.VANISHED,
        b"1024": ContentOutcome.VANISHED,
        b"55": ContentOutcome.UNSTABLE,
        b"56": ContentOutcome.UNSTABLE,
        b"63": ContentOutcome.HASHED,
    }


def test_a_directory_that_is_gone_answers_for_each_of_its_files(reader, tree):
    with open(tree + b"/directory/file", "wb") as file:
        file.write(b"x")
    with opened(tree) as root:
        listing = reader.list_directory(root, b"directory", False)
        os.rename(tree + b"/directory", tree + b"/moved")
        os.symlink(b"moved", tree + b"/directory")  # a symlink in its place must not be followed
        answer = hash_all(reader, root, [(b"directory", listing)])[0]
    assert answer.outcomes == bytes([ContentOutcome.VANISHED.value])
    assert len(answer.problems) == 4


def test_files_over_the_limit_are_not_read(reader, tree):
    os.truncate(tree + b"/0", 1 << 42)  # sparse: reading it would take an hour
    with opened(tree) as root:
        listing = reader.list_directory(root, b"", False)
        found = by_name(listing, hash_all(reader, root, [(b"", listing)], max_content_bytes=1 << 20)[0])
    assert found[b"0"][0] is found[b"3000001"][0] is ContentOutcome.TOO_LARGE
    assert found[b"1048576"][0] is ContentOutcome.HASHED


def test_a_cancelled_queue_lets_its_threads_go_in_mid_file(reader, tree):
    os.truncate(tree + b"/0", 1 << 42)
    with opened(tree) as root:
        listing = reader.list_directory(root, b"", False)
        queue = reader.new_queue("sha256")
        worker = threading.Thread(target=queue.run)
        worker.start()
        queue.add(0, root, b"", listing[0], listing[1], b"\3" * (len(listing[1]) // 64), False)
        deadline = time.monotonic() + 10
        while queue.counts()[0] < 2 and time.monotonic() < deadline:  # two small files sort before the huge one
            time.sleep(0.001)
        queue.cancel()
        worker.join(10)
        assert not worker.is_alive()
        queue.take(60)  # does not wait for what will never come


def test_a_share_of_processor_time_is_kept(reader, tree):
    os.truncate(tree + b"/0", 150 * 1024 * 1024)
    with opened(tree) as root:
        listing = reader.list_directory(root, b"", False)
        cpu, wall = time.process_time(), time.monotonic()
        hash_all(reader, root, [(b"", listing)], share=0.3)
        assert time.process_time() - cpu < 0.3 * (time.monotonic() - wall) + 0.1


def test_an_unknown_algorithm_is_refused(reader):
    with pytest.raises(ValueError, match="'md5'"):
        reader.new_queue("md5")


def test_what_does_not_fit_together_is_refused(reader):
    queue = reader.new_queue("sha256")
    for names, states, wishes in [(b"a\0b", bytes(64), b"\3"), (b"a", bytes(63), b"\3"), (b"a", bytes(64), b"\3\3")]:
        with pytest.raises(ValueError, match="do not fit together"):
            queue.add(0, 0, b"", names, states, wishes, False)


def test_entries_with_extended_attributes_are_marked(reader, tree):
    os.setxattr(tree + b"/64", "user.x", b"")
    os.setxattr(tree + b"/directory", "user.x", b"1")
    with opened(tree) as root:
        names = reader.list_directory(root, b"", False)[0]
        marks = reader.mark_xattrs(root, b"", names, False)
        with pytest.raises(FileNotFoundError):
            reader.mark_xattrs(root, b"nothing", names, False)
    assert [name for name, mark in zip(names.split(b"\0"), marks, strict=True) if mark] == [b"64", b"directory"]
