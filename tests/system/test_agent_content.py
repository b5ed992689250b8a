"""Files that a policy names are on the computer before it is applied: with a real manager, and with one that misbehaves."""

import hashlib
import json
import os
import subprocess
import sys

import msgspec
import pytest

from keibi.agent.content_fetch import PART_BYTES
from keibi.cli.client import ApiClient, Profile
from keibi.contract.policy import ContentReference
from tests.system.agent_manager import Authority, ManagerState, TestManager
from tests.system.agent_run import AgentRun, policy, wait_for
from tests.system.test_manager_server import Running, free_port

RULE = 'rule zq_content { strings: $a = "zq-content-zq" condition: $a }\n'


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def manager(authority):
    running = TestManager(ManagerState(), authority.server_files())
    yield running
    running.kill()


@pytest.fixture
def agent(tmp_path, manager, authority):
    run = AgentRun(tmp_path)
    run.enrol(manager.url, authority.pem)
    run.start(run.worker())
    yield run
    run.stop()
    print(run.log())


def in_force(agent) -> int:
    return agent.status()["agent"]["policy_generation"]


def error_of(agent) -> str:
    return agent.status()["agent"]["policy_error"]


def reference_to(data: bytes, name: str = "set.yar") -> ContentReference:
    return ContentReference(hashlib.sha256(data).hexdigest(), len(data), "yara_source", name)


def policy_with(generation: int, *references: ContentReference):
    made = policy(generation)
    return msgspec.structs.replace(made, modules=[msgspec.structs.replace(made.modules[0], content=list(references))])


def kept_by(agent) -> list[str]:
    folder = agent.state / "content"
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def test_a_broken_download_goes_on_where_it_stopped(agent, manager):
    data = os.urandom(2 * PART_BYTES + 1000)
    reference = reference_to(data)
    manager.state.content[reference.sha256] = data
    manager.state.content_parts_left = 1
    manager.state.policy = policy(1)
    wait_for(lambda: in_force(agent) == 1, "generation 1")
    manager.state.set_policy(policy_with(2, reference))
    wait_for(lambda: error_of(agent).startswith("generation 2: "), "the reason in the status")
    assert in_force(agent) == 1
    assert kept_by(agent) == [f"{reference.sha256}.part"]
    agent.kill()
    manager.state.content_parts_left = None
    manager.state.content_ranges.clear()
    agent.start(agent.worker())
    wait_for(lambda: in_force(agent) == 2, "generation 2")
    assert error_of(agent) == ""
    assert (agent.state / "content" / reference.sha256).read_bytes() == data
    assert (agent.state / "content" / reference.sha256).stat().st_mode & 0o777 == 0o600
    assert manager.state.content_ranges[0] == f"bytes={PART_BYTES}-{2 * PART_BYTES - 1}"
    manager.state.set_policy(policy_with(3))
    wait_for(lambda: in_force(agent) == 3, "generation 3")
    wait_for(lambda: kept_by(agent) == [], "what no policy names to be deleted")


def test_wrong_bytes_are_never_used_and_the_former_policy_stays(agent, manager):
    good, bad = b"good patterns", b"evil patterns"
    reference = reference_to(good)
    manager.state.content[reference.sha256] = bad
    manager.state.policy = policy(1)
    wait_for(lambda: in_force(agent) == 1, "generation 1")
    manager.state.set_policy(policy_with(2, reference))
    wait_for(lambda: "has the SHA-256" in error_of(agent), "the refusal")
    assert in_force(agent) == 1
    assert kept_by(agent) == []
    manager.state.content[reference.sha256] = good
    manager.state.set_policy(policy_with(3, reference))
    wait_for(lambda: in_force(agent) == 3, "generation 3")
    assert (agent.state / "content" / reference.sha256).read_bytes() == good


def test_what_cannot_be_had_is_said_and_a_newer_policy_goes_first(agent, manager):
    missing = reference_to(b"nobody has this", "lost.yar")
    manager.state.policy = policy_with(1, missing)
    wait_for(lambda: "names this content" in error_of(agent), "the reason")
    assert in_force(agent) == 0
    beats = manager.state.heartbeats
    wait_for(
        lambda: any(beat.status and "names this content" in beat.status.policy_error for beat in beats), "the manager to know"
    )
    manager.state.set_policy(policy(2))
    wait_for(lambda: in_force(agent) == 2, "generation 2, which needs nothing", 10.0)
    manager.state.set_policy(policy_with(3, ContentReference("../../etc/passwd", 5, "yara_source", "x")))
    wait_for(lambda: "cannot be right" in error_of(agent), "the refusal of a name that is no digest")
    assert in_force(agent) == 2


