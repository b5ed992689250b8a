"""A disk that is full, when the agent starts and while it runs: told, waited out, nothing lost."""

import subprocess

import pytest

from tests.system.agent_manager import Authority, ManagerState, TestManager
from tests.system.agent_run import AgentRun, wait_for


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "state"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def agent(tmp_path, disk):
    run = AgentRun(tmp_path)
    yield run
    run.stop()
    print(run.log())


def fill(disk, leave_bytes: int) -> None:
    free = int(
        subprocess.run(["df", "-B1", "--output=avail", str(disk)], capture_output=True, text=True, check=True).stdout.split()[1]
    )
    (disk / "ballast").write_bytes(b"x" * (free - leave_bytes))


def test_events_stay_with_the_worker_while_the_disk_is_full(agent, disk, tmp_path):
    authority = Authority(tmp_path)
    manager = TestManager(ManagerState(), authority.server_files())
    manager.state.faults["/agent/v1/events"] = (503, {"Retry-After": "0"}, b"")
    try:
        agent.enrol(manager.url, authority.pem)
        agent.start(agent.worker())
        wait_for(lambda: manager.state.heartbeats, "a heartbeat")
        agent.stop()
        fill(disk, 600_000)
        agent.start(agent.worker("--events", "6000"))
        wait_for(lambda: agent.status()["spool_trouble"], "the disk to be full")
        status = agent.status()
        assert "make room" in status["spool_trouble"]
        assert status["failures"]["spool_not_writable"] >= 1
        rows = {row["check"]: row for row in agent.ask("doctor")["rows"]}
        assert rows["spool"]["outcome"] == "fail"
        assert rows["disk space"]["outcome"] == "fail"
        (disk / "ballast").unlink()
        del manager.state.faults["/agent/v1/events"]
        wait_for(lambda: len(manager.state.events) == 6000, "all events", 40)
        assert set(manager.state.events) == agent.born()
        assert agent.status()["spool_trouble"] == ""
    finally:
        agent.stop()
        manager.kill()


def test_an_agent_that_finds_a_full_disk_starts_when_there_is_room(agent, disk):
    fill(disk, 0)
    agent.start_only(agent.worker())
    wait_for(lambda: "agent waits to start" in agent.log(), "the message")
    (disk / "ballast").unlink()
    wait_for(lambda: agent.answers(), "the agent")


def test_a_read_only_disk_is_told_in_one_line(agent, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    agent.start_only(agent.worker())
    assert agent.process.wait(15) == 2
    assert "Read-only file system" in agent.log()
    assert "Traceback" not in agent.log()
