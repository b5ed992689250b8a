"""The gate as the core runs it: its frames, whom it counts to the agent, what an administrator is told.

It runs in a mount namespace of its own and may mark nothing but the test's own tmpfs there (`--only-below`).
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from keibi.agent.gate.judging import OPEN, PREVENT
from keibi.agent.ports import Emit, FromWorker, Hello
from keibi.agent.worker_link import RawObserved, WorkerLink, WorkerSpec
from keibi.contract.events import Event
from keibi.contract.names import ModuleId, Severity
from tests.system.gate_judges import BAD, ContentJudge, content_of, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.timeout(60),
]


@pytest.fixture
def judge(judges) -> Iterator[ContentJudge]:
    with ContentJudge(judges, mode=PREVENT, events=(OPEN,)) as judge:
        yield judge


class RunningGate:
    """The gate with everything it said to the core."""

    def __init__(self, link: WorkerLink) -> None:
        self.link = link
        self.said: list[FromWorker | RawObserved] = []
        self.reading = asyncio.create_task(self._read())

    def events(self) -> list[Event]:
        return [event for message in self.said if isinstance(message, Emit) for event in message.events]

    async def until(self, condition, what: str, within_seconds: float = 10.0) -> None:
        async with asyncio.timeout(within_seconds):
            while not condition():
                assert not self.reading.done(), f"the gate ended before: {what}"
                await asyncio.sleep(0.01)

    async def _read(self) -> None:
        async for message in self.link.messages():
            self.said.append(message)


@asynccontextmanager
async def running_gate(judges: str, place: str, *, wrapped_in: str = "") -> AsyncIterator[RunningGate]:
    script = (
        f"mount -t tmpfs -o size=8m none {place} && exec {wrapped_in} {sys.executable} -m keibi.agent.gate"
        f" --judges {judges} --exclude {judges} --only-below {place}"
    )
    spec = WorkerSpec(
        name="gate",
        argv=("unshare", "--mount", "--propagation", "private", "sh", "-c", script),
        serves=ModuleId.ANTI_MALWARE,
        encoding="json",
    )
    link = await WorkerLink.start(spec)
    gate = RunningGate(link)
    try:
        await gate.until(lambda: bool(gate.said), "Hello")
        yield gate
    finally:
        await link.kill()
        await gate.reading


def inside(link: WorkerLink, path: str) -> str:
    return f"/proc/{link.pid}/root{path}"


STRANGER = """
import os, sys, time
parent = os.getpid()
if os.fork():
    os._exit(0)
until = time.monotonic() + 10
while os.getppid() == parent and time.monotonic() < until:
    time.sleep(0.005)
try:
    print(open(sys.argv[1]).read(), flush=True)
except OSError as error:
    print(error.strerror, flush=True)
"""


def read_as_a_stranger(link: WorkerLink, path: str) -> str:
    """Return what a process reads, or why not, that does not descend from this one: its parent has ended before."""
    done = subprocess.run(
        ["nsenter", f"--mount=/proc/{link.pid}/ns/mnt", "--", sys.executable, "-S", "-c", STRANGER, path],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.stdout.strip()


def test_says_hello_guards_by_terms_and_counts_the_agents_processes_to_itself(judges, place, judge):
    async def work() -> None:
        async with running_gate(judges, place) as gate:
            hello = gate.said[0]
            assert isinstance(hello, Hello)
            assert hello.pid == gate.link.pid
            assert {item.name: item.is_available for item in hello.capabilities}["fanotify_permission_events"]

            await gate.until(lambda: bool(judge.states) and judge.states[0].is_enforcing, "enforcing")
            assert {mount[:3] for mount in judge.states[0].mounts} == {(place, "tmpfs", "permission")}
            bad = os.path.join(place, "bad.txt")
            with open(inside(gate.link, bad), "wb") as file:
                file.write(BAD)

            assert await asyncio.to_thread(content_of, inside(gate.link, bad)) == BAD.decode()
            asked_before = len(judge.asked)
            own_child = await asyncio.to_thread(
                subprocess.run,
                ["nsenter", f"--mount=/proc/{gate.link.pid}/ns/mnt", "--", "cat", bad],
                capture_output=True,
                check=False,
            )
            assert own_child.stdout == BAD
            assert len(judge.asked) == asked_before

            told = await asyncio.to_thread(read_as_a_stranger, gate.link, bad)
            assert told == "Operation not permitted"
            assert await gate.link.stop(5.0) == 0

    asyncio.run(work())


def test_an_administrator_is_told_when_the_gate_was_closed_and_works_again(judges, place, judge):
    async def work() -> None:
        async with running_gate(judges, place) as gate:
            await gate.until(lambda: bool(judge.states) and judge.states[0].is_enforcing, "enforcing")
            first = judge.states[0].pid
            os.kill(first, signal.SIGKILL)
            await gate.until(lambda: len(gate.events()) == 2, "closed and restarted")
            closed, restarted = gate.events()
            assert (closed.kind, closed.severity, closed.module) == ("gate.closed", Severity.HIGH, ModuleId.ANTI_MALWARE)
            assert closed.reason == "it was ended by signal 9"
            assert len(closed.event_id) == 32
            assert restarted.kind == "gate.restarted"
            await gate.until(lambda: any(state.pid != first and state.is_enforcing for state in judge.states), "the judge knows")
            assert dict(judge.states[0].metrics)["restarts_count"] == 1

    asyncio.run(work())


def test_a_core_that_reads_nothing_does_not_keep_the_warden_from_its_watch(judges, place, judge):
    """Such as one that waits for its own journal, which waits for a file that this gate holds."""

    async def work() -> None:
        async with running_gate(judges, place) as gate:
            await gate.until(lambda: bool(judge.states) and judge.states[0].is_enforcing, "enforcing")
            gate.reading.cancel()
            first = judge.states[0].pid
            os.kill(first, signal.SIGSTOP)
            await asyncio.to_thread(
                wait_until, lambda: any(state.pid != first and state.is_enforcing for state in judge.states), 10
            )
            gate.reading = asyncio.create_task(asyncio.sleep(0))

    asyncio.run(work())


def test_without_the_power_to_hold_files_it_says_so_once_and_holds_nothing(judges, place, judge):
    async def work() -> None:
        without_power = "setpriv --bounding-set=-sys_admin --"
        async with running_gate(judges, place, wrapped_in=without_power) as gate:
            hello = gate.said[0]
            assert isinstance(hello, Hello)
            held = next(item for item in hello.capabilities if item.name == "fanotify_permission_events")
            assert not held.is_available
            assert "not permitted" in held.reason
            await gate.until(lambda: len(gate.events()) >= 1, "told")
            with pytest.raises(TimeoutError):
                await gate.until(lambda: len(gate.events()) > 1, "told again after another attempt", within_seconds=1.5)
            assert [event.kind for event in gate.events()] == ["gate.closed"]
            assert not judge.states

    asyncio.run(work())


def test_the_gate_ends_with_the_core(judges, place, judge):
    async def work() -> None:
        async with running_gate(judges, place) as gate:
            await gate.until(lambda: bool(judge.states) and judge.states[0].is_enforcing, "enforcing")
            decider = judge.states[0].pid
            gate.link._writer.close()
            async with asyncio.timeout(5):
                assert await gate.link.wait() == 0
            await asyncio.to_thread(wait_until, lambda: not os.path.exists(f"/proc/{decider}"), 5)

    asyncio.run(work())
    assert threading.active_count() < 20
