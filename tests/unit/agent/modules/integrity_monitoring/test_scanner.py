"""Scans of real directories against a real baseline, with the C part and without."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from keibi.agent.linux.file_queue import file_reader
from keibi.agent.linux.files import ContentOutcome, FileType, Wish, hash_prefix
from keibi.agent.modules.integrity_monitoring.baseline import Baseline, FileChange, VersionKind
from keibi.agent.modules.integrity_monitoring.file_pages import PAGE_ENTRIES
from keibi.agent.modules.integrity_monitoring.scan_plan import DirectoryDecision, ScanPlan, Trust, share_of
from keibi.agent.modules.integrity_monitoring.scanner import Scanner

READERS = {"native": file_reader(), "python": file_reader(allow_native=False)}
BOTH = Wish.STATE | Wish.CONTENT
ALL = DirectoryDecision()


def write(path, data=b"content"):
    with open(path, "wb") as file:
        file.write(data)


@pytest.fixture
def root(tmp_path):
    place = os.fsencode(tmp_path) + b"/tree"
    os.makedirs(place + b"/a/b/c")
    os.mkdir(place + b"/empty")
    for name in (b"one", b"two", b"a/three", b"a/b/four", b"a/b/c/\xff\n"):
        write(place + b"/" + name, b"content of " + name)
    os.symlink(b"one", place + b"/link")
    os.mkfifo(place + b"/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsdecode(place + b"/socket"))
    return place


class Scans:
    """A baseline and a way to scan against it."""

    def __init__(self, baseline, reader, root):
        self.baseline = baseline
        self.reader = reader
        self.root = root

    def scanner(self, decide=lambda directory: ALL, *, roots=None, **options):
        plan = ScanPlan(roots=roots or [self.root], decide=decide, **options)
        return Scanner(self.baseline, plan, reader=self.reader)

    def build(self, decide=lambda directory: ALL, **options):
        scanner = self.scanner(decide, **options)
        with self.baseline.transaction():
            version = self.baseline.begin_version(VersionKind.BUILD)
        summary = scanner.build(version)
        with self.baseline.transaction():
            self.baseline.finish_version(version)
        return summary

    def look(self, decide=lambda directory: ALL, **options):
        """Return {relative path: "created" | "updated" | "deleted"} and make what was found the baseline."""
        scanner = self.scanner(decide, **options)
        found = {}
        for difference in scanner.differences():
            with self.baseline.transaction():
                version = self.baseline.begin_version(VersionKind.SCAN)
                self.baseline.store_files(version, difference.changes)
            for change in difference.changes:
                assert change.path not in found
                found[os.path.relpath(change.path, self.root)] = (
                    "created" if change.before is None else "deleted" if change.after is None else "updated"
                )
        assert scanner.summary.is_complete
        self.summary = scanner.summary
        return found

    def paths(self):
        return {os.path.relpath(each.path, self.root) for each in self.baseline.files_under(b"/")}


@pytest.fixture(params=READERS)
def scans(request, tmp_path, root):
    baseline = Baseline.open(str(tmp_path / "baseline.db"))
    yield Scans(baseline, READERS[request.param], root)
    baseline.close()


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
def test_a_build_holds_every_entry_and_a_scan_after_it_finds_nothing(scans, root, algorithm):
    summary = scans.build(algorithm=algorithm)
    assert (summary.is_complete, summary.problem_count, summary.hashed_count, summary.directory_count) == (True, 0, 5, 5)
    everything = {os.path.relpath(os.path.join(top, name), root) for top, dirs, files in os.walk(root) for name in dirs + files}
    assert scans.paths() == everything | {b"."}
    for state in scans.baseline.files_under(b"/"):
        assert state.size == os.lstat(state.path).st_size
        if state.type is FileType.REGULAR:
            assert state.content_hash == hash_prefix(state.path, state.size, algorithm=algorithm)
    assert scans.baseline.file(root + b"/link").link_target == b"one"
    for trust in Trust:
        assert scans.look(trust=trust, algorithm=algorithm) == {}
    assert scans.baseline.versions()[0].entry_count == len(everything) + 1


def test_both_readers_build_the_same_baseline(root, tmp_path):
    os.setxattr(root + b"/one", "user.x", b"1")
    os.mkdir(root + b"/many")
    for number in range(PAGE_ENTRIES * 2 + 10):
        if number % 7:
            write(root + b"/many/%04d" % number, b"%d" % number)
        else:
            os.symlink(b"%d" % number, root + b"/many/%04d" % number)
    wish = BOTH | Wish.XATTRS
    contents = []
    for name, reader in READERS.items():
        baseline = Baseline.open(str(tmp_path / f"{name}.db"))
        Scans(baseline, reader, root).build(lambda directory: DirectoryDecision(files=wish, directories=wish))
        contents.append([page for directory in baseline.all_directories() for page in baseline.pages(directory)])
        assert baseline.file(root + b"/one").xattrs == {b"user.x": b"1"}
        assert baseline.file(root + b"/many/0007").link_target == b"7"
        baseline.close()
    assert contents[0] == contents[1]


def test_changes_of_every_kind_are_found_once(scans, root):
    scans.build()
    write(root + b"/one", b"other content")
    write(root + b"/a/b/new")
    os.unlink(root + b"/two")
    os.chmod(root + b"/a/three", 0o600)
    os.unlink(root + b"/link")
    os.symlink(b"two", root + b"/link")
    os.rename(root + b"/a/b/four", root + b"/a/b/five")
    assert scans.look() == {
        b".": "updated", b"one": "updated", b"a/b/new": "created", b"two": "deleted", b"a/three": "updated",
        b"link": "updated", b"a/b": "updated", b"a/b/four": "deleted", b"a/b/five": "created",
    }  # fmt: skip
    assert scans.baseline.file(root + b"/link").link_target == b"two"
    assert scans.look() == {}


def test_a_vanished_directory_takes_all_below_it_along(scans, root):
    scans.build()
    shutil.rmtree(root + b"/a")
    write(root + b"/a", b"a file now")
    found = scans.look()
    assert found.pop(b".") == "updated"
    assert found == {b"a": "updated"} | dict.fromkeys([b"a/three", b"a/b", b"a/b/four", b"a/b/c", b"a/b/c/\xff\n"], "deleted")
    assert scans.look() == {}


def test_a_vanished_root_is_deleted_whole_and_found_when_it_comes_back(scans, root):
    scans.build()
    os.rename(root, root + b"-away")
    assert set(scans.look().values()) == {"deleted"}
    assert scans.paths() == set()
    os.rename(root + b"-away", root)
    assert b"a/b/c/\xff\n" in scans.look()


def test_only_what_may_have_changed_is_read_again(scans, root):
    scans.build()
    write(root + b"/one", b"other content")
    os.chmod(root + b"/empty", 0o700)
    scans.look()
    assert scans.summary.hashed_count == 1


def tamper(scans, paths):
    """Make it look as if content changed behind lstat's back, as a write to the raw device would."""
    changes = []
    for path in paths:
        state = scans.baseline.file(path)
        fields = {name: getattr(state, name) for name in state.__slots__} | {"content_hash": bytes(32)}
        changes.append(FileChange(path, state, type(state)(**fields)))
    with scans.baseline.transaction():
        scans.baseline.store_files(scans.baseline.begin_version(VersionKind.SCAN), changes)


