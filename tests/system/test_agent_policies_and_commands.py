"""Policies take effect whole or not at all; commands run once."""

import hashlib
import time

import msgspec
import pytest

from keibi.contract.codec import encode
from keibi.contract.commands import Command, CommandKind, CommandState
from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from tests.system.agent_manager import Authority, ManagerState, TestManager
from tests.system.agent_run import AgentRun, policy, wait_for

INTEGRITY = ModuleId.INTEGRITY_MONITORING


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
    yield run
    run.stop()
    print(run.log())


def in_force(agent) -> int:
    return agent.status()["agent"]["policy_generation"]


def result_of(manager, command_id, seconds=10.0):
    def final():
        return [result for result in manager.state.results if result.command_id == command_id and result.state != "running"]

    return wait_for(final, f"the result of {command_id}", seconds)[0]


def test_a_policy_is_in_force_soon_and_stays_so_after_a_restart_without_a_manager(agent, manager):
    agent.start(agent.worker())
    manager.state.set_policy(policy(7))
    wait_for(lambda: in_force(agent) == 7, "generation 7")
    wait_for(lambda: manager.state.heartbeats[-1].policy_generation == 7, "a heartbeat that says so")
    wait_for(lambda: any(beat.status and beat.status.policy_generation == 7 for beat in manager.state.heartbeats), "the status")
    manager.kill()
    agent.kill()
    agent.start(agent.worker())
    wait_for(lambda: agent.notes().count("configured 7 real-time") == 2, "the worker to be configured again")
    assert in_force(agent) == 7


@pytest.mark.parametrize("fault", [{"refuse": "no such hash"}, {"crash": True}])
def test_a_policy_that_a_worker_refuses_or_dies_of_leaves_the_old_one(agent, manager, fault):
    manager.state.policy = policy(1)
    agent.start(agent.worker())
    wait_for(lambda: in_force(agent) == 1, "generation 1")
    manager.state.set_policy(policy(2, **fault))
    wait_for(lambda: agent.status()["agent"]["policy_error"], "a refusal")
    status = agent.status()["agent"]
    assert status["policy_generation"] == 1
    assert status["policy_error"].startswith("generation 2: integrity_monitoring")
    wait_for(lambda: agent.notes().count("configured 1 real-time") == 2, "the old generation to be configured again")
    wait_for(lambda: any(e.kind == "agent.policy_refused" for e in manager.state.events.values()), "the event")
    wait_for(lambda: manager.state.heartbeats[-1].policy_generation == 2, "not to be sent again")
    manager.state.set_policy(policy(3))
    wait_for(lambda: in_force(agent) == 3, "generation 3")
    assert agent.status()["agent"]["policy_error"] == ""


def test_a_policy_that_cannot_be_read_leaves_the_old_one(agent, manager):
    manager.state.policy = policy(1)
    agent.start(agent.worker())
    wait_for(lambda: in_force(agent) == 1, "generation 1")
    unreadable = {"generation": 9, "policy_name": "x", "modules": [{"module": "quantum_shield", "state": "on", "settings": {}}]}
    manager.state.raw_response = encode({"server_at": time.time(), "policy": unreadable})
    manager.state.wake.set()
    wait_for(lambda: "quantum_shield" in agent.status()["agent"]["policy_error"], "a refusal")
    assert in_force(agent) == 1


def test_a_module_that_is_off_is_told_so(agent, manager):
    manager.state.policy = policy(1, ModuleState.OFF)
    agent.start(agent.worker())
    wait_for(lambda: "configured 1 off" in agent.notes(), "the worker to be told")
    wait_for(lambda: agent.status()["agent"]["modules"][0]["health"] == "inactive", "the status")


def test_nothing_that_is_unchanged_is_sent_again(agent, manager):
    agent.configure(heartbeat_seconds=1)
    agent.start(agent.worker())
    wait_for(lambda: len(manager.state.heartbeats) > 1 and manager.state.heartbeats[-1].status is None, "nothing to tell")
    last = manager.state.heartbeats[-1]
    assert last.facts is None
    assert last.status_digest
    assert manager.state.heartbeats[0].status.capabilities is not None
    assert manager.state.heartbeats[0].facts.hostname


def test_a_command_is_answered_within_a_second_and_runs_once(agent, manager):
    agent.start(agent.worker())
    wait_for(lambda: manager.state.heartbeats, "a heartbeat")
    command = Command("cmd-1", CommandKind.SCAN, INTEGRITY)
    sent_at = time.monotonic()
    manager.state.send(command)
    result = result_of(manager, "cmd-1")
    assert time.monotonic() - sent_at < 1.5  # there and back
    assert result.state is CommandState.DONE
    manager.state.send(command)
    wait_for(lambda: not manager.state.commands, "the second sending to be fetched")
    agent.kill()
    agent.start(agent.worker())
    manager.state.send(command)
    manager.state.send(Command("cmd-2", CommandKind.SCAN, INTEGRITY))
    result_of(manager, "cmd-2")
    assert agent.notes().count("ran cmd-1 scan") == 1
    assert agent.notes().count("ran cmd-2 scan") == 1


