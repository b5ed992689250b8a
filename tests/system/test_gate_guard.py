"""The kernel guard under a gate: programs that no mark of fanotify sees, in a cgroup that the test makes."""

import os
import subprocess
import sys

import pytest

from keibi.agent.gate.guard import Guard
from keibi.agent.gate.judging import GUARD_ENFORCE, GUARD_OFF, GUARD_REPORT
from keibi.agent.gate.private import PrivateGate
from tests.system.gate_judges import ContentJudge, wait_until
from tests.system.test_guard import FRESH_TMPFS, MEMFD, refused, run

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.timeout(90),
]


@pytest.fixture(autouse=True)
def needs_a_guard() -> None:
    loaded, reason = Guard.load()
    if loaded is None:
        pytest.skip(f"no level of the guard loads here: {reason}")
    loaded.close()


def guard_is_there(gate: PrivateGate) -> None:
    wait_until(lambda: any(one["what"] == "guard" and one["level"] for one in gate.happenings), 30, "the guard")


def test_a_program_in_memory_is_stopped_and_told(cgroup, judges, place):
    with (
        ContentJudge(judges, "application_control", guard=GUARD_ENFORCE) as judge,
        PrivateGate(place, judges, guard_scope=cgroup) as gate,
    ):
        guard_is_there(gate)
        wait_until(lambda: refused(run(cgroup, MEMFD)), 10, "stopped")
        wait_until(lambda: judge.told_count("guarded") > 0, 5, "told")
        told = next(told for told in judge.told if told.what == "guarded" and not told.was_allowed)
        assert told.path == b"memfd:keibi-test"
        assert refused(run(cgroup, FRESH_TMPFS, "unshare", "--mount"))
        assert run(cgroup, "pass") == 0  # what lies on the computer's own file systems runs
        assert subprocess.run([sys.executable, "-c", MEMFD], timeout=30, check=False).returncode == 0  # outside the cgroup

        judge.wish(guard=GUARD_OFF)
        wait_until(lambda: run(cgroup, MEMFD) == 0, 10, "off")


def test_what_is_only_watched_is_told_and_runs(cgroup, judges, place):
    with (
        ContentJudge(judges, "application_control", guard=GUARD_REPORT) as judge,
        PrivateGate(place, judges, guard_scope=cgroup) as gate,
    ):
        guard_is_there(gate)

        def is_told() -> bool:
            assert run(cgroup, MEMFD) == 0
            return judge.told_count("guarded") > 0

        wait_until(is_told, 10, "told")
        assert all(told.was_allowed for told in judge.told if told.what == "guarded")


def test_when_the_gate_is_gone_so_is_the_guard(cgroup, judges, place):
    with ContentJudge(judges, "application_control", guard=GUARD_ENFORCE):
        with PrivateGate(place, judges, guard_scope=cgroup) as gate:
            guard_is_there(gate)
            wait_until(lambda: refused(run(cgroup, MEMFD)), 10, "stopped")
        assert run(cgroup, MEMFD) == 0