def test_content_that_changed_under_an_unchanged_lstat_is_found_by_a_full_scan(scans, root):
    scans.build()
    tamper(scans, [root + b"/one"])
    assert scans.look() == {}
    assert scans.look(trust=Trust.NOTHING) == {b"one": "updated"}
    assert scans.summary.hashed_count == 5


def test_the_shares_together_read_every_file_once(scans, root):
    scans.build()
    paths = [root + b"/" + name for name in (b"one", b"two", b"a/three", b"a/b/four", b"a/b/c/\xff\n")]
    tamper(scans, paths)
    hashed = 0
    for number in range(3):
        found = scans.look(trust=Trust.SHARE, share_count=3, share_number=number)
        assert found == {os.path.relpath(path, root): "updated" for path in paths if share_of(path, 3) == number}
        hashed += scans.summary.hashed_count
    assert hashed == 5


def test_directories_and_names_that_nobody_wants_are_left_alone(scans, root):
    def decide(directory):
        if directory == root + b"/a/b":
            return None
        if directory == root + b"/a":
            return DirectoryDecision(files=Wish.NOTHING)
        return DirectoryDecision(select=lambda name: BOTH if name == b"one" else Wish.NOTHING)

    scans.build(decide)
    assert scans.paths() == {b".", b"one", b"a", b"a/b", b"empty"}
    write(root + b"/two", b"other")
    write(root + b"/a/three", b"other")
    write(root + b"/a/b/four", b"other")
    assert scans.look(decide) == {}
    write(root + b"/one", b"other")
    assert scans.look(decide) == {b"one": "updated"}


