"""No event is lost, whoever dies; none is there twice."""

import time

import pytest

from keibi.contract.commands import Command, CommandKind
from keibi.contract.names import ModuleId
from tests.system.agent_manager import Authority, ManagerState, TestManager
from tests.system.agent_run import AgentRun, core_memory_bytes, is_alive, policy, wait_for


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def manager(authority):
    running = TestManager(ManagerState(), authority.server_files())
    yield running
    running.kill()


@pytest.fixture
def agent(tmp_path):
    run = AgentRun(tmp_path)
    yield run
    run.stop()
    print(run.log())


def wait_for_events(manager, count):
    wait_for(lambda: len(manager.state.events) >= count, f"{count} events", 40)


def wait_until_ended(pids):
    wait_for(lambda: not any(is_alive(pid) for pid in pids), "workers to end with the core")


def test_a_command_arrives_and_its_event_is_at_the_manager_within_a_second(agent, manager, authority):
    agent.enrol(manager.url, authority.pem)
    agent.start(agent.worker())
    wait_for(lambda: agent.status()["manager"]["is_connected"], "the connection")
    wait_for(lambda: manager.state.sign_in_count, "the sign-in")
    sent_at = time.time()
    manager.state.send(Command("c1", CommandKind.SCAN, ModuleId.INTEGRITY_MONITORING, {"emit": 1}))
    wait_for(lambda: manager.state.events, "the event")
    (event,) = manager.state.events.values()
    arrived_at = manager.state.arrived_at[event.event_id]
    print(f"command to event {event.detected_at - sent_at:.3f} s, event to manager {arrived_at - event.detected_at:.3f} s")
    assert event.detected_at - sent_at < 1.0
    assert arrived_at - event.detected_at < 1.0
    assert manager.state.sign_in_count == 1


def test_the_core_stays_below_60_mib(agent, manager, authority):
    agent.enrol(manager.url, authority.pem)
    agent.start(agent.worker("--events", "20000"))
    wait_for(lambda: len(manager.state.events) == 20000, "the events", 60)
    used = core_memory_bytes(agent.process.pid)
    print(f"core uses {used / 1024**2:.1f} MiB after 20,000 events")
    assert used < 60 * 1024 * 1024


def test_killing_the_core_in_mid_burst_loses_nothing_and_doubles_nothing(agent, manager, authority):
    agent.enrol(manager.url, authority.pem)
    worker = agent.worker("--events", "20000")
    for at_least in (1000, 6000):
        agent.start(worker)
        wait_for_events(manager, at_least)
        pids = [entry["pid"] for entry in agent.status()["workers"]]
        agent.kill()
        assert len(manager.state.events) < 20000
        wait_until_ended(pids)
    agent.start(worker)
    wait_for(lambda: len(manager.state.events) >= 20000, "all events", 60)
    assert set(manager.state.events) == agent.born()
    assert len(manager.state.events) == 20000
    wait_for(lambda: agent.status()["agent"]["spool"]["waiting_count"] == 0, "an empty spool")


def test_a_manager_that_is_killed_and_comes_back_gets_everything_once(agent, manager, authority):
    agent.enrol(manager.url, authority.pem)
    agent.start(agent.worker("--events", "12000"))
    wait_for(lambda: len(manager.state.events) >= 1000, "events", 40)
    manager.kill()
    wait_for(lambda: len(agent.born()) == 12000, "the burst to end while the manager is down", 40)
    assert agent.status()["manager"]["is_connected"] is False
    again = TestManager(manager.state, authority.server_files(), manager.port)
    try:
        wait_for(lambda: len(manager.state.events) >= 12000, "all events", 60)
        assert set(manager.state.events) == agent.born()
    finally:
        agent.stop()
        again.kill()


def test_a_receipt_that_is_lost_makes_the_same_batch_come_again(agent, manager, authority):
    manager.state.lose_receipts = 1
    agent.enrol(manager.url, authority.pem)
    agent.start(agent.worker("--events", "10"))
    wait_for(lambda: len(manager.state.batches) >= 2 and agent.status()["agent"]["spool"]["waiting_count"] == 0, "a second try")
    assert manager.state.batches[0] == manager.state.batches[1]
    assert len(manager.state.events) == 10


def test_busy_is_waited_out_and_the_events_stay(agent, manager, authority):
    manager.state.faults["/agent/v1/events"] = (503, {"Retry-After": "1"}, b"")
    agent.enrol(manager.url, authority.pem)
    agent.start(agent.worker("--events", "10"))
    wait_for(lambda: "manager_busy" in agent.log(), "the answer 503")
    assert agent.status()["agent"]["spool"]["waiting_count"] == 10
    del manager.state.faults["/agent/v1/events"]
    wait_for(lambda: len(manager.state.events) == 10, "the events")


def test_an_event_that_the_manager_refuses_does_not_hold_up_the_others(agent, manager, authority):
    manager.state.refused_subjects.add("/e/37")
    agent.enrol(manager.url, authority.pem)
    agent.start(agent.worker("--events", "200"))
    wait_for(lambda: len(manager.state.events) >= 200, "199 events and a report", 30)
    kinds = [event.kind for event in manager.state.events.values()]
    assert kinds.count("file.updated") == 199
    assert kinds.count("agent.event_refused") == 1


def test_without_a_manager_events_wait_on_disk_until_there_is_one(agent, manager, authority):
    agent.start(agent.worker("--events", "300"))
    wait_for(lambda: agent.status()["agent"]["spool"]["waiting_count"] == 300, "events in the spool")
    assert agent.status()["manager"]["is_connected"] is False
    agent.enrol(manager.url, authority.pem)  # the running agent takes the identity up
    wait_for(lambda: len(manager.state.events) == 300, "the events")


def test_stopping_is_orderly_and_quick(agent, manager, authority):
    agent.enrol(manager.url, authority.pem)
    manager.state.policy = policy(1)
    agent.start(agent.worker("--events", "100"))
    wait_for(lambda: len(manager.state.events) == 100, "the events")
    wait_for(lambda: manager.state.heartbeats, "a heartbeat")
    assert agent.stop() == 0
    assert "stopped" in agent.notes()
    assert "agent has stopped" in agent.log()
    assert (agent.state / "starts.json").read_text() == "[]"
