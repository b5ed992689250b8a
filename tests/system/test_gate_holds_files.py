"""What the gate lets open and execute, what it remembers, and whom it never asks; on private mounts."""

import mmap
import os
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from keibi.agent.gate.judging import DENY, EXEC, OPEN, SOFTWARE
from keibi.agent.gate.private import PrivateGate
from tests.system.gate_judges import BAD, SETTLED_SECONDS, ContentJudge, content_of, settled, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.timeout(60),
]
OTHER_USER = 65534


@pytest.fixture
def judge(judges) -> Iterator[ContentJudge]:
    with ContentJudge(judges) as judge:
        yield judge


@pytest.fixture
def gate(judge, judges, place) -> Iterator[PrivateGate]:
    with PrivateGate(place, judges, settled_seconds=SETTLED_SECONDS) as gate:
        yield gate


def read_times(path: str, count: int) -> int:
    for _ in range(count):
        content_of(path)
    return count


def events_count(gate: PrivateGate) -> float:
    """Return how many events the decider has read by now."""
    before = gate.refresh()
    state = gate.wait_for(lambda state: state is not before, 5, "a fresh state")
    return dict(state["metrics"])["events_count"]


def test_a_bad_file_is_neither_opened_nor_executed_and_a_good_one_is(gate, judge):
    good = gate.write("good.sh", b"#!/bin/sh\necho good\n", mode=0o755)
    bad = gate.write("bad.sh", b"#!/bin/sh\necho " + BAD + b"\n", mode=0o755)

    assert gate.run([good]).stdout == b"good\n"
    assert gate.run([bad]).returncode == 126
    assert gate.run(["cat", bad]).returncode == 1
    assert gate.enter(lambda: content_of(good)).startswith("#!")
    with pytest.raises(PermissionError):
        gate.enter(lambda: content_of(bad))

    held = [asked.question for asked in judge.asked if asked.question.is_held]
    assert {question.event for question in held} == {EXEC, OPEN}
    assert all(question.is_proof and question.id for question in held)


def test_no_file_outside_the_private_mount_is_held(gate, judge, tmp_path):
    outside = tmp_path / "outside.sh"
    outside.write_bytes(b"#!/bin/sh\necho " + BAD + b"\n")
    outside.chmod(0o755)

    assert gate.run([str(outside)]).returncode == 0
    assert subprocess.run([str(outside)], check=False, capture_output=True).returncode == 0
    assert not judge.asked


def test_what_root_owns_is_asked_once_and_then_costs_no_event(gate, judge):
    path = settled(gate, gate.write("settled.txt", b"known"))

    gate.enter(lambda: read_times(path, 50))
    before = events_count(gate)
    gate.enter(lambda: read_times(path, 1000))
    during = events_count(gate) - before

    assert judge.count(path) == 1
    # The canary and whatever else the loop sees; not a thousand openings.
    assert during < 100


def test_a_file_of_another_user_is_remembered_but_the_kernel_keeps_asking(gate, judge):
    path = gate.write("theirs.txt", b"known")
    os.chown(gate.outside(path), OTHER_USER, OTHER_USER)
    settled(gate, path)

    gate.enter(lambda: read_times(path, 10))
    before = events_count(gate)
    gate.enter(lambda: read_times(path, 300))

    assert judge.count(path) == 1
    assert events_count(gate) - before >= 300


def test_a_verdict_holds_only_for_the_file_as_it_was(gate, judge):
    path = settled(gate, gate.write("changing.txt", b"harmless"))
    gate.enter(lambda: read_times(path, 3))
    assert judge.count(path) == 1

    # The kernel's own mark is cleared by the write, without this group being subscribed to writes.
    gate.enter(lambda: append(path, BAD))

    with pytest.raises(PermissionError):
        gate.enter(lambda: content_of(path))