def test_a_wish_that_is_new_is_fulfilled(scans, root):
    scans.build(lambda directory: DirectoryDecision(files=Wish.STATE))
    assert scans.baseline.file(root + b"/one").content is ContentOutcome.NOT_ASKED
    assert b"one" in scans.look()
    assert scans.baseline.file(root + b"/one").content is ContentOutcome.HASHED
    assert scans.look() == {}


def test_what_is_watched_no_longer_is_forgotten_without_a_change(scans, root):
    scans.build()

    def decide(directory):
        return None if directory == root + b"/a" else ALL

    with scans.baseline.transaction():
        assert scans.scanner(decide).forget_unwatched() == 3
    assert b"a/three" not in scans.paths()
    assert scans.look(decide) == {}


def test_roots_may_be_files_nested_absent_or_symlinks(scans, root, tmp_path):
    os.symlink(root + b"/a", root + b"/to-a")
    write(root + b"-file", b"x")
    roots = [root + b"/a", root + b"/a/b", root + b"-file", root + b"-none", root + b"/to-a"]
    summary = scans.build(roots=roots)
    assert summary.directory_count == 3 + 3  # a, b and c, each by its name and by the symlink
    assert scans.baseline.file(root + b"-file").content is ContentOutcome.HASHED
    assert scans.baseline.file(root + b"/to-a").type is FileType.SYMLINK
    assert scans.baseline.file(root + b"/to-a/b/four").content is ContentOutcome.HASHED
    assert scans.look(roots=roots) == {}
    write(root + b"-none")
    write(root + b"-file", b"y")
    assert set(scans.look(roots=roots).values()) == {"created", "updated"}


def test_followed_symlinks_end_even_in_loops(scans, root):
    os.mkdir(root + b"-outside")
    write(root + b"-outside/file")
    os.symlink(root + b"-outside", root + b"/a/out")
    os.symlink(b"..", root + b"/a/up")
    os.symlink(b"../a", root + b"/a/b/again")
    follow = DirectoryDecision(follow_links=True)
    summary = scans.build(lambda directory: follow)
    assert b"a/out/file" in scans.paths()
    assert any("not followed" in problem.problem for problem in summary.problems)
    assert scans.look(lambda directory: follow) == {}
    os.unlink(root + b"/a/out")
    assert scans.look(lambda directory: follow)[b"a/out/file"] == "deleted"


def test_pseudo_filesystems_are_not_entered_and_that_is_reported(scans):
    if os.lstat("/").st_dev == os.lstat("/proc").st_dev:
        pytest.skip("/proc is no mount here")

    def decide(directory):
        return DirectoryDecision(files=Wish.NOTHING) if directory in (b"/", b"/proc") else None

    for roots in ([b"/"], [b"/proc"]):
        summary = scans.build(decide, roots=roots)
        assert [problem.path for problem in summary.problems] == [b"/proc"]
        assert "proc is a pseudo filesystem" in summary.problems[0].problem
    assert (
        scans.look(
            lambda directory: DirectoryDecision(files=Wish.NOTHING, cross_filesystems=False) if directory == b"/" else None,
            roots=[b"/"],
        )
        is not None
    )
    assert scans.summary.problem_count == 0


def test_a_tree_too_deep_for_a_path_is_reported_and_not_forgotten(scans, root):
    place, name = os.open(root, os.O_RDONLY), b"d" * 250
    for _ in range(20):
        os.mkdir(name, dir_fd=place)
        below = os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    summary = scans.build()
    assert summary.is_complete
    assert summary.problem_count >= 1
    assert "too long" in summary.problems[0].problem
    assert scans.look() == {}
    shutil.rmtree(root)  # pytest could not


