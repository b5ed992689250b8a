"""What tests of the gate, of those who judge and of the whole agent share."""

import contextlib
import os
import time
from collections.abc import Iterator

import pytest

from tests.system.agent_manager import Authority, ManagerState, TestManager


@pytest.fixture
def manager(tmp_path) -> Iterator[TestManager]:
    """The manager's side of the agents' protocol, with an authority of its own."""
    authority = Authority(tmp_path)
    running = TestManager(ManagerState(), authority.server_files())
    running.authority = authority
    yield running
    running.kill()


@pytest.fixture
def judges(tmp_path) -> str:
    """Where judges listen."""
    (tmp_path / "judges").mkdir()
    return str(tmp_path / "judges")


@pytest.fixture
def place(tmp_path) -> str:
    """A folder for a private mount, which every user may enter."""
    tmp_path.chmod(0o755)
    (tmp_path / "place").mkdir()
    return str(tmp_path / "place")


@pytest.fixture
def cgroup():
    """A fresh cgroup directly below the root of the unified hierarchy."""
    with open("/proc/mounts") as mounts:
        root = next((line.split()[1] for line in mounts if line.split()[2] == "cgroup2"), None)
    if root is None:
        pytest.skip("no cgroup v2 hierarchy is mounted here")
    path = os.path.join(root, f"keibi-guard-{os.getpid()}")
    os.mkdir(path)
    yield path
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.rmdir(path)
            return