def append(path: str, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def test_a_file_that_changed_a_moment_ago_is_asked_about_again(judge, judges, place):
    with PrivateGate(place, judges, settled_seconds=30) as gate:
        path = gate.write("fresh.txt", b"fresh")
        gate.enter(lambda: read_times(path, 3))
        assert judge.count(path) == 3


def test_a_file_that_somebody_has_open_for_writing_is_asked_about_each_time(gate, judge):
    path = settled(gate, gate.write("open.txt", b"open"))
    with open(gate.outside(path), "r+b"):
        gate.enter(lambda: read_times(path, 3))
    assert judge.count(path) >= 3


def store(path: str, data: bytes) -> None:
    """Write through a shared mapping, so that neither write() nor MODIFY is involved."""
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, 4096) as memory:
        memory[: len(data)] = data
    os.close(descriptor)


def test_a_store_through_a_mapping_is_judged_at_the_next_opening_of_another_users_file(gate, judge):
    path = gate.write("mapped.txt", b"harmless" + bytes(4096))
    os.chown(gate.outside(path), OTHER_USER, OTHER_USER)
    os.chmod(gate.outside(path), 0o666)
    settled(gate, path)
    gate.enter(lambda: read_times(path, 3))

    gate.enter(lambda: store(path, BAD))

    with pytest.raises(PermissionError):
        gate.enter(lambda: content_of(path))


def test_a_mapping_that_stays_open_is_no_way_round_memory(gate, judge):
    path = gate.write("kept.txt", b"harmless" + bytes(4096))
    os.chown(gate.outside(path), OTHER_USER, OTHER_USER)
    settled(gate, path)
    gate.enter(lambda: read_times(path, 3))

    descriptor = os.open(gate.outside(path), os.O_RDWR)
    try:
        with mmap.mmap(descriptor, 4096) as memory:
            assert memory[:8] == b"harmless"  # the page is mapped before the store, which then changes no times on tmpfs
            memory[: len(BAD)] = BAD
            with pytest.raises(PermissionError):
                gate.enter(lambda: content_of(path))
    finally:
        os.close(descriptor)


def test_a_store_does_not_clear_the_kernels_mark_but_the_end_of_the_writer_does(gate, judge):
    """The hole that is left is root's alone: while root keeps the mapping, the kernel lets the file pass unasked."""
    path = settled(gate, gate.write("roots.txt", b"harmless" + bytes(4096)))
    gate.enter(lambda: read_times(path, 3))
    assert judge.count(path) == 1

    descriptor = os.open(gate.outside(path), os.O_RDWR)
    with mmap.mmap(descriptor, 4096) as memory:
        memory[: len(BAD)] = BAD
        gate.enter(lambda: read_times(path, 3))
        assert judge.count(path) == 1, "a store cleared the mark: the rules for marks may be relaxed on this kernel"
    os.close(descriptor)

    wait_until(lambda: is_refused(gate, path), 5, "the mark is taken off when the writer closes")


def is_refused(gate: PrivateGate, path: str) -> bool:
    try:
        gate.enter(lambda: content_of(path))
    except PermissionError:
        return True
    return False


def test_a_file_in_a_directory_that_others_may_write_gets_no_mark(gate, judge):
    path = gate.write("shared/x.txt", b"known")
    os.chmod(os.path.dirname(gate.outside(path)), 0o777)
    settled(gate, path)
    gate.enter(lambda: read_times(path, 3))
    before = events_count(gate)
    gate.enter(lambda: read_times(path, 200))
    assert events_count(gate) - before >= 200
    assert judge.count(path) == 1


def test_denials_are_given_from_memory_and_told(gate, judge):
    path = settled(gate, gate.write("bad.txt", BAD))

    refusals = [is_refused(gate, path) for _ in range(5)]

    assert all(refusals)
    assert judge.count(path) == 1
    wait_until(lambda: judge.told_count("repeated") == 4, 5, "four repeats are told")
    repeat = next(told for told in judge.told if told.what == "repeated")
    assert repeat.path == os.fsencode(path)
    assert not repeat.was_allowed


