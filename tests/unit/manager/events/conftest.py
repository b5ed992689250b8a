"""One real event store for all tests here; each test has tenants of its own, so that none sees another's events."""

import time

import pytest

from keibi.contract.names import new_id
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database
from keibi.manager.events.client import ClickHouse
from keibi.manager.events.columns import Arrived, convert
from keibi.manager.events.daemon import EventDaemon
from keibi.manager.events.service import EventService
from keibi.manager.events.store import EventStore
from keibi.manager.schema import complete_metadata
from tests.unit.manager.events.making import Groups


@pytest.fixture(scope="session")
def event_daemon(tmp_path_factory):
    daemon = EventDaemon(tmp_path_factory.mktemp("events") / "store")
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="session")
def event_store(event_daemon):
    client = ClickHouse(event_daemon.url, key=event_daemon.key)
    store = EventStore(client)
    store.prepare()
    yield store
    client.close()


@pytest.fixture(scope="session")
def state(tmp_path_factory):
    """The manager's state database, which the events feature uses for retention rules and the audit trail."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('state')}/manager.sqlite3")
    complete_metadata().create_all(database.engine)
    yield database
    database.dispose()


@pytest.fixture
def groups():
    return Groups()


@pytest.fixture
def events(event_store, state, groups):
    return EventService(event_store, state, AuditService(state), computers=groups)


@pytest.fixture
def tenant():
    return new_id()


@pytest.fixture
def keep(event_store, tenant):
    """Store events as the manager does, for one computer of the test's tenant."""

    def keep_events(*made, computer_id="c" * 32, tenant_id=None, now=None):
        columns = convert([Arrived(tenant_id or tenant, computer_id, made)], time.time() if now is None else now)
        return event_store.insert(columns)

    return keep_events
