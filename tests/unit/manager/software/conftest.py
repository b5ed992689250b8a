"""Two customers with policies on both databases, the real event store, and the service over them."""

from dataclasses import dataclass

import pytest

from keibi.contract.names import new_id
from keibi.manager.agents.commands import CommandService
from keibi.manager.agents.signals import Signals
from keibi.manager.computers.service import ComputerService
from keibi.manager.database import Database
from keibi.manager.events.store import EventStore
from keibi.manager.keys import UnlockSecrets
from keibi.manager.software.service import SoftwareService
from tests.unit.manager.events.conftest import event_daemon, event_store
from tests.unit.manager.policies.world import World, make_world
from tests.unit.manager.software.making import store_events

__all__ = ["event_daemon", "event_store"]

SECRETS = UnlockSecrets(bytes(range(32)))


@dataclass
class SoftwareWorld:
    """A world in which computers tell of software."""

    world: World
    store: EventStore
    software: SoftwareService
    commands: CommandService

    @property
    def alice(self):
        return self.world.alice

    @property
    def tenant_id(self):
        return self.world.tenant_id

    def tell(self, computer_id, *events, tenant_id=""):
        store_events(self.store, tenant_id or self.tenant_id, computer_id, *events)


def make(database: Database, store: EventStore) -> SoftwareWorld:
    world = make_world(database)
    computers = ComputerService(database, world.audit)
    commands = CommandService(database, world.audit, Signals(database))
    software = SoftwareService(database, world.audit, world.rules, world.policies, computers, commands, store, SECRETS)
    return SoftwareWorld(world, store, software, commands)


@pytest.fixture
def world(database, event_store):
    """On SQLite and on PostgreSQL."""
    return make(database, event_store)


@pytest.fixture
def sqlite_world(sqlite_template, tmp_path, event_store):
    """On SQLite only, where the database makes no difference."""
    import shutil

    path = tmp_path / "manager.sqlite3"
    shutil.copyfile(sqlite_template, path)
    opened = Database(f"sqlite:///{path}")
    yield make(opened, event_store)
    opened.dispose()


@pytest.fixture
def tenant():
    return new_id()