def test_other_terms_and_the_judges_wish_make_it_forget(gate, judge):
    path = settled(gate, gate.write("known.txt", b"known"))
    gate.enter(lambda: read_times(path, 3))
    judge.server.forget()
    wait_until(lambda: gate.enter(lambda: read_times(path, 1)) and judge.count(path) == 2, 5, "asked after forget()")

    status = os.stat(gate.outside(path))
    judge.server.forget([(status.st_dev, status.st_ino)])
    wait_until(lambda: gate.enter(lambda: read_times(path, 1)) and judge.count(path) == 3, 5, "asked after forget(files)")

    judge.wish()
    wait_until(lambda: gate.enter(lambda: read_times(path, 1)) and judge.count(path) == 4, 5, "asked after other terms")


def test_the_same_file_asked_by_many_at_once_is_one_question(gate, judge):
    path = settled(gate, gate.write("popular.txt", b"popular"))
    judge.hold()
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda: outcomes.append(gate.run(["cat", path]).stdout.decode())) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: judge.count(path) == 1, 5, "one question")
    judge.release()
    for thread in threads:
        thread.join(20)

    assert outcomes == ["popular"] * 8
    # Who came after the answer was let pass by memory.
    assert judge.count(path) == 1


def test_other_files_are_answered_while_one_waits(gate, judge):
    known = settled(gate, gate.write("known.txt", b"known"))
    unknown = settled(gate, gate.write("unknown.txt", b"unknown"))
    gate.enter(lambda: read_times(known, 1))
    judge.hold()
    waiting = threading.Thread(target=lambda: gate.run(["cat", unknown]))
    waiting.start()
    wait_until(lambda: judge.count(unknown) == 1, 5, "the unknown one is asked about")

    started_at = time.monotonic()
    gate.enter(lambda: read_times(known, 100))
    took = time.monotonic() - started_at

    judge.release()
    waiting.join(20)
    assert took < 1.0


def test_the_judges_own_openings_raise_no_question(gate, judge):
    """A judge that opens the file by itself would wait for its own verdict."""
    path = gate.write("reopened.txt", b"reopened")
    judge.also = lambda asked: content_of(gate.outside(path))

    assert gate.enter(lambda: content_of(path)) == "reopened"


