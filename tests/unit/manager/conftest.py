"""Databases, a small world, and a whole manager for every test of the manager."""

import pytest

from tests.manager_fixtures import database, database_url, postgresql_server, sqlite_template
from tests.manager_running import client, manager, shared_event_daemon
from tests.unit.manager.making import World

__all__ = [
    "client",
    "database",
    "database_url",
    "manager",
    "postgresql_server",
    "shared_event_daemon",
    "sqlite_template",
]


@pytest.fixture
def world(database):
    return World(database)
