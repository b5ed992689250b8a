"""One world for each test: on both databases, or on SQLite alone where the database makes no difference."""

import shutil

import pytest

from keibi.manager.database import Database
from tests.unit.manager.policies.world import make_world


@pytest.fixture
def world(database):
    return make_world(database)


@pytest.fixture
def sqlite_world(tmp_path, sqlite_template):
    path = tmp_path / "manager.sqlite3"
    shutil.copyfile(sqlite_template, path)
    opened = Database(f"sqlite:///{path}")
    yield make_world(opened)
    opened.dispose()
