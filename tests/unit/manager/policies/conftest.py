"""One world for each test."""

import pytest

from tests.unit.manager.policies.world import make_world


@pytest.fixture
def world(database):
    return make_world(database)
