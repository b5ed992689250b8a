"""What tests of the gate and of those who judge share."""

import contextlib
import os
import time

import pytest


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
