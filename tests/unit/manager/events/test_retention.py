"""How long events are kept."""

import time

import pytest

from keibi.contract.names import ModuleId, new_id
from keibi.errors import AccessError, InputError
from keibi.manager.events.client import ClickHouse
from keibi.manager.events.daemon import EventDaemon
from keibi.manager.events.model import EventQuery
from keibi.manager.events.store import EventStore
from tests.unit.manager.events.making import an_event, principal

DAY = 86400.0


@pytest.fixture(scope="module")
def event_store(tmp_path_factory):
    """A store of their own: retention looks at every day of every tenant, and other tests leave many."""
    daemon = EventDaemon(tmp_path_factory.mktemp("retention") / "store")
    daemon.start()
    client = ClickHouse(daemon.url, key=daemon.key)
    store = EventStore(client)
    store.prepare()
    yield store
    client.close()
    daemon.stop()


def ages(events, tenant, now):
    rows = events.search(principal(tenant), EventQuery(), limit=1000).items
    return sorted(round((now - row.detected_at) / DAY) for row in rows)


def hourly(event_store, tenant):
    sql = "SELECT sum(count) FROM keibi.events_hourly WHERE tenant_id = {tenant:String}"
    return int(event_store.client.raw(sql, {"tenant": tenant}))


def test_without_a_rule_events_are_kept_for_ninety_days(events, event_store, keep, tenant):
    now = time.time()
    keep(*[an_event(at=now - age * DAY) for age in (1, 30, 89, 92, 200)])
    outcome = events.retention.apply_retention(now)
    assert outcome.removed_count >= 2
    assert outcome.dropped_days == tuple(sorted(outcome.dropped_days))
    assert ages(events, tenant, now) == [1, 30, 89]
    assert hourly(event_store, tenant) == 3
    assert events.retention.apply_retention(now).removed_count == 0


def test_each_tenant_and_module_has_its_own_rule(events, event_store, keep, tenant):
    now, other = time.time(), new_id()
    for tenant_id in (tenant, other):
        for module in (ModuleId.INTEGRITY_MONITORING, ModuleId.LOG_INSPECTION):
            keep(*[an_event(at=now - age * DAY, module=module) for age in (3, 10, 40, 120)], tenant_id=tenant_id)
    asker = principal(tenant)
    events.retention.change(asker, None, 30)
    events.retention.change(asker, ModuleId.LOG_INSPECTION, 5)
    events.retention.change(asker, ModuleId.FIREWALL, 365)  # nothing is dropped by the day before a year is over
    events.retention.apply_retention(now)
    assert ages(events, tenant, now) == [3, 3, 10]
    assert ages(events, other, now) == [3, 3, 10, 10, 40, 40]
    assert (hourly(event_store, tenant), hourly(event_store, other)) == (3, 6)
    events.retention.change(asker, ModuleId.FIREWALL, None)
    assert [(rule.module, rule.days) for rule in events.retention.rules(asker)] == [(None, 30), (ModuleId.LOG_INSPECTION, 5)]


def test_tags_of_removed_events_go_with_them(events, event_store, keep, tenant):
    now = time.time()
    old, new = an_event(at=now - 100 * DAY), an_event(at=now)
    keep(old, new)
    asker = principal(tenant)
    events.tags.add(asker, [old.event_id, new.event_id], "kept")
    events.retention.apply_retention(now)
    left = event_store.client.raw("SELECT count() FROM keibi.event_tags WHERE tenant_id = {tenant:String}", {"tenant": tenant})
    assert left == b"1\n"
    assert events.get(asker, new.event_id).tags == ("kept",)


def test_a_tenant_without_rules_is_shown_the_default(events, tenant):
    (rule,) = events.retention.rules(principal(tenant))
    assert (rule.tenant_id, rule.module, rule.days, rule.is_default) == (tenant, None, 90, True)


@pytest.mark.parametrize("days", [0, -1, 3661])
def test_a_number_of_days_that_cannot_be_is_refused(events, tenant, days):
    with pytest.raises(InputError, match="1 to 3660 days"):
        events.retention.change(principal(tenant), None, days)


def test_whoever_may_not_edit_settings_cannot_change_it(events, tenant):
    with pytest.raises(AccessError):
        events.retention.change(principal(tenant, role="operator"), None, 10)
    with pytest.raises(InputError, match="choose a customer"):
        events.retention.change(principal(tenant, new_id()), None, 10)
