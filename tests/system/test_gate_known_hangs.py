"""The situations in which other permission daemons hung or slowed down; on private mounts.

The numbers are issues of fapolicyd: 342 and 427 (the journal waits for a verdict while the judge waits for the journal), 113
(a dump of the daemon's own data hangs the computer), 237 (a slow disk), 305 (slower and slower until nothing moves).
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from keibi.agent.gate.judging import ALLOW, SOFTWARE
from keibi.agent.gate.private import PrivateGate
from tests.system.gate_judges import BAD, SETTLED_SECONDS, ContentJudge, content_of, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.timeout(90),
]
MOST_MEMORY_KIB = 25 * 1024
DEADLINE_MILLISECONDS = 300

JOURNAL = """
import os, sys
print("ready", flush=True)
while data := os.read(int(sys.argv[2]), 4096):
    with open(sys.argv[1], "ab") as file:  # rotated or not, this opening needs a verdict
        file.write(data)
"""


@pytest.fixture
def judge(judges) -> Iterator[ContentJudge]:
    with ContentJudge(judges) as judge:
        yield judge


@pytest.fixture
def gate(judge, judges, place) -> Iterator[PrivateGate]:
    with PrivateGate(place, judges, settled_seconds=SETTLED_SECONDS, options="size=256m,nr_inodes=400k") as gate:
        yield gate


def test_a_judge_that_logs_to_a_journal_that_waits_for_its_verdict_gets_out_by_the_deadline(gate, judge, place):
    """342, 427: the circle is judge, pipe of the journal, journal's own opening, judge."""
    journal_file = gate.write("journal/system.journal", b"first line\n")
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    journal = subprocess.Popen(
        ["nsenter", f"--mount=/proc/{gate.pid}/ns/mnt", "--", sys.executable, "-c", JOURNAL, journal_file, str(reader)],
        pass_fds=(reader,),
        stdout=subprocess.PIPE,
    )
    os.close(reader)
    try:
        assert journal.stdout is not None
        assert journal.stdout.readline() == b"ready\n"
        judge.wish(deadline_milliseconds=DEADLINE_MILLISECONDS, on_timeout=ALLOW)
        wait_until(lambda: gate.refresh()["judges"]["anti_malware"] == 2, 5)
        judge.also = lambda asked: log_to(writer)
        paths = [gate.write(f"file{number}", b"content") for number in range(12)]

        started_at = time.monotonic()
        assert gate.enter(lambda: [content_of(path) for path in paths], timeout_seconds=40) == ["content"] * 12
        took = time.monotonic() - started_at

        assert took < 12 * 2 * DEADLINE_MILLISECONDS / 1000 + 2
        assert dict(gate.refresh()["metrics"])["overdue_count"] > 0, "the circle was never closed, so this shows nothing"
        wait_until(lambda: os.path.getsize(gate.outside(journal_file)) > 20_000, 20, "the journal gets its lines")
        assert not gate.happenings
    finally:
        journal.kill()
        journal.communicate()
        judge.also = lambda asked: None
        judge.server.close()
        os.close(writer)


