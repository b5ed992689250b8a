"""A judge that is away or gives no verdicts locks nobody out: for how long it may deny, and what is let pass meanwhile."""

import os
import stat
import time

import pytest

from keibi.agent.gate.floor import is_needed
from keibi.agent.gate.judging import DENY, EXEC, OPEN
from keibi.agent.gate.private import PrivateGate
from tests.system.gate_judges import BAD, ContentJudge, wait_until
from tests.system.test_gate_survives import judge_process

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.timeout(60),
]


def is_refused(gate: PrivateGate, path: str) -> bool:
    return gate.run(["cat", path], timeout_seconds=5).returncode != 0


def suspended(gate: PrivateGate) -> list[list[str]]:
    """Return which judges were told as given up, one after another."""
    return [list(told["judges"]) for told in gate.happenings if told["what"] == "suspended"]


def test_a_judge_that_is_away_denies_only_for_a_time_and_both_are_told(judges, place):
    with judge_process(judges, on_timeout=DENY, closed_at_most_seconds=1) as judge, PrivateGate(place, judges) as gate:
        path, bad = gate.write("x.txt", b"x"), gate.write("bad.txt", BAD)
        assert is_refused(gate, bad)
        judge.kill()
        judge.wait()
        assert is_refused(gate, path)
        wait_until(lambda: not is_refused(gate, path), 5, "let pass")
        wait_until(lambda: suspended(gate) == [["anti_malware"]], 5, "told to the core")
        assert gate.state["suspended"] == ["anti_malware"]
        with ContentJudge(judges, on_timeout=DENY, closed_at_most_seconds=1) as second:
            wait_until(lambda: is_refused(gate, bad), 5, "kept to again")
            wait_until(lambda: suspended(gate) == [["anti_malware"], []], 5, "told to the core")
            answered = {(os.fsencode(path), False), (os.fsencode(path), True)}

            def is_told() -> bool:
                return answered <= {(told.path, told.was_allowed) for told in second.told if told.what == "overdue"}

            wait_until(is_told, 5, "told to the judge, by name")
            assert {told.pid for told in second.told if told.what == "overdue"} == {0}, "whose it was then, nobody knows now"


def test_a_policy_may_stay_closed(judges, place):
    with judge_process(judges, on_timeout=DENY, closed_at_most_seconds=0) as judge, PrivateGate(place, judges) as gate:
        path = gate.write("x.txt", b"x")
        judge.kill()
        judge.wait()
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            assert is_refused(gate, path)
        assert suspended(gate) == []


def test_a_judge_that_hangs_holds_nobody_up_for_ever(judges, place):
    terms = {"on_timeout": DENY, "closed_at_most_seconds": 1, "deadline_milliseconds": 200}
    with ContentJudge(judges, **terms) as judge, PrivateGate(place, judges) as gate:
        many = [gate.write(f"{number}.txt", b"x") for number in range(30)]
        judge.hold()
        assert is_refused(gate, many[0])
        wait_until(lambda: not is_refused(gate, many[0]), 5, "let pass")
        started_at = time.monotonic()
        assert gate.run(["cat", *many], timeout_seconds=10).returncode == 0
        assert time.monotonic() - started_at < 3.0, "not one deadline for each"
        judge.release()
        bad = gate.write("bad.txt", BAD)
        wait_until(lambda: is_refused(gate, bad), 10, "kept to again")


def test_what_signing_in_needs_is_let_pass_where_it_lies_and_when_only_root_could_put_it_there(judges, place):
    with judge_process(judges, on_timeout=DENY, closed_at_most_seconds=0) as judge, PrivateGate(place, judges) as gate:
        mine, anybodys = gate.write("etc/shadow", b"x"), gate.write("etc/open", b"x")
        os.chmod(gate.outside(anybodys), 0o666)
        assert gate.run(["mount", "--bind", f"{place}/etc", "/etc/init.d"]).returncode == 0
        judge.kill()
        judge.wait()
        assert is_refused(gate, mine), "elsewhere it is a file like any other"
        assert not is_refused(gate, "/etc/init.d/shadow")
        assert is_refused(gate, "/etc/init.d/open")


def test_the_floor_is_made_of_roots_own_files_at_their_places(tmp_path):
    shell = os.path.realpath("/bin/sh")
    status = os.stat(shell)
    assert stat.S_ISREG(status.st_mode)
    assert is_needed(EXEC, os.fsencode(shell), status)
    assert is_needed(OPEN, os.fsencode(shell), status)
    assert is_needed(OPEN, b"/etc/passwd", os.stat("/etc/passwd"))
    env = os.path.realpath("/usr/bin/env")
    assert not is_needed(EXEC, os.fsencode(env), os.stat(env)), "no part of signing in"
    (tmp_path / "sh").write_bytes(b"x")
    other = os.stat(tmp_path / "sh")
    assert not is_needed(EXEC, os.fsencode(tmp_path / "sh"), other)
    assert not is_needed(EXEC, os.fsencode(shell), other), "another file than the one that lies there"
