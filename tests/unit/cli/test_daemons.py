import os
import sys

import pytest

from keibi.cli.daemons import Daemon


@pytest.fixture
def sleeper(tmp_path):
    daemon = Daemon(
        "sleeper",
        (sys.executable, "-u", "-c", "import os,time; print('uid', os.getuid()); time.sleep(60)"),
        str(tmp_path / "run" / "sleeper.pid"),
        str(tmp_path / "log" / "sleeper.log"),
    )
    yield daemon
    daemon.stop()


def test_a_daemon_starts_once_and_stops(sleeper):
    pid = sleeper.start()
    assert sleeper.running_pid() == pid
    assert sleeper.start() == pid
    assert sleeper.stop()
    assert sleeper.running_pid() is None
    assert not sleeper.stop()


def test_a_process_id_that_the_kernel_gave_to_somebody_else_is_left_alone(sleeper):
    os.makedirs(os.path.dirname(sleeper.pid_file))
    with open(sleeper.pid_file, "w") as file:
        file.write(f"{os.getpid()} 1\n")
    assert sleeper.running_pid() is None
    assert not sleeper.stop()


def test_its_words_are_kept_for_whoever_must_know_why_it_died(tmp_path):
    daemon = Daemon("dying", (sys.executable, "-c", "raise SystemExit('no disk')"), str(tmp_path / "pid"), str(tmp_path / "log"))
    pid = daemon.start()
    os.waitpid(pid, 0)
    assert daemon.running_pid() is None
    assert "no disk" in daemon.log_tail()