def test_a_command_that_ran_when_the_agent_was_killed_fails_and_does_not_run_again(agent, manager):
    agent.start(agent.worker())
    manager.state.send(Command("cmd-1", CommandKind.SCAN, INTEGRITY, {"hang": True}))
    wait_for(lambda: "ran cmd-1 scan" in agent.notes(), "the command to run")
    agent.kill()
    agent.start(agent.worker())
    result = result_of(manager, "cmd-1")
    assert result.state is CommandState.FAILED
    assert "restarted" in result.message
    assert agent.notes().count("ran cmd-1 scan") == 1


def test_commands_that_cannot_run_say_why(agent, manager):
    agent.start(agent.worker())
    wait_for(lambda: manager.state.heartbeats, "a heartbeat")
    manager.state.send(Command("late", CommandKind.SCAN, INTEGRITY, expires_at=time.time() - 100))
    late = result_of(manager, "late")
    assert (late.state, late.message) == (CommandState.EXPIRED, "it came 100 s after it expired")
    manager.state.send(Command("dies", CommandKind.SCAN, INTEGRITY, {"exit": True}))
    dies = result_of(manager, "dies")
    assert dies.state is CommandState.FAILED
    assert "exit code 4" in dies.message
    manager.state.send(Command("nobody", CommandKind.SCAN))
    assert result_of(manager, "nobody").state is CommandState.REFUSED
    unknown = {"command_id": "odd", "kind": "make_coffee", "module": "kitchen", "expires_at": 0.0}
    manager.state.raw_response = encode({"server_at": time.time(), "commands": [unknown]})
    manager.state.wake.set()
    odd = result_of(manager, "odd")
    assert odd.state is CommandState.REFUSED
    assert "make_coffee" in odd.message


def test_diagnose_returns_the_doctors_rows(agent, manager):
    agent.start(agent.worker())
    wait_for(lambda: manager.state.heartbeats, "a heartbeat")
    manager.state.send(Command("d", CommandKind.DIAGNOSE))
    rows = {row["check"]: row for row in result_of(manager, "d").result["rows"]}
    assert rows["manager"]["outcome"] == "ok"
    assert rows["clock"]["outcome"] == "ok"
    assert rows["worker integrity_monitoring"]["outcome"] == "ok"
    assert rows["kernel: test_capability"]["outcome"] == "warn"
    assert rows["state directory"]["outcome"] == "ok"
    assert rows["policy"]["outcome"] == "warn"


def test_a_scan_can_be_started_on_the_computer(agent, manager):
    agent.start(agent.worker())
    wait_for(lambda: agent.status()["workers"][0]["state"] == "running", "the worker")
    answer = agent.ask("scan")
    assert answer["state"] == "done"
    assert not manager.state.results  # nobody at the manager asked


def test_settings_versions_are_told(agent, manager):
    agent.start(agent.worker())
    beat = wait_for(lambda: manager.state.heartbeats, "a heartbeat")[0]
    assert beat.settings_versions == {"integrity_monitoring": 1}
    assert msgspec.msgpack.encode(beat)


def test_a_file_is_restored_by_the_core_as_the_worker_says_unless_it_changed_meanwhile(agent, manager, tmp_path):
    agent.start(agent.worker())
    path = tmp_path / "precious"
    path.write_text("tampered")
    wanted = {"path": str(path), "content": "as it was", "mode": 0o640, "uid": 0, "gid": 0}
    tampered = {**wanted, "expected_hash": hashlib.sha256(b"tampered").hexdigest()}
    key = {"key": str(path)}
    manager.state.send(Command("r0", CommandKind.RESTORE, INTEGRITY, {"restore": tampered, "key": "/another/file"}))
    assert "not what was asked for" in result_of(manager, "r0").message
    assert path.read_text() == "tampered"
    manager.state.send(Command("r1", CommandKind.RESTORE, INTEGRITY, {"restore": tampered, **key}))
    assert result_of(manager, "r1").message == f"restored content, owner and mode of {path}"
    assert path.read_text() == "as it was"
    assert path.stat().st_mode & 0o7777 == 0o640
    manager.state.send(Command("r2", CommandKind.RESTORE, INTEGRITY, {"restore": tampered, **key}))
    refused = result_of(manager, "r2")
    assert refused.state is CommandState.FAILED
    assert "not what it was" in refused.message
    manager.state.send(Command("r3", CommandKind.RESTORE, INTEGRITY, key))
    assert "did not say what to restore" in result_of(manager, "r3").message
