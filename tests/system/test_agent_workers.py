"""Workers that crash, hang, talk nonsense or do not listen; observations on their way; one agent at a time; the socket."""

import os
import socket
import subprocess
import sys

import pytest

from keibi.errors import InputError, TryLaterError
from tests.system.agent_manager import Authority, ManagerState, TestManager
from tests.system.agent_run import WORKER, AgentRun, is_alive, policy, wait_for


@pytest.fixture
def agent(tmp_path):
    run = AgentRun(tmp_path)
    yield run
    run.stop()
    print(run.log())


def the_worker(agent) -> dict:
    return agent.status()["workers"][0]


def sensor(agent, *arguments) -> dict:
    return {
        "name": "sensor",
        "argv": [WORKER, str(agent.directory / "sensor"), "--name", "sensor", *arguments],
        "is_sensor": True,
    }


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        (["--exit", "5"], "exit code 5"),
        (["--junk"], "a frame that is none"),
        (["--mute"], "no Hello within"),
    ],
)
def test_three_crashes_lead_to_safe_mode_which_a_restart_does_not_end(agent, fault, how):
    # Short only where silence is the fault: on a busy machine a healthy start takes longer.
    agent.start(agent.worker(*fault, hello_seconds=0.6 if fault == ["--mute"] else 20.0))
    wait_for(lambda: the_worker(agent)["state"] == "safe mode", "safe mode")
    status = agent.status()
    assert how in status["workers"][0]["last_end"]
    assert status["workers"][0]["crash_count"] == 3
    assert status["agent"]["is_safe_mode"]
    assert how in status["agent"]["safe_mode_reason"]
    assert status["agent"]["modules"][0]["health"] == "error"
    assert status["failures"]["worker_crash_loop"] == 1
    wait_for(lambda: agent.status()["agent"]["spool"]["waiting_count"] == 1, "the event about it")
    agent.stop()
    agent.start(agent.worker())  # mended, but nobody said so yet
    assert the_worker(agent)["state"] == "safe mode"
    assert agent.ask("leave-safe-mode") == {"left": ["integrity_monitoring"]}
    wait_for(lambda: the_worker(agent)["state"] == "running", "the worker")
    assert not agent.status()["agent"]["is_safe_mode"]


def test_a_new_policy_generation_ends_safe_mode(agent, tmp_path):
    authority = Authority(tmp_path)
    manager = TestManager(ManagerState(), authority.server_files())
    try:
        agent.enrol(manager.url, authority.pem)
        agent.start(agent.worker("--exit", "5"))
        wait_for(lambda: the_worker(agent)["state"] == "safe mode", "safe mode")
        wait_for(lambda: any(e.kind == "agent.safe_mode" for e in manager.state.events.values()), "the event")
        agent.stop()
        agent.start(agent.worker())
        manager.state.set_policy(policy(2))
        wait_for(lambda: agent.status()["agent"]["policy_generation"] == 2, "the policy")
        wait_for(lambda: the_worker(agent)["state"] == "running", "the worker")
    finally:
        agent.stop()
        manager.kill()


def test_a_core_that_keeps_being_killed_starts_in_safe_mode(agent):
    for _ in range(3):
        agent.start(agent.worker())
        agent.kill()
    agent.start(agent.worker())
    wait_for(lambda: the_worker(agent)["state"] == "safe mode", "safe mode")
    assert "ended unexpectedly 3 times" in agent.status()["agent"]["safe_mode_reason"]
    agent.ask("leave-safe-mode")
    wait_for(lambda: the_worker(agent)["state"] == "running", "the worker")


def test_a_worker_that_crashes_once_is_started_again(agent):
    agent.start(agent.worker())
    wait_for(lambda: the_worker(agent)["state"] == "running", "the worker")
    former = the_worker(agent)["pid"]
    os.kill(former, 9)
    wait_for(lambda: the_worker(agent)["state"] == "running" and the_worker(agent)["pid"] != former, "a new one")
    assert the_worker(agent)["last_end"] == "signal SIGKILL"
    assert agent.status()["agent"]["modules"][0]["metrics"] == {"worker_restarts_count": 1.0}


