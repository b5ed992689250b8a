"""Putting a policy in force with a real worker process, and limits that a test can wait for."""

import asyncio
import sys

from keibi.agent.content_fetch import ContentFetch, ContentStore
from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.policy_application import PolicyApplication
from keibi.agent.policy_store import PolicyStore
from keibi.agent.ports import Applied
from keibi.agent.status import StatusBoard
from keibi.agent.worker_link import WorkerLink, WorkerSpec
from keibi.contract.names import ModuleId
from tests.system.agent_run import WORKER, policy

INTEGRITY = ModuleId.INTEGRITY_MONITORING


async def apply_policies(tmp_path, policies, *, starts_worker=True):
    """Apply policies one after another (None: what the last run left) and return the store and the events that came of it."""
    spec = WorkerSpec(name="w", argv=(sys.executable, WORKER, str(tmp_path / "worker")), serves=INTEGRITY, module=INTEGRITY)
    store, files, events = PolicyStore(str(tmp_path), "1"), Lane("files"), []

    async def leave():
        return []

    async def emit(made):
        events.extend(made)

    application = PolicyApplication(
        [INTEGRITY],
        store,
        files,
        StatusBoard([spec]),
        Log(),
        leave_safe_mode=leave,
        emit=emit,
        content=ContentFetch(ContentStore(str(tmp_path)), files, Log()),
        on_change=lambda: None,
        workers_up_seconds=0.3,
        applied_seconds=0.5,
    )
    tasks = [asyncio.create_task(application.run())]
    link = await WorkerLink.start(spec) if starts_worker else None

    async def listen():
        async for message in link.messages():
            if isinstance(message, Applied):
                application.applied(INTEGRITY, message)

    try:
        if link is not None:
            application.module_is_up(INTEGRITY, link)
            tasks.append(asyncio.create_task(listen()))
        async with asyncio.timeout(20):
            for one in policies:
                if one is not None:
                    await application.receive(one)
                while store.candidate() is not None:
                    await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        if link is not None:
            await link.kill()
        files.close()
    return store, events


def test_a_worker_that_does_not_answer_counts_as_refusing(tmp_path):
    store, events = asyncio.run(apply_policies(tmp_path, [policy(1), policy(2, silent=True)]))
    assert store.in_force == policy(1)
    assert "did not answer within" in store.error
    assert [event.kind for event in events] == ["agent.policy_refused"]


def test_a_module_that_is_down_does_not_hold_a_policy_up(tmp_path):
    store, events = asyncio.run(apply_policies(tmp_path, [policy(5)], starts_worker=False))
    assert store.in_force == policy(5)
    assert events == []


def test_a_policy_the_agent_died_of_three_times_is_refused(tmp_path):
    store = PolicyStore(str(tmp_path), "1")
    store.receive(policy(8))
    for _ in range(3):
        store.begin_attempt(8)
    store, events = asyncio.run(apply_policies(tmp_path, [None]))
    assert store.in_force is None
    assert "ended 3 times while it applied" in store.error
    assert [event.kind for event in events] == ["agent.policy_refused"]
