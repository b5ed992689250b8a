"""A quarantined file on its way: a real manager, a real identity, and the core's own task for it."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.request

import pytest

from keibi.agent.config import AgentConfig
from keibi.agent.doctor import endpoint_for
from keibi.agent.enrolment import enrol
from keibi.agent.lane import Lane
from keibi.agent.session import AccessTokens, ManagerSession
from keibi.agent.uploads import fetching
from keibi.contract.commands import CommandResult, CommandState
from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse

pytestmark = pytest.mark.timeout(120)


class RunningManager:
    """A manager in a process of its own; `restart` kills it and starts it on the same state."""

    def __init__(self, directory):
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config = directory / "manager.toml"
        self.config.write_text(f'state_directory = "{directory}/state"\nport = {self.port}\nlog_level = "warning"\n')
        self.url = f"https://127.0.0.1:{self.port}"
        self.process = None
        self.start()
        self.ca = next((directory / "state").rglob("ca.pem")).read_text()
        self.context = ssl.create_default_context(cadata=self.ca)
        name, password = (directory / "state/first-password").read_text().split()
        answer, headers = self.call("POST", "/auth/sign-in", {"name": name, "password": password})
        cookie = headers["Set-Cookie"].split(";")[0]
        self.headers = {"Cookie": cookie, "X-Keibi-Csrf": answer["csrf_token"]}
        self.call("POST", "/auth/password", {"old": password, "new": "a long enough pass phrase 7"})
        answer, headers = self.call("POST", "/auth/sign-in", {"name": name, "password": "a long enough pass phrase 7"})
        self.headers = {"Cookie": headers["Set-Cookie"].split(";")[0], "X-Keibi-Csrf": answer["csrf_token"]}

    def start(self):
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keibi.manager.main", "--config", str(self.config)], stdout=log, stderr=log
        )
        log.close()
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

    def call(self, method, path, body=None, raw=False):
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}",
            data=json.dumps(body).encode() if body is not None else (b"" if method == "POST" else None),
            method=method,
            headers={"Content-Type": "application/json", **getattr(self, "headers", {})},
        )
        with urllib.request.urlopen(request, context=self.context, timeout=30) as answer:
            content = answer.read()
            return content if raw else (json.loads(content or b"null"), answer.headers)


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