def test_a_directory_of_many_pages_is_scanned_like_any_other(scans, root):
    count = PAGE_ENTRIES * 4 + 3
    for number in range(count):
        write(root + b"/empty/%06d" % number, b"%d" % number)
    scans.build()
    assert scans.look() == {}
    os.unlink(root + b"/empty/000300")
    write(root + b"/empty/000600", b"x")
    write(root + b"/empty/000600x", b"x")
    found = scans.look()
    assert found == {b"empty": "updated", b"empty/000300": "deleted", b"empty/000600": "updated", b"empty/000600x": "created"}
    assert scans.look(trust=Trust.NOTHING) == {}


WRITER = """
import sys
with open(sys.argv[1], "ab", buffering=0) as file:
    file.write(b"x")
    print("writing", flush=True)
    while True:
        file.write(b"x")
"""


def test_a_file_that_never_holds_still_is_reported_and_tried_again(scans, root):
    write(root + b"/busy", bytes(16 * 1024 * 1024))
    # A process of its own: the pace counts this one's processor time, and a busy writer here would leave the scan none.
    with subprocess.Popen([sys.executable, "-c", WRITER, root + b"/busy"], stdout=subprocess.PIPE) as writer:
        try:
            writer.stdout.readline()
            summary = scans.build()
        finally:
            writer.kill()
    assert summary.is_complete
    assert summary.unstable_count == 1
    assert [problem.path for problem in summary.problems] == [root + b"/busy"]
    scans.look()
    assert scans.baseline.file(root + b"/busy").content is ContentOutcome.HASHED


def test_a_scan_can_be_cancelled_and_shows_progress(scans, root):
    os.truncate(root + b"/one", 1 << 40)
    seen = []
    is_over = threading.Timer(1.2, seen.append, ["over"])
    is_over.start()
    started = time.monotonic()
    summary = scans.build(is_cancelled=lambda: "over" in seen, on_progress=seen.append, cpu_percent=100)
    is_over.join()
    assert not summary.is_complete
    assert time.monotonic() - started < 10
    assert any(progress.directory_count == 5 for progress in seen if progress != "over")


def test_a_scan_that_its_reader_leaves_ends_its_threads(scans, root):
    before = threading.active_count()
    differences = scans.scanner().differences()
    next(differences)
    differences.close()
    assert threading.active_count() == before


UNPRIVILEGED = """
import os, sys
from keibi.agent.modules.integrity_monitoring.baseline import Baseline, VersionKind
from keibi.agent.modules.integrity_monitoring.scan_plan import DirectoryDecision, ScanPlan
from keibi.agent.modules.integrity_monitoring.scanner import Scanner
os.setgid(65534)
os.setuid(65534)
baseline = Baseline.open(sys.argv[1] + "/own/baseline.db")
decision = DirectoryDecision()
plan = ScanPlan(roots=[os.fsencode(sys.argv[1]) + b"/tree"], decide=lambda directory: decision)
scanner = Scanner(baseline, plan)
with baseline.transaction():
    version = baseline.begin_version(VersionKind.BUILD)
scanner.build(version)
for problem in scanner.summary.problems:
    print(os.path.basename(problem.path).decode(), problem.problem)
print(scanner.summary.is_complete, len(list(Scanner(baseline, plan).differences())))
"""


def test_what_may_not_be_read_is_reported_and_the_rest_is_scanned(tmp_path, root):
    if os.getuid() != 0:
        pytest.skip("needs root, to give it up")
    os.chmod(root + b"/one", 0o600)
    os.chmod(root + b"/a", 0o700)
    os.mkdir(tmp_path / "own")
    os.chown(tmp_path / "own", 65534, 65534)
    for parent in [tmp_path, *tmp_path.parents]:
        if os.stat(parent).st_uid == 0 and not os.stat(parent).st_mode & 0o001 and str(parent).startswith("/tmp/pytest-of"):
            os.chmod(parent, 0o711)
    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert sorted(done.stdout.splitlines()) == [
        "True 0",
        "a cannot be listed: Permission denied",
        "one content: Permission denied",
    ], done.stderr
