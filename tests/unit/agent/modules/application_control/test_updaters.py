"""A writer is trusted by the inode of a program that runs above it, never by a name."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from keibi.agent.linux.accounts import AccountNames
from keibi.agent.modules.application_control.updaters import Patience, Updaters
from keibi.agent.ports import Happening, Observation
from keibi.agent.process_book import ProcessBook
from keibi.contract.events import Actor
from keibi.protection.application_control.settings import ApplicationControlSettings

ENDED_PID = 4_194_304 + 7  # above every process id that the kernel gives
FLOCK = os.path.realpath(shutil.which("flock") or "/usr/bin/flock")
"""Stays while what it started runs. Not timeout: that may well run above these tests."""
pytestmark = pytest.mark.skipif(not os.path.exists(FLOCK) or os.stat(FLOCK).st_uid != 0, reason="flock is not root's here")


@pytest.fixture
def updater() -> Iterator[subprocess.Popen[bytes]]:
    """A deployment program that runs, with a child that waits."""
    process = subprocess.Popen([FLOCK, "/dev/null", "cat"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait(10)
    if process.stdin is not None:
        process.stdin.close()


def started(pid: int, parent: int) -> Observation:
    actor = Actor(process="/usr/bin/cp", pid=pid, uid=0, user="root", source="bpf", parent_pid=parent)
    return Observation(Happening.PROCESS_STARTED, b"/usr/bin/cp", time.time(), actor=actor)


def made(book: ProcessBook, **settings: object) -> Updaters:
    return Updaters(ApplicationControlSettings(**settings), book, Patience(seconds=0.0))  # type: ignore[arg-type]


def test_a_copying_program_that_has_ended_is_trusted_by_who_started_it(updater):
    book = ProcessBook(AccountNames())
    book.observe([started(ENDED_PID, updater.pid)])
    updaters = made(book, trusted_updaters=(FLOCK,))
    found = updaters.of(ENDED_PID, b"/srv/x")
    assert found is not None
    assert (found.process, found.package) == (FLOCK, False)
    assert made(book, trusted_updaters=("/usr/bin/other",)).of(ENDED_PID, b"/srv/x") is None
    assert made(book).of(ENDED_PID, b"/srv/x") is None


def test_what_an_updater_left_behind_is_trusted_no_more(updater):
    book = ProcessBook(AccountNames())
    book.remember(updater.pid)
    book.observe([started(ENDED_PID, updater.pid)])
    updater.kill()
    updater.wait(10)
    assert made(book, trusted_updaters=(FLOCK,)).of(ENDED_PID, b"/srv/x") is None


def test_a_copy_with_another_inode_is_no_updater(tmp_path):
    copy = tmp_path / "flock"
    shutil.copy(FLOCK, copy)
    process = subprocess.Popen([str(copy), "/dev/null", "cat"], stdin=subprocess.PIPE)
    try:
        book = ProcessBook(AccountNames())
        assert made(book, trusted_updaters=(FLOCK,)).of(process.pid, b"/srv/x") is None
        # Named itself, it is none either where others could exchange it.
        expected = all(not os.stat(parent).st_mode & 0o022 for parent in copy.parents)
        assert (made(book, trusted_updaters=(str(copy),)).of(process.pid, b"/srv/x") is not None) is expected
    finally:
        process.kill()
        process.wait(10)
        if process.stdin is not None:
            process.stdin.close()


def test_a_writer_that_nobody_knows_is_waited_for_until_that_was_in_vain_too_often():
    patience = Patience(seconds=0.01, most_failures=2, rest_seconds=60)
    updaters = Updaters(ApplicationControlSettings(), ProcessBook(AccountNames()), patience)
    assert updaters.of(ENDED_PID, b"/x") is None
    assert patience.seconds == 0.01
    assert updaters.of(ENDED_PID, b"/x") is None
    assert patience.seconds == 0.0
