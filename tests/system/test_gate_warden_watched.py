"""Who watches the warden: a gate whose warden is killed or stopped is ended, started again, and that is told.

In a mount namespace of its own; it may mark nothing but the test's own tmpfs there (`--only-below`).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from keibi.agent.gate.judging import OPEN, PREVENT
from keibi.contract.events import Event
from tests.system.agent_run import AgentRun, is_alive, wait_for
from tests.system.gate_judges import BAD, ContentJudge

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.timeout(60),
]
SILENT_SECONDS = 2.0
_EXECUTE = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def judge(judges) -> Iterator[ContentJudge]:
    with ContentJudge(judges, mode=PREVENT, events=(OPEN,)) as judge:
        yield judge


@pytest.fixture
def agent(tmp_path, manager, judges, place) -> Iterator[AgentRun]:
    run = AgentRun(tmp_path)
    run.enrol(manager.url, manager.authority.pem)
    script = (
        f"mount -t tmpfs -o size=8m none {place} && exec {sys.executable} -m keibi.agent.gate"
        f" --judges {judges} --exclude {judges} --only-below {place}"
    )
    run.start(
        {
            "name": "gate",
            "module": None,
            "encoding": "json",
            "silent_seconds": SILENT_SECONDS,
            "argv": ["-c", _EXECUTE, "unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        }
    )
    yield run
    run.stop()
    print(run.log())


def gate_pid(agent: AgentRun) -> int:
    """Return the warden's process id, 0 while there is none."""
    return next(one["pid"] or 0 for one in agent.status()["workers"])


def read_inside(pid: int, path: str) -> int:
    """Return the exit code of a process that reads a file on the gate's mount; the watchdog of these tests: it ends by itself."""
    return subprocess.run(
        ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", "timeout", "-s", "KILL", "10", "cat", path],
        capture_output=True,
        timeout=20,
        check=False,
    ).returncode


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGKILL, "signal SIGKILL"), (signal.SIGSTOP, f"saying nothing for {SILENT_SECONDS:.0f} s")]
)
def test_a_warden_that_is_killed_or_stopped_is_replaced_and_told(agent, manager, judge, place, number, how):
    wait_for(lambda: judge.states and judge.states[-1].is_enforcing, "holding files")
    first, decider = gate_pid(agent), judge.states[-1].pid
    with open(f"/proc/{first}/root{place}/bad", "wb") as file:
        file.write(BAD)
    assert read_inside(first, f"{place}/bad") != 0
    os.kill(first, number)
    wait_for(lambda: gate_pid(agent) not in (0, first), "another gate", 12)
    assert not is_alive(first)
    assert not is_alive(decider)
    wait_for(lambda: judge.states and judge.states[-1].is_enforcing and judge.states[-1].pid != decider, "holding again")
    second = gate_pid(agent)
    with open(f"/proc/{second}/root{place}/bad", "wb") as file:
        file.write(BAD)
    assert read_inside(second, f"{place}/bad") != 0

    def told() -> list[Event]:
        found = [event for event in manager.state.events.values() if event.kind in ("gate.closed", "gate.restarted")]
        return sorted(found, key=lambda event: event.detected_at)

    wait_for(lambda: len(told()) == 2, "the events")
    assert [event.kind for event in told()] == ["gate.closed", "gate.restarted"]
    assert how in told()[0].reason