def test_a_declared_helper_of_the_judge_is_not_asked_about(gate, judge):
    path = gate.write("bad.txt", BAD)
    helper = subprocess.Popen(
        ["nsenter", f"--mount=/proc/{gate.pid}/ns/mnt", "--", "sh", "-c", f"read go; exec cat {path}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    judge.server.set_own([helper.pid])
    wait_until(lambda: helper.pid in judge.server._own, 5)
    wait_until(lambda: is_refused(gate, path), 5)
    out, _ = helper.communicate(b"\n", timeout=10)
    assert out == BAD


def test_the_agents_directory_is_excluded_for_opening_only(judges, place, judge):
    state = os.path.join(place, "state")
    with PrivateGate(place, judges, excluded=(state,)) as gate:
        path = gate.write("state/bad.sh", b"#!/bin/sh\n#" + BAD, mode=0o755)
        near = gate.write("state-not/bad.txt", BAD)
        assert gate.enter(lambda: content_of(path))
        assert gate.run([path]).returncode == 126
        assert is_refused(gate, near)
        assert judge.count(path, OPEN) == 0


def test_exclusions_of_a_judge_end_where_another_name_begins(gate, judge, place):
    judge.wish(excluded=(f"{place}/quiet",))
    path = settled(gate, gate.write("quiet/bad.txt", BAD))
    wait_until(lambda: not is_refused(gate, path), 5, "excluded")
    os.link(gate.outside(path), gate.outside(os.path.join(place, "loud.txt")))
    assert is_refused(gate, os.path.join(place, "loud.txt"))


def test_terms_for_software_ask_about_programs_and_scripts_only(gate, judge):
    judge.wish(files=SOFTWARE, suffixes=(".py",))
    cases = {
        "data.txt": (b"plain data", 0o644, False),
        "script": (b"#!/bin/sh\n", 0o644, True),
        "program": (b"\x7fELF....", 0o644, True),
        "module.py": (b"print()", 0o644, True),
        "executable": (b"whatever", 0o755, True),
    }
    wait_until(lambda: gate.refresh()["judges"]["anti_malware"] == 2, 5)
    for name, (content, mode, is_asked) in cases.items():
        path = gate.write(name, content, mode=mode)
        gate.enter(lambda path=path: content_of(path))
        assert bool(judge.count(path, OPEN)) is is_asked, name


def test_two_judges_are_both_asked_and_one_denial_is_enough(gate, judge, judges):
    with ContentJudge(judges, "application_control") as other:
        wait_until(lambda: gate.refresh()["judges"].get("application_control") == 1, 5)
        wait_until(lambda: bool(other.states and other.states[0].is_enforcing), 5)
        path = gate.write("x.txt", b"fine")
        gate.enter(lambda: content_of(path))
        assert judge.count(path) == other.count(path) == 1
        other.deny_all = True
        assert is_refused(gate, gate.write("y.txt", b"fine"))


def test_a_pipe_and_an_empty_file_on_the_mount_hold_nobody_up(gate, judge, place):
    fifo = os.path.join(place, "fifo")

    def talk() -> str:
        os.mkfifo(fifo)
        writer = os.open(fifo, os.O_RDWR)
        os.write(writer, b"through")
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        return os.read(reader, 100).decode()

    assert gate.enter(talk) == "through"
    assert gate.enter(lambda: content_of(gate.write("empty", b""))) == ""
    # A reader that waits for a writer waits in the kernel, not in the decider.
    reader = subprocess.Popen(["nsenter", f"--mount=/proc/{gate.pid}/ns/mnt", "--", "cat", fifo], stdout=subprocess.PIPE)
    assert gate.enter(lambda: content_of(gate.write("next", b"next"))) == "next"
    reader.kill()
    reader.communicate()


def test_answers_by_the_terms_when_the_verdict_is_late(gate, judge):
    judge.wish(deadline_milliseconds=150, on_timeout=DENY)
    wait_until(lambda: gate.refresh()["judges"]["anti_malware"] == 2, 5)
    path = settled(gate, gate.write("slow.txt", b"slow"))
    judge.hold()
    started_at = time.monotonic()

    assert is_refused(gate, path)
    assert 0.1 < time.monotonic() - started_at < 2

    wait_until(lambda: judge.count(path) == 1, 5)
    judge.release()
    wait_until(lambda: judge.told_count("overdue") == 1, 5, "told overdue")
    late = next(told for told in judge.told if told.what == "overdue")
    assert (late.path, late.was_allowed, late.question_id) == (os.fsencode(path), False, judge.asked[-1].question.id)
    # The late verdict is remembered: a large file is asked about once.
    wait_until(lambda: not is_refused(gate, path), 5, "the late verdict counts")
    assert judge.count(path) <= 2


def test_memory_is_locked_and_the_decider_comes_first(gate):
    status = content_of(f"/proc/{gate.decider_pid}/status")
    locked = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmLck:")))
    assert locked > 1000
    assert os.getpriority(os.PRIO_PROCESS, gate.decider_pid) == -20
    try:
        gate.enter(lambda: append("/proc/self/oom_score_adj", b"-1000"))
    except PermissionError:
        pytest.skip("this computer does not let root protect a process from the out-of-memory killer")
    assert content_of(f"/proc/{gate.decider_pid}/oom_score_adj").strip() == "-1000"


def test_a_file_that_one_judge_denied_while_another_still_thinks_is_denied_to_the_next_as_well(judges, place, judge):
    with (
        ContentJudge(judges, "application_control", by_asker=True) as other,
        PrivateGate(place, judges, settled_seconds=SETTLED_SECONDS) as gate,
    ):
        path, pid = gate.write("bad", BAD), gate.decider_pid
        judge.hold()
        for _ in range(3):
            with pytest.raises(PermissionError):
                gate.enter(lambda: content_of(path))
        assert other.count(path, OPEN) == 3
        assert gate.decider_pid == pid
        assert gate.happenings == []
