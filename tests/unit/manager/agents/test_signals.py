"""Signals between managers, revocations on every node, and the watch over policies."""

import asyncio
import threading
import time

import pytest

from keibi.contract.names import new_id
from keibi.manager.access.model import NotSignedInError
from keibi.manager.agents.access_tokens import AccessTokens
from keibi.manager.agents.revocations import Revocations
from keibi.manager.agents.signals import MAX_IDS, SignalKind, Signals
from keibi.manager.agents.wake import WakeUps
from keibi.manager.database import Database


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def two_managers(postgresql_server):
    url = postgresql_server.new_migrated_database()
    databases = [Database(url), Database(url)]
    nodes = [Signals(database) for database in databases]
    for node in nodes:
        node.start()
    for node in nodes:
        assert node.is_listening.wait(10)
    yield nodes, databases
    for node in nodes:
        node.stop()
    for database in databases:
        database.dispose()
    postgresql_server.drop(url)


def test_what_one_manager_publishes_the_other_hears_once_within_a_second(two_managers):
    (first, second), _ = two_managers
    heard = []
    own = []
    first.subscribe(SignalKind.DUE, own.extend)
    second.subscribe(SignalKind.DUE, heard.extend)
    second.subscribe(SignalKind.REVOKED, lambda ids: pytest.fail("another kind"))
    ids = [new_id() for _ in range(3 * MAX_IDS)]
    started = time.monotonic()
    first.publish(SignalKind.DUE, ids)
    wait_for(lambda: len(heard) == len(ids))
    assert time.monotonic() - started < 1
    assert heard == ids
    assert own == ids


def test_a_computer_disabled_at_one_manager_is_refused_by_the_other(two_managers):
    (first, second), databases = two_managers
    here, there = Revocations(databases[0], first), Revocations(databases[1], second)
    tenant, computer = new_id(), new_id()
    tokens = AccessTokens(bytes(32))
    claims = tokens.check(tokens.issue(computer, tenant))
    there.check(claims)
    here.revoke(tenant, computer)
    with pytest.raises(NotSignedInError):
        here.check(claims)

    def is_refused():
        try:
            there.check(claims)
        except NotSignedInError:
            return True
        return False

    wait_for(is_refused)


def test_a_lost_connection_is_made_again(two_managers):
    (first, second), databases = two_managers
    heard = []
    second.subscribe(SignalKind.DUE, heard.extend)
    with databases[0].engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND pid <> pg_backend_pid()"
        )
    wait_for(lambda: not second.is_listening.is_set())
    wait_for(second.is_listening.is_set)
    first.publish(SignalKind.DUE, ["x"])
    wait_for(lambda: heard == ["x"])


def test_access_tokens_are_ours_whole_and_in_time():
    now = [1000.0]
    tokens = AccessTokens(bytes(32), lambda: now[0])
    computer, tenant = new_id(), new_id()
    token = tokens.issue(computer, tenant)
    claims = tokens.check(token)
    assert (claims.computer_id, claims.tenant_id) == (computer, tenant)
    for position in range(0, len(token), 7):
        other = "A" if token[position] != "A" else "B"
        with pytest.raises(NotSignedInError):
            tokens.check(token[:position] + other + token[position + 1 :])
    for junk in ("", token[:-1], token + "=", token.replace("-", "+"), "日本" * 60, "\x00" * len(token)):
        if junk != token:
            with pytest.raises(NotSignedInError):
                tokens.check(junk)
    with pytest.raises(NotSignedInError):
        AccessTokens(b"k" * 32, lambda: now[0]).check(token)
    now[0] += 900
    with pytest.raises(NotSignedInError, match="expired"):
        tokens.check(token)


def test_junk_tokens_are_refused_in_microseconds():
    tokens = AccessTokens(bytes(32))
    token = tokens.issue(new_id(), new_id())
    junk = ["A" * 107, "x" * 60, "x" * 5000, token[:-1] + ("Q" if token[-1] == "A" else "A")]
    started = time.process_time()
    for one in junk * 2500:
        with pytest.raises(NotSignedInError):
            tokens.check(one)
    assert (time.process_time() - started) / (len(junk) * 2500) < 0.0002


def test_a_second_wait_of_a_computer_ends_the_first_and_memory_is_given_back(database):
    async def scenario():
        wakes = WakeUps(Signals(database))
        wakes.attach(asyncio.get_running_loop())
        first = asyncio.create_task(wakes.wait("c", 30))
        await asyncio.sleep(0)
        second = asyncio.create_task(wakes.wait("c", 30))
        assert await asyncio.wait_for(first, 1) is False
        assert wakes.waiting_count == 1
        threading.Thread(target=wakes.wake, args=(["c", "d"],)).start()
        assert await asyncio.wait_for(second, 1) is True
        assert wakes.waiting_count == 0
        wakes.has_come("c")
        wakes.release_all()
        assert await wakes.wait("c", 30) is False

    asyncio.run(scenario())
