"""The ransomware watch with a real kernel: inert imitators are found in time, and programs that do honest work are not.

The imitators write random bytes over files that the test made itself; nothing of them is harmful elsewhere.
"""

import array
import ctypes
import fcntl
import os
import pathlib
import select
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from keibi.agent.gate.judging import FileKey
from keibi.agent.linux.accounts import AccountNames
from keibi.agent.modules.anti_malware.behaviour import Process, Ruin, Thresholds
from keibi.agent.modules.anti_malware.behaviour_processes import UNKNOWN, ProcessTree, lineage_of, started_ticks
from keibi.agent.modules.anti_malware.behaviour_samples import read_sample
from keibi.agent.modules.anti_malware.behaviour_watch import BehaviourWatch
from keibi.agent.modules.anti_malware.copies import Copies
from keibi.agent.modules.anti_malware.copies_recovery import Recovery, recover_files
from keibi.agent.process_book import ProcessBook

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TEXT = b"Nobody knows why the fox jumps over the lazy dog, and so it does every day.\n" * 60
FILES = 50
_EVENT = struct.Struct("=IBBHQii")
_CLOSE_WRITE, _ADD, _FILE_SYSTEM = 0x08, 0x1, 0x100


class Watcher:
    """Hears of closed writers on a file system of the test's own by notifications, as a gate that only watches."""

    def __init__(self, root: pathlib.Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.fanotify_init(0x1 | 0x2, os.O_RDONLY | os.O_LARGEFILE | os.O_NOATIME)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        mask = ctypes.c_uint64(_CLOSE_WRITE)
        done = libc.fanotify_mark(self._descriptor, _ADD | _FILE_SYSTEM, mask, -100, os.fsencode(root))
        assert done == 0, os.strerror(ctypes.get_errno())
        self._book = ProcessBook(AccountNames())
        own = frozenset({os.getpid()})
        self.watch = BehaviourWatch(Thresholds(12, 30), [os.fsencode(root)], lambda pid: lineage_of(self._book.chain(pid), own))
        self.suspicions = []
        self.written_count = self.written_before_suspicion = 0
        self.copies = None
        self.on_suspicion = lambda _: None
        self._end, self._end_write = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready = select.select([self._descriptor, self._end], [], [])[0]
            if self._descriptor in ready:
                self._take()
            elif self._end in ready:
                return

    def _take(self) -> None:
        data = os.read(self._descriptor, 65536)
        events = [_EVENT.unpack_from(data, offset) for offset in range(0, len(data), _EVENT.size)]
        for event in events:  # as the worker does when the gate asks: who that is, while it may still be there
            self._book.remember(event[6])
        for *_, descriptor, pid in events:
            if descriptor < 0:
                continue
            try:
                self.written_count += 1
                path = os.readlink(os.fsencode(f"/proc/self/fd/{descriptor}"))
                found = self.watch.written(pid, path, FileKey.of(os.fstat(descriptor)), descriptor, time.time())
                if found is None:
                    continue
                if found[1] is not None:
                    self.suspicions.append((found[1], time.monotonic()))
                    if len(self.suspicions) == 1:
                        self.written_before_suspicion = self.written_count
                        self.on_suspicion(found[1])
                elif self.copies is not None:
                    self.copies.keep(descriptor, path, found[0])
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Hear what is on its way, then end."""
        waiting = array.array("i", [1])
        ends = time.monotonic() + 10
        while waiting[0] and time.monotonic() < ends:
            fcntl.ioctl(self._descriptor, termios.FIONREAD, waiting)
            select.select([], [], [], 0.01)
        os.write(self._end_write, b"x")
        self._thread.join()
        for descriptor in (self._descriptor, self._end, self._end_write):
            os.close(descriptor)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "home").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "keibi-test", tmp_path / "home"], check=True)
    try:
        yield filled(tmp_path)
    finally:
        subprocess.run(["umount", "-l", tmp_path / "home"], check=True)


def filled(tmp_path):
    for folder in ("home/a", "home/b"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(FILES):
        suffix = ("txt", "csv", "md", "data")[number % 4]
        (tmp_path / "home" / "ab"[number % 2] / f"file{number}.{suffix}").write_bytes(b"%d\n" % number + TEXT)
    return tmp_path / "home"


def run_watched(files, command, *, copies=None, stops=False, seeds=True):
    watcher = Watcher(files)
    watcher.copies = copies
    stopped, ended = [], []

    def stop(suspicion):
        tree = ProcessTree(suspicion.process)
        stopped.extend(tree.kill())
        ended.append(time.monotonic())
        tree.close()

    if stops:
        watcher.on_suspicion = stop
    try:
        if seeds:
            for path in files.rglob("*"):
                if path.is_file():
                    descriptor = os.open(path, os.O_RDONLY)
                    status = os.fstat(descriptor)
                    sample = read_sample(descriptor, status.st_size)
                    watcher.watch.remember(status.st_dev, os.fsencode(path), sample)
                    if copies is not None:
                        copies.keep(descriptor, os.fsencode(path), sample)
                    os.close(descriptor)
        started = time.monotonic()
        done = subprocess.run(command, cwd=files, capture_output=True, check=False, timeout=60)
    finally:
        watcher.close()
    return watcher, done, started, stopped


IN_PLACE = """
import os, pathlib, time
for path in sorted(pathlib.Path('.').rglob('*.*')):
    size = path.stat().st_size
    with path.open('r+b') as file:
        file.write(os.urandom(size))
    time.sleep(0.005)
"""
RENAMES = """
import os, pathlib, time
for path in sorted(pathlib.Path('.').rglob('*.*')):
    (path.parent / (path.name + '.locked')).write_bytes(os.urandom(path.stat().st_size))
    path.unlink()
    time.sleep(0.005)
"""
CHILD = "exec 3>{}; head -c 4000 /dev/urandom >&3; exec 3>&-; sleep 0.02"
CHILDREN = "for f in */*.txt */*.csv */*.md; do head -c 4000 /dev/urandom > $f.locked; rm $f; done"


@pytest.mark.parametrize(
    ("command", "ways"),
    [
        ([sys.executable, "-c", IN_PLACE], {Ruin.CONTRADICTION, Ruin.TURNED}),
        ([sys.executable, "-c", RENAMES], {Ruin.REPLACED}),
        (["sh", "-c", CHILDREN], {Ruin.REPLACED}),
        (["find", ".", "-name", "*.txt", "-exec", "sh", "-c", CHILD, ";"], {Ruin.CONTRADICTION}),
    ],
)
def test_an_imitator_is_suspected_within_a_second_and_before_twenty_files(files, command, ways):
    watcher, done, started, _ = run_watched(files, command)
    assert done.returncode == 0, done.stderr
    (suspicion, at), *_ = watcher.suspicions
    assert watcher.written_before_suspicion < 20
    assert at - started < 1.5  # with the interpreter's start
    assert {one.ruin for one in suspicion.ruined} <= ways
    assert suspicion.process == UNKNOWN or os.path.samefile(suspicion.process.executable, shutil.which(command[0]))


def test_an_imitator_is_ended_with_its_children_and_what_it_ruined_comes_back(files, tmp_path):
    script = IN_PLACE + "\nwhile True: time.sleep(1)"
    command = ["sh", "-c", f'sleep 77 & "{sys.executable}" -c "$0"; sleep 88', script]
    before = {path: path.read_bytes() for path in files.rglob("*.*")}
    copies = Copies(str(tmp_path / "copies"), max_bytes=1 << 24)
    watcher, _, started, stopped = run_watched(files, ["timeout", "20", sys.executable, "-c", script], copies=copies, stops=True)
    assert command
    assert [one.error for one in stopped] == [""]
    assert time.monotonic() - started < 5
    suspicion = watcher.suspicions[0][0]
    ruined = watcher.watch.ruined_by(suspicion.process)
    damaged = {path for path, content in before.items() if path.read_bytes() != content}
    assert 12 <= len(damaged) < 25
    assert {os.fsencode(path) for path in damaged} == {one.path for one in ruined}
    recovered = recover_files(copies, ruined)
    assert {one.recovery for one in recovered} == {Recovery.RECOVERED}
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(files.rglob("*.ruined"))) == len(damaged)
    again = recover_files(copies, ruined)
    assert {one.recovery for one in again} == {Recovery.READABLE}
    copies.close()


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_a_tree_of_processes_is_ended_as_a_whole():
    shell = subprocess.Popen(["sh", "-c", "sleep 77 & (sleep 88; true) & wait"])
    try:
        ends = time.monotonic() + 5
        children, grandchildren = [], []
        while len(children) < 2 or not grandchildren:
            assert time.monotonic() < ends, (children, grandchildren)
            children = children_of(shell.pid)
            grandchildren = [one for child in children for one in children_of(child)]
        tree = ProcessTree(Process(shell.pid, started_ticks(shell.pid), b"/bin/sh"))
        held = {process.pid for process in tree.processes}
        assert {shell.pid, *children, *grandchildren} <= held
        outcomes = tree.kill()
        tree.close()
        assert [one.error for one in outcomes] == [""] * len(outcomes)
        assert len(outcomes) >= 4
        assert all(not started_ticks(pid) for pid in held)
    finally:
        shell.kill()
        shell.wait()


def test_neither_the_own_process_nor_the_first_nor_a_later_one_with_the_number_is_held():
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        for process in (
            Process(1, started_ticks(1)),
            Process(os.getpid(), 5),
            Process(sleeper.pid, started_ticks(sleeper.pid) + 1),
        ):
            tree = ProcessTree(process)
            assert list(tree.processes) == []
            assert tree.failed
            tree.close()
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


SQLITE = """
import sqlite3, os
for n in range(30):
    db = sqlite3.connect(f'a/base{n}.db'); db.execute('create table t (x blob)')
    db.executemany('insert into t values (?)', [(os.urandom(4000),) for _ in range(5)]); db.commit(); db.close()
"""
CACHE = "import os\nfor n in range(60): open(f'a/{n:064x}', 'wb').write(os.urandom(20000))"
LOG = "for n in range(30): open(f'a/log{n}.log', 'ab').write(b'line %d\\n' % n * 500)"
BROTLI_LIKE = "import os, pathlib\nfor p in list(pathlib.Path('.').rglob('*.*')): open(f'{p}.br', 'wb').write(os.urandom(3000))"
HONEST = {
    "tar": ["sh", "-c", "tar czf a/all.tar.gz b && mkdir a/out && tar xzf a/all.tar.gz -C a/out"],
    "gzip": ["sh", "-c", "gzip -r ."],
    "xz and bzip2": ["sh", "-c", "xz a/*; bzip2 b/*"],
    "copy": ["sh", "-c", "cp -a b a/copy && cp -a a/copy b/again"],
    "rsync": ["sh", "-c", "rsync -a b/ a/mirror/ && rsync -a --delete b/ a/mirror/"],
    "sqlite": [sys.executable, "-c", SQLITE],
    "git": [
        "sh", "-c",
        ("head -c 100000 /dev/urandom > a/x.bin; git init -q . && git add -A && git -c user.name=a -c user.email=b commit -qm c "
        "&& git gc -q && git checkout -q -- . && git clone -q . a/clone"),
    ],
    "dpkg": [
        "sh", "-c",
        ("mkdir -p a/p/DEBIAN a/p/usr/share/doc && cp b/* a/p/usr/share/doc && gzip -9 a/p/usr/share/doc/* && "
        "printf 'Package: x\\nVersion: 1\\nArchitecture: all\\nMaintainer: x\\nDescription: x\\n' > a/p/DEBIAN/control && "
        "dpkg-deb -b a/p a/x.deb && dpkg-deb -x a/x.deb b/unpacked"),
    ],
    "zip": ["sh", "-c", "zip -qr a/all.zip b && zip -qm b/moved.zip b/*.csv"],
    "encrypted backup beside": ["sh", "-c", "for f in */*; do openssl enc -aes-256-ctr -pass pass:x -in $f -out $f.enc; done"],
    "compressed beside": [sys.executable, "-c", BROTLI_LIKE],
    "random cache": [sys.executable, "-c", CACHE],
    "logs": [sys.executable, "-c", LOG],
    "editor": ["sh", "-c", "for f in */*; do sed -i s/fox/cat/ $f; done"],
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_work_is_not_suspected(files, name):
    command = HONEST[name]
    tool = {"rsync": "rsync", "zip": "zip", "git": "git", "dpkg": "dpkg-deb", "encrypted backup beside": "openssl"}.get(name)
    if tool is not None and shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    watcher, done, _, _ = run_watched(files, command)
    assert done.returncode == 0, done.stderr
    assert watcher.written_count > 0
    assert watcher.suspicions == []