def test_a_worker_can_be_restarted_by_hand_and_that_is_no_crash(agent):
    agent.start(agent.worker())
    wait_for(lambda: the_worker(agent)["state"] == "running", "the worker")
    former = the_worker(agent)["pid"]
    agent.ask("restart-worker", worker="integrity_monitoring")
    wait_for(lambda: the_worker(agent)["state"] == "running" and the_worker(agent)["pid"] != former, "a new one")
    assert the_worker(agent)["crash_count"] == 0
    with pytest.raises(InputError, match="there is no worker 'x'"):
        agent.ask("restart-worker", worker="x")


def test_observations_reach_who_watches_and_roots_reach_the_sensor(agent):
    agent.start(sensor(agent, "--observe", "3"), agent.worker("--watch", "/etc"))
    wait_for(lambda: "roots /etc" in agent.notes("sensor"), "the roots")
    (agent.directory / "sensor" / "observe").touch()
    wait_for(lambda: agent.notes().count("observed 1") == 3, "the observations")


def test_a_worker_that_does_not_read_is_told_what_it_missed_and_holds_nobody_up(agent):
    agent.worker_state.mkdir()
    (agent.worker_state / "deaf").touch()
    agent.start(sensor(agent, "--observe", "400", "--observe-each", "2000"), agent.worker("--watch", "/etc", "--deaf"))
    wait_for(lambda: "roots /etc" in agent.notes("sensor"), "the roots")
    (agent.directory / "sensor" / "observe").touch()
    wait_for(lambda: agent.status()["workers"][1]["missed_observation_frames"] > 100, "frames to be left out", 30)
    (agent.worker_state / "deaf").unlink()
    wait_for(lambda: any("did not read" in line for line in agent.notes()), "Overflowed")
    assert agent.status()["failures"]["worker_not_reading"] >= 1


def test_a_sensor_that_was_restarted_makes_watchers_look_again(agent):
    agent.start(sensor(agent), agent.worker("--watch", "/etc"))
    wait_for(lambda: "roots /etc" in agent.notes("sensor"), "the roots")
    os.kill(agent.status()["workers"][0]["pid"], 9)
    wait_for(lambda: "overflowed sensor was started anew" in agent.notes(), "Overflowed")
    assert agent.notes("sensor").count("roots /etc") == 2


def test_only_one_agent_runs_with_a_state_directory(agent):
    agent.start(agent.worker())
    second = subprocess.run(
        [sys.executable, "-m", "keibi.agent.main", "--config", str(agent.config_path)], capture_output=True, text=True, timeout=20
    )
    assert second.returncode == 2
    assert f"another agent (process {agent.process.pid})" in second.stderr
    assert the_worker(agent)["state"] in ("starting", "running")


def test_a_wrong_configuration_is_told_in_one_line(agent):
    agent.configure(spool_max_byte=5)
    outcome = subprocess.run(
        [sys.executable, "-m", "keibi.agent.main", "--config", str(agent.config_path)], capture_output=True, text=True, timeout=20
    )
    assert outcome.returncode == 2
    assert "did you mean 'spool_max_bytes'?" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_control_socket_is_for_root_and_survives_nonsense(agent):
    agent.start(agent.worker())
    assert os.stat(agent.socket).st_mode & 0o777 == 0o600
    for junk in (b"not json\n", b"[]\n", b'{"do": "dance"}\n', b"x" * 200_000 + b"\n", b""):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(agent.socket)
            client.sendall(junk)
            client.shutdown(socket.SHUT_WR)
            client.settimeout(10)
            try:
                client.recv(1000)
            except ConnectionResetError:
                pass
    with pytest.raises(InputError, match="nothing to do called 'dance'"):
        agent.ask("dance")
    assert the_worker(agent)["state"] in ("starting", "running")


def test_workers_end_with_a_core_that_is_killed(agent):
    agent.start(agent.worker("--mute"))
    wait_for(lambda: agent.notes(), "the worker")
    pid = the_worker(agent)["pid"]
    agent.kill()
    wait_for(lambda: not is_alive(pid), "the worker to end though it does not read", 5)


def test_no_agent_is_told_as_such(agent):
    with pytest.raises(TryLaterError, match="no agent answers on this computer"):
        agent.ask("status")
