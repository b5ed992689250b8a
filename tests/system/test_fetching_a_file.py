"""A quarantined file on its way: a real manager, a real identity, and the core's own task for it."""

import asyncio

import pytest

from keibi.agent.config import AgentConfig
from keibi.agent.doctor import endpoint_for
from keibi.agent.enrolment import enrol
from keibi.agent.lane import Lane
from keibi.agent.session import AccessTokens, ManagerSession
from keibi.agent.uploads import fetching
from keibi.contract.commands import CommandResult, CommandState
from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse
from tests.system.running_manager import RunningManager

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def manager(tmp_path):
    running = RunningManager(tmp_path)
    yield running
    running.stop()


def test_a_file_of_the_worker_reaches_whoever_may_have_it_though_the_manager_restarts_meanwhile(manager, tmp_path):
    config = AgentConfig(state_directory=str(tmp_path / "agent"))
    (tmp_path / "agent").mkdir(mode=0o700)
    token = manager.call("POST", "/enrolment-tokens", {"name": "t"})[0]["secret"]
    identity = enrol(config, manager.url, token, manager.ca)
    session = ManagerSession(endpoint_for(config, identity), AccessTokens(identity))

    def beat(*results):
        return session.post("/agent/v1/heartbeat", HeartbeatRequest(0, "s", "f", results=list(results)), HeartbeatResponse)

    base = f"/computers/{identity.computer_id}/quarantine/0123456789abcdef"
    manager.call("POST", f"{base}/fetch")
    (command,) = beat().commands
    content = bytes(range(256)) * 40_000  # three parts

    async def worker(asked):
        assert asked.arguments["password"]
        path = tmp_path / "agent/anti_malware/archive.zip"
        path.parent.mkdir()
        path.write_bytes(content)
        manager.stop()  # it is away when the upload begins

        return CommandResult(asked.command_id, CommandState.DONE, "packed", result={"upload": str(path), "name": "x"})

    async def run():
        lane = Lane("uploads")
        task = asyncio.create_task(fetching(config, lane)(worker)(command))
        while manager.process.poll() is None:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(manager.start)
        try:
            return await task
        finally:
            lane.close()

    result = asyncio.run(run())
    assert result.result == {"name": "x", "bytes": len(content)}
    assert not (tmp_path / "agent/anti_malware/archive.zip").exists()
    beat(result)
    session.close()
    assert manager.call("GET", f"{base}/download", raw=True) == content