def log_to(journal: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(journal, b"x" * 3000)


def test_a_journal_in_an_excluded_directory_is_never_waited_for(judges, place, judge):
    directory = os.path.join(place, "journal")
    with PrivateGate(place, judges, excluded=(directory,)) as gate:
        path = gate.write("journal/system.journal", b"first line\n")
        judge.hold()
        started_at = time.monotonic()
        gate.enter(lambda: [append_line(path) for _ in range(200)] and None)
        assert time.monotonic() - started_at < 2
        assert judge.count(path) == 0


def append_line(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"line\n")


def test_the_writer_of_a_file_goes_on_while_the_reader_waits_for_the_verdict(gate, judge):
    path = gate.write("log.txt", b"line\n")
    writer = open(gate.outside(path), "ab", buffering=0)  # noqa: SIM115 -- as a daemon keeps its log open
    judge.hold()
    reader = threading.Thread(target=lambda: gate.run(["cat", path]))
    reader.start()
    wait_until(lambda: judge.count(path) == 1, 5, "held")
    started_at = time.monotonic()
    writer.writelines(b"line\n" for _ in range(1000))
    took = time.monotonic() - started_at
    judge.release()
    reader.join(20)
    writer.close()
    assert took < 1


def test_asking_how_the_gate_is_and_making_it_forget_under_load_hangs_nobody(gate, judge):
    """113: what reads the daemon's data shares no lock with what answers the kernel."""
    for number in range(100):
        gate.write(f"many/{number}", b"x")
    stop = threading.Event()

    def pester() -> None:
        while not stop.wait(0.002):
            judge.server.forget()
            gate.refresh()

    pest = threading.Thread(target=pester)
    pest.start()
    try:
        directory = os.path.join(gate.directory, "many")
        for _ in range(10):
            gate.enter(lambda: [content_of(f"{directory}/{number}") for number in range(100)] and None, timeout_seconds=10)
    finally:
        stop.set()
        pest.join()
    assert dict(gate.refresh()["metrics"])["overdue_count"] == 0


def test_files_on_a_slow_disk_hold_nobody_else_up(gate, judge):
    """237: a judge that reads a slow file, asynchronously as they must, while programs go on elsewhere."""
    slow_path = gate.write("slow/disk.img", b"slow")
    answered: list[float] = []

    def judge_slowly() -> None:
        # The judge's reading of one file takes as long as its disk does.
        gate.run(["cat", slow_path])
        answered.append(time.monotonic())

    quick = gate.write("quick.txt", b"quick")
    gate.enter(lambda: content_of(quick))
    judge.also = lambda asked: threading.Event().wait(0.5) if asked.question.path == os.fsencode(slow_path) else None
    waiting = threading.Thread(target=judge_slowly)
    waiting.start()
    wait_until(lambda: judge.count(slow_path) == 1, 5)
    outcomes = [gate.run(["true"]).returncode for _ in range(5)]
    finished_at = time.monotonic()
    waiting.join(20)
    assert outcomes == [0] * 5
    assert answered[0] > finished_at - 0.5


def test_find_and_cat_over_thousands_of_fresh_files_is_not_stalled_and_memory_stays_small(gate, judge):
    """305, and the classic: every file is asked about, memory turns over twice, and the last thousand go as fast as the first."""
    judge.wish(files=SOFTWARE)
    wait_until(lambda: gate.refresh()["judges"]["anti_malware"] == 2, 5)
    directory = os.path.join(gate.directory, "many")
    os.makedirs(gate.outside(directory))
    for number in range(5000):
        with open(gate.outside(f"{directory}/{number}"), "wb") as file:
            file.write(b"#!/bin/sh\n%d" % number)

    started_at = time.monotonic()
    done = gate.run(["find", directory, "-type", "f", "-exec", "cat", "{}", "+"], timeout_seconds=60)
    took = time.monotonic() - started_at
    assert done.returncode == 0
    assert done.stdout.count(b"#!/bin/sh") == 5000
    assert took < 20
    assert sum(1 for asked in judge.asked if asked.question.is_held) >= 5000

    def laps() -> list[float]:
        times = []
        for lap in range(8):
            names = [f"{directory}/plain-{lap}-{number}" for number in range(5000)]
            for name in names:
                with open(name, "wb") as file:
                    file.write(b"plain")
            lap_started_at = time.monotonic()
            for name in names:
                os.close(os.open(name, os.O_RDONLY))
            times.append(time.monotonic() - lap_started_at)
        return times

    times = gate.enter(laps, timeout_seconds=60)
    assert min(times[-3:]) < 3 * max(times[:3])
    assert dict(gate.refresh()["metrics"])["overdue_count"] == 0
    assert proportional_kib(gate.pid) + proportional_kib(gate.decider_pid) < MOST_MEMORY_KIB


def proportional_kib(pid: int) -> int:
    """Return the memory of a process with what it shares counted in part (PSS)."""
    for line in content_of(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")


def test_bad_files_among_thousands_are_refused_and_only_they(gate, judge):
    for number in range(300):
        gate.write(f"many/{number}", BAD if number % 100 == 0 else b"fine")
    done = gate.run(["find", f"{gate.directory}/many", "-type", "f", "-exec", "cat", "{}", ";"], timeout_seconds=40)
    assert done.stdout == b"fine" * 297
    assert done.stderr.count(b"not permitted") == 3
