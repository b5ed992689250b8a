"""The audit trail: complete, chained, and told when somebody touched it."""

import threading

import pytest
from sqlalchemy.exc import DBAPIError

from keibi.errors import AccessError
from keibi.manager.audit.model import AuditFilter
from keibi.manager.database import Scope


def record(world, count=1, action="test.act", tenant_id=None):
    tenant_id = tenant_id or world.home
    scope = Scope(frozenset({tenant_id}), "user:tester")
    for number in range(count):
        with world.database.session(scope) as session:
            world.audit.record(session, scope, action, "thing", f"{number}", f"Did {number}.", {"z": 1, "a": [number, None]})


def by_hand(world, statement, *, past_trigger=True):
    """Do what an intruder with the database's password would do."""
    with world.database.engine.begin() as connection:
        if world.database.is_postgresql:
            connection.exec_driver_sql("SELECT set_config('keibi.tenants', '*', true)")
            if past_trigger:
                connection.exec_driver_sql("ALTER TABLE audit_records DISABLE TRIGGER audit_records_append_only")
        elif past_trigger:
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS audit_records_no_update")
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS audit_records_no_delete")
        assert connection.exec_driver_sql(statement).rowcount >= 1


def verify(world, tenant_id=None):
    return world.audit.verify(world.provider, tenant_id or world.home)


def test_an_untouched_chain_is_intact(world):
    record(world, 30)
    found = verify(world)
    assert found.is_intact
    assert found.record_count >= 30
    assert len(found.head_hash) == 64


@pytest.mark.parametrize("column", ["summary", "actor", "action", "target_id", "detail"])
def test_a_changed_record_is_found(world, column):
    record(world, 5)
    count = verify(world).record_count
    by_hand(world, f"UPDATE audit_records SET {column} = 'x' WHERE number = {count - 2}")
    found = verify(world)
    assert not found.is_intact
    assert found.first_bad_number == count - 2
    assert "changed" in found.reason


def test_a_removed_record_is_found_wherever_it_was(world):
    record(world, 6)
    count = verify(world).record_count
    by_hand(world, f"DELETE FROM audit_records WHERE number = {count - 3}")
    provider = world.provider
    assert world.audit.verify(provider, world.home).reason == f"record {count - 3} is missing"
    by_hand(world, f"DELETE FROM audit_records WHERE number >= {count - 3}")
    found = world.audit.verify(provider, world.home)
    assert not found.is_intact
    assert found.reason == f"records after {count - 4} are missing"


def test_a_moved_record_is_found(world):
    record(world, 4)
    other = world.tenant("Other")
    record(world, 4, tenant_id=other)
    count = verify(world, other).record_count
    by_hand(world, f"UPDATE audit_records SET at = at + 1 WHERE number = {count} AND tenant_id = '{other}'")
    assert not verify(world, other).is_intact
    assert verify(world).is_intact


@pytest.mark.parametrize("statement", ["UPDATE audit_records SET summary = 'x'", "DELETE FROM audit_records"])
def test_the_table_itself_refuses_changes(world, statement):
    record(world, 2)
    with pytest.raises(DBAPIError, match="append-only"):
        by_hand(world, statement, past_trigger=False)
    assert verify(world).is_intact


def test_many_writers_at_once_make_one_chain(world):
    before = verify(world).record_count
    threads = [threading.Thread(target=record, args=(world, 5)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = verify(world)
    assert found.is_intact
    # Verifying itself signs the provider in, which is recorded too.
    assert found.record_count == before + 30 + 1


def test_what_was_rolled_back_leaves_no_record(world):
    scope = Scope(frozenset({world.home}), "user:tester")
    with pytest.raises(ZeroDivisionError), world.database.session(scope) as session:  # noqa: PT012
        world.audit.record(session, scope, "test.never", "thing", "1", "Never.")
        raise ZeroDivisionError
    assert world.audit.list(world.provider, AuditFilter(action="test.never")).items == []
    assert verify(world).is_intact


def test_the_list_filters_and_pages(world):
    record(world, 7)
    record(world, 3, action="other.act")
    provider = world.provider
    page = world.audit.list(provider, AuditFilter(action="test.*"), None, 5)
    assert page.total == 7
    assert [entry.target_id for entry in page.items] == ["6", "5", "4", "3", "2"]
    page = world.audit.list(provider, AuditFilter(action="test.*"), page.next_cursor, 5)
    assert [entry.target_id for entry in page.items] == ["1", "0"]
    assert page.next_cursor is None
    assert page.items[0].detail == {"a": [1, None], "z": 1}
    assert world.audit.list(provider, AuditFilter(action="other.act", target_id="2")).total == 1
    assert world.audit.list(provider, AuditFilter(text="did 1")).total == 2


def test_a_tenants_trail_is_its_own(world):
    acme = world.tenant("Acme")
    anna = world.person(acme, "anna", "administrator")
    record(world, 3)
    assert {entry.tenant_id for entry in world.audit.list(anna).items} == {acme}
    with pytest.raises(AccessError):
        world.audit.verify(anna, world.home)
    operator = world.person(acme, "otto")
    with pytest.raises(AccessError):
        world.audit.list(operator)