def test_a_file_that_somebody_deleted_comes_back_when_the_agent_starts(agent, manager):
    reference = reference_to(b"patterns")
    manager.state.content[reference.sha256] = b"patterns"
    manager.state.policy = policy_with(1, reference)
    wait_for(lambda: in_force(agent) == 1, "generation 1")
    agent.kill()
    (agent.state / "content" / reference.sha256).unlink()
    agent.start(agent.worker())
    wait_for(lambda: kept_by(agent) == [reference.sha256], "the file")
    wait_for(lambda: agent.notes().count("configured 1 real-time") >= 2, "the worker to be configured again")


@pytest.mark.timeout(120)
def test_from_the_command_line_to_the_disk_of_a_computer(tmp_path):
    """A real manager, the real command line and a real agent core."""
    running = Running(tmp_path / "manager", free_port(), tmp_path / "manager.log")
    agent = AgentRun(tmp_path)
    try:
        ca = running.state / "tls" / "ca.pem"
        key, token = key_and_token(running)
        environment = {**os.environ, "KEIBI_URL": f"https://127.0.0.1:{running.port}", "KEIBI_API_KEY": key, "KEIBI_CA": str(ca)}

        def keibi(*arguments: str) -> str:
            argv = [sys.executable, "-m", "keibi.cli.main", "patterns", *arguments]
            outcome = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=environment)
            assert outcome.returncode == 0, outcome.stdout + outcome.stderr
            return outcome.stdout

        folder = tmp_path / "public-rules"
        folder.mkdir()
        (folder / "one.yar").write_text(RULE)
        (folder / "two.yar").write_text("rule zq_bad { condition: $nowhere }")
        said = keibi("import", str(folder), "--licence", "ours")
        assert "version 1 of public-rules" in said
        assert "1 rules" in said
        assert "two.yar:1" in said
        assert "ours" in keibi("show", "public-rules")
        agent.enrol(f"https://127.0.0.1:{running.port}", ca.read_text(), token)
        # A module that no worker runs is not sent: this one only has to say yes.
        agent.start(agent.worker(name="anti_malware", module="anti_malware"))
        wait_for(lambda: in_force(agent) == 1, "the first policy", 30.0)
        assert "it reaches 1 computers" in keibi("assign", "public-rules", "Base > Linux")
        wait_for(lambda: in_force(agent) == 2, "the policy with the set", 30.0)
        (first,) = kept_by(agent)
        assert RULE.strip() in (agent.state / "content" / first).read_text()

        (folder / "two.yar").write_text(RULE.replace("zq_content", "zq_second"))
        assert "version 2 of public-rules" in keibi("import", str(folder))
        wait_for(lambda: in_force(agent) == 3, "the policy with the newer version", 30.0)
        # What nothing names any more goes a moment after that.
        wait_for(lambda: len(kept_by(agent)) == 1, "the older version is gone", 10.0)
        (second,) = kept_by(agent)
        assert "zq_second" in (agent.state / "content" / second).read_text()
        assert "at version 1 now" in keibi("rollback", "public-rules", "1")
        wait_for(lambda: kept_by(agent) == [first], "the older version", 30.0)
        keibi("assign", "public-rules", "Base > Linux", "--remove")
        wait_for(lambda: kept_by(agent) == [], "nothing to be kept", 30.0)
        keibi("delete", "public-rules")
        assert json.loads(keibi("list", "--json")) == []
    finally:
        agent.stop()
        running.stop()
        print(agent.log(), (tmp_path / "manager.log").read_text())


def key_and_token(running: Running) -> tuple[str, str]:
    """Sign in as the first administrator, and make an API key and a token that enrols one computer."""
    password = (running.state / "first-password").read_text().split()[1]
    browser = Browser(running)
    browser.call("POST", "/auth/sign-in", {"name": "admin", "password": password})
    browser.call("POST", "/auth/password", {"old": password, "new": "correct horse battery staple"})
    browser.call("POST", "/auth/sign-in", {"name": "admin", "password": "correct horse battery staple"})
    tenant = browser.call("GET", "/tenants")[0]["tenant_id"]
    key = browser.call("POST", "/api-keys", {"name": "cli", "role_id": "administrator", "tenant_id": tenant})["secret"]
    client = ApiClient(Profile(f"https://127.0.0.1:{running.port}", key, str(running.state / "tls" / "ca.pem")))
    return key, client.post("/enrolment-tokens", {"name": "t"})["secret"]


class Browser:
    """Keeps the cookie and the token of a session."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._headers: dict[str, str] = {}

    def call(self, method: str, path: str, body: object = None):
        connection = self._running.connection()
        payload = json.dumps(body) if body is not None else None
        connection.request(method, f"/api/v1{path}", payload, {"Content-Type": "application/json", **self._headers})
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status < 300, data
        if cookie := answer.headers.get("Set-Cookie"):
            self._headers["Cookie"] = cookie.partition(";")[0]
        decoded = json.loads(data) if data else {}
        if isinstance(decoded, dict) and "csrf_token" in decoded:
            self._headers["X-Keibi-Csrf"] = decoded["csrf_token"]
        connection.close()
        return decoded
