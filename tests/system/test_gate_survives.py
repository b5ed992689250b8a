"""What happens when judges, decider or warden hang, die or are overrun while files are being opened; on private mounts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from keibi.agent.gate.judging import ALLOW, DENY, EXEC, OPEN
from keibi.agent.gate.private import PrivateGate
from tests.system.gate_judges import BAD, SETTLED_SECONDS, ContentJudge, content_of, settled, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.timeout(90),
]
HERE = os.path.dirname(__file__)


@contextlib.contextmanager
def judge_process(judges: str, module: str = "anti_malware", **terms: object) -> Iterator[subprocess.Popen[str]]:
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.system.gate_judge_program", judges, module, json.dumps(terms)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(os.path.dirname(HERE)),
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        yield program
    finally:
        program.kill()
        program.communicate()


class Load:
    """Openings from a process of its own while something happens."""

    def __init__(self, gate: PrivateGate, directory: str, seconds: float) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            [
                *("nsenter", f"--mount=/proc/{gate.pid}/ns/mnt", "--"),
                *(sys.executable, os.path.join(HERE, "gate_load_program.py"), directory, str(seconds)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def outcome(self) -> dict[str, float]:
        """Return what it met; the watchdog of these tests: it is killed when it hangs."""
        try:
            out, _ = self._process.communicate(timeout=self._seconds + 20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        return json.loads(out)


def many_files(gate: PrivateGate, count: int = 200) -> str:
    for number in range(count):
        gate.write(f"many/{number}", b"%d" % number + (BAD if number % 10 == 0 else b""))
    return os.path.join(gate.directory, "many")


def test_a_judge_that_hangs_costs_the_deadline_once_for_each_file(judges, place):
    with (
        ContentJudge(judges, deadline_milliseconds=100) as judge,
        PrivateGate(place, judges, settled_seconds=SETTLED_SECONDS) as gate,
    ):
        path = gate.write("x.txt", b"x")
        judge.hold()
        started_at = time.monotonic()
        assert gate.enter(lambda: content_of(path)) == "x"
        assert 0.08 < time.monotonic() - started_at < 1.5
        assert dict(gate.wait_for(lambda state: dict(state["metrics"])["overdue_count"] >= 1, 5, "counted")["metrics"])


@pytest.mark.parametrize(("on_timeout", "is_refused"), [(ALLOW, False), (DENY, True)])
def test_a_judge_that_dies_leaves_its_terms(judges, place, on_timeout, is_refused):
    with judge_process(judges, on_timeout=on_timeout) as judge, PrivateGate(place, judges) as gate:
        path = gate.write("x.txt", b"x")
        assert gate.enter(lambda: content_of(path)) == "x"
        judge.kill()
        judge.wait()
        outcome = gate.run(["cat", path], timeout_seconds=5)
        assert (outcome.returncode != 0) is is_refused


def test_a_judge_killed_under_load_and_started_again_is_asked_again(judges, place):
    with PrivateGate(place, judges, settled_seconds=SETTLED_SECONDS) as gate:
        directory = many_files(gate)
        with judge_process(judges, deadline_milliseconds=500) as first:
            gate.wait_for(lambda state: state["is_enforcing"], 10, "enforcing")
            load = Load(gate, directory, 2.0)
            time_to_kill = threading.Timer(0.5, first.kill)
            time_to_kill.start()
            first.wait(5)
        with judge_process(judges, deadline_milliseconds=500):
            outcome = load.outcome()
            assert outcome["max_seconds"] < 1.5
            assert outcome["denied"] > 0
            bad = os.path.join(directory, "0")
            wait_until(lambda: gate.run(["cat", bad]).returncode == 1, 5, "denied by the second judge")


def test_a_decider_killed_under_load_lets_everybody_go_and_comes_back(judges, place):
    with ContentJudge(judges) as judge, PrivateGate(place, judges, settled_seconds=SETTLED_SECONDS) as gate:
        directory = many_files(gate)
        judge.also = lambda asked: threading.Event().wait(0.005)
        load = Load(gate, directory, 2.0)
        first = gate.decider_pid
        wait_until(lambda: len(judge.asked) > 20, 5, "under load")
        os.kill(first, signal.SIGKILL)
        outcome = load.outcome()

        assert outcome["max_seconds"] < 1.0
        assert outcome["failed"] == 0
        gate.wait_for(lambda state: state["pid"] != first and state["is_enforcing"], 10, "a second decider")
        assert gate.happenings[0]["what"] == "closed"
        assert gate.happenings[0]["reason"] == "it was ended by signal 9"
        assert gate.happenings[1]["what"] == "restarted"
        assert "signal 9" in gate.state["reason"] or gate.state["is_enforcing"]
        assert dict(gate.state["metrics"])["restarts_count"] == 1
        assert gate.run(["cat", os.path.join(directory, "0")]).returncode == 1


def test_a_decider_that_is_stopped_is_closed_within_a_second(judges, place):
    with ContentJudge(judges), PrivateGate(place, judges) as gate:
        path = gate.write("x.txt", b"x")
        first = gate.decider_pid
        os.kill(first, signal.SIGSTOP)
        stopped_at = time.monotonic()
        opened = gate.run(["cat", path], timeout_seconds=10)
        took = time.monotonic() - stopped_at

        assert opened.stdout == b"x"
        assert took < 1.5  # one second, and what it takes to start two programs on a busy machine
        gate.wait_for(lambda state: state["pid"] != first and state["is_enforcing"], 10, "a second decider")
        assert "did not answer" in gate.happenings[0]["reason"]
        assert gate.run(["cat", gate.write("bad.txt", BAD)]).returncode == 1


def test_the_decider_ends_with_the_warden_and_nobody_is_held(judges, place):
    with ContentJudge(judges) as judge, PrivateGate(place, judges) as gate:
        path = gate.write("x.txt", b"x")
        keeper = subprocess.Popen(
            ["nsenter", f"--mount=/proc/{gate.pid}/ns/mnt", "--", "sh", "-c", f"read go; cat {path}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        judge.hold()
        decider = gate.decider_pid
        assert keeper.stdin is not None
        keeper.stdin.write(b"\n")
        keeper.stdin.flush()
        wait_until(lambda: judge.count(path) >= 1, 5, "held")
        os.kill(gate.pid, signal.SIGKILL)
        out, _ = keeper.communicate(timeout=5)

        assert out == b"x"
        wait_until(lambda: not os.path.exists(f"/proc/{decider}") or "Z" in content_of(f"/proc/{decider}/stat"), 5, "ended")


def test_other_terms_under_load_lose_nobody(judges, place):
    with ContentJudge(judges) as judge, PrivateGate(place, judges, settled_seconds=SETTLED_SECONDS) as gate:
        directory = many_files(gate)
        load = Load(gate, directory, 2.0)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            judge.wish(events=(EXEC,) if judge.generation % 2 else (EXEC, OPEN), deadline_milliseconds=1000)
            judge.server.forget()
            threading.Event().wait(0.02)
        outcome = load.outcome()

        assert outcome["max_seconds"] < 1.0
        assert outcome["count"] > 100
        assert not gate.happenings
        assert judge.told_count("overdue") == 0


def test_a_slow_judge_slows_only_the_files_it_is_asked_about(judges, place):
    with (
        ContentJudge(judges) as judge,
        PrivateGate(place, judges, settled_seconds=SETTLED_SECONDS) as gate,
    ):
        known = settled(gate, gate.write("known/0", b"known"))
        gate.enter(lambda: content_of(known))
        judge.also = lambda asked: threading.Event().wait(0.2)
        slow = threading.Thread(target=lambda: gate.run(["cat", gate.write("slow.txt", b"slow")]))
        slow.start()
        outcome = Load(gate, os.path.dirname(known), 0.5).outcome()
        slow.join(10)

        assert outcome["max_seconds"] < 0.15
        assert outcome["count"] > 1000


def open_all_at_once(directory: str) -> float:
    """Open every file of a directory, each in a thread of its own; return the seconds that took."""
    threads = [threading.Thread(target=content_of, args=(os.path.join(directory, name),)) for name in os.listdir(directory)]
    started_at = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started_at


def test_a_judge_that_does_not_read_holds_nobody_beyond_the_deadline(judges, place):
    """More questions than a socket takes: the rest wait in the gate, and are withdrawn when they are due."""
    with ContentJudge(judges, deadline_milliseconds=500) as judge, PrivateGate(place, judges) as gate:
        for number in range(600):
            gate.write(f"many/{number}", b"x")
        judge.hold()

        assert gate.enter(lambda: open_all_at_once(os.path.join(place, "many"))) < 2.5

        # What could not be told while the judge did not read is told in one when it does.
        judge.release()
        wait_until(lambda: judge.told_count("overdue") == 600, 10, "all are told")
        assert len(judge.asked) < 600
        assert not gate.happenings


def test_waits_longer_each_time_when_the_decider_ends_again_and_again(judges, place):
    with ContentJudge(judges), PrivateGate(place, judges) as gate:
        for _ in range(3):
            before = gate.decider_pid
            os.kill(before, signal.SIGKILL)
            gate.wait_for(lambda state, before=before: state["pid"] != before and state["is_enforcing"], 10, "another decider")
        waits = [happening["again_in_seconds"] for happening in gate.happenings if happening["what"] == "closed"]
        assert waits == [0.25, 0.5, 1.0]
