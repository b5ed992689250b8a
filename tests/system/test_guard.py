"""The kernel guard at the level that this kernel takes. It looks only at a cgroup that each test makes for itself."""

import os
import signal
import subprocess
import sys
import time

import pytest

from keibi.agent.gate.guard import ENFORCE, GATED, MEMORY, REPORT, Guard, memory_device
from keibi.agent.gate.guard_maps import APPROVED

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loading kernel programs needs root")

MEMFD = """
import os, sys
program = os.memfd_create("keibi-test")
with open("/bin/true", "rb") as file:
    os.write(program, file.read())
os.execve(program, ["true"], {})
"""
FRESH_TMPFS = """
import os, shutil, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
shutil.copy("/bin/true", "/mnt/true")
os.execv("/mnt/true", ["true"])
"""

WAITING_TMPFS = """
import os, shutil, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
shutil.copy("/bin/true", "/mnt/true")
status = os.stat("/mnt/true")
print(status.st_dev, status.st_ino, flush=True)
sys.stdin.readline()
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
os.execv("/mnt/true", ["true"])
"""


@pytest.fixture
def guard(cgroup):
    loaded, reason = Guard.load()
    if loaded is None:
        pytest.skip(f"no level of the guard loads here: {reason}")
    for path in ("/", "/usr/bin", sys.prefix, os.path.realpath(sys.executable)):
        loaded.set_device(os.stat(path).st_dev, GATED)
    loaded.set_device(memory_device(), MEMORY)
    yield loaded
    loaded.configure(0, judges_maps=False)
    loaded.close()


def scope(cgroup: str) -> tuple[int, int]:
    return os.stat(cgroup).st_ino, 1


def run(cgroup: str, code: str, *prefix: str) -> int:
    def join() -> None:
        with open(f"{cgroup}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))

    return subprocess.run([*prefix, sys.executable, "-c", code], preexec_fn=join, timeout=30, check=False).returncode


def refused(code: int) -> bool:
    """Level A answers EPERM, with which Python ends by 1; level B kills."""
    return code in (1, -signal.SIGKILL)


def test_a_program_in_memory_does_not_run_and_is_told(guard, cgroup):
    guard.configure(ENFORCE, judges_maps=False, scope=scope(cgroup))
    assert refused(run(cgroup, MEMFD))
    assert guard.wait(5)
    [told] = guard.take_refusals()
    assert (told.kind, told.name, told.was_refused) == ("exec", b"memfd:keibi-test", True)
    assert told.device == memory_device()


def test_a_program_on_a_file_system_that_no_gate_saw_does_not_run(guard, cgroup):
    guard.configure(ENFORCE, judges_maps=False, scope=scope(cgroup))
    assert refused(run(cgroup, FRESH_TMPFS, "unshare", "--mount"))
    assert [told.name for told in guard.take_refusals()] == [b"true"]


def test_reporting_stops_nothing(guard, cgroup):
    guard.configure(REPORT, judges_maps=False, scope=scope(cgroup))
    assert run(cgroup, MEMFD) == 0
    [told] = guard.take_refusals()
    assert not told.was_refused


def test_what_was_approved_runs_wherever_it_lies(guard, cgroup):
    guard.configure(ENFORCE, judges_maps=False, scope=scope(cgroup))
    process = subprocess.Popen(
        ["unshare", "--mount", sys.executable, "-c", WAITING_TMPFS, cgroup],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    device, inode = map(int, process.stdout.readline().split())
    guard.files.set(device, inode, APPROVED)
    process.communicate("go\n", timeout=30)
    assert process.returncode == 0
    assert guard.take_refusals() == []


def test_outside_its_scope_the_guard_does_nothing(guard, cgroup):
    guard.configure(ENFORCE, judges_maps=False, scope=scope(cgroup))
    assert subprocess.run([sys.executable, "-c", MEMFD], timeout=30, check=False).returncode == 0


def test_when_the_agent_is_dead_everything_runs(guard, cgroup):
    guard.configure(ENFORCE, judges_maps=False, scope=scope(cgroup))
    assert refused(run(cgroup, MEMFD))
    deadline = time.monotonic() + 10
    while refused(run(cgroup, MEMFD)):  # nobody calls keep_alive any more
        assert time.monotonic() < deadline


def test_the_programs_end_with_their_owner(cgroup):
    code = f"""
import os, sys
from keibi.agent.gate.guard import *
guard, reason = Guard.load()
guard.configure(ENFORCE, judges_maps=False, scope=(os.stat({cgroup!r}).st_ino, 1))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGKILL
    assert run(cgroup, MEMFD) == 0
