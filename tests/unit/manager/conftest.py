"""Databases and a small world for every test of the manager."""

import pytest

from tests.manager_fixtures import database, database_url, postgresql_server, sqlite_template
from tests.unit.manager.making import World

__all__ = ["database", "database_url", "postgresql_server", "sqlite_template"]


@pytest.fixture
def world(database):
    return World(database)
