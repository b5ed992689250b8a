"""Starting and stopping Keibi's programs on a computer without systemd: a process id file, a log file, and nothing else.

A process id file holds the id and the start time of the process, so that a number which the kernel gave to somebody else
meanwhile is never signalled.
"""

import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from keibi.errors import TryLaterError

MAX_LOG_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True)
class Daemon:
    """One program that `keibi up` starts."""

    name: str
    command: tuple[str, ...]
    pid_file: str
    log_file: str
    user: str = ""  # "" = the caller's

    def running_pid(self) -> int | None:
        """Return the process id if the program that the file tells of still runs."""
        try:
            with open(self.pid_file) as file:
                pid, started = file.read().split()
        except (OSError, ValueError):
            return None
        return int(pid) if _start_time(int(pid)) == started else None

    def start(self) -> int:
        """Start the program in a session of its own, with its output appended to the log; return its process id."""
        if (running := self.running_pid()) is not None:
            return running
        os.makedirs(os.path.dirname(self.log_file), mode=0o755, exist_ok=True)
        if os.path.exists(self.log_file) and os.path.getsize(self.log_file) > MAX_LOG_BYTES:
            os.replace(self.log_file, self.log_file + ".1")
        account = pwd.getpwnam(self.user) if self.user else None
        with open(self.log_file, "ab") as log:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        os.makedirs(os.path.dirname(self.pid_file), mode=0o755, exist_ok=True)
        with open(self.pid_file, "w") as file:
            file.write(f"{process.pid} {_start_time(process.pid)}\n")
        # The parent ends soon and init adopts the program; without this Python would warn about a child left behind.
        process.returncode = 0
        return process.pid

    def stop(self, seconds: float = 15.0) -> bool:
        """Ask the program to end, insist after the deadline; return False if it did not run."""
        pid = self.running_pid()
        if pid is None:
            return False
        started = _start_time(pid)
        os.kill(pid, signal.SIGTERM)
        if not _wait_until(lambda: _has_ended(pid, started), seconds):
            os.kill(pid, signal.SIGKILL)
            if not _wait_until(lambda: _has_ended(pid, started), 5.0):
                raise TryLaterError("still_running", f"{self.name} (process {pid}) does not end, not even by SIGKILL")
        os.unlink(self.pid_file)
        return True

    def log_tail(self, lines: int = 12) -> str:
        """Return the last lines of the log, for a message about a program that did not come up."""
        try:
            with open(self.log_file, "rb") as file:
                file.seek(max(0, os.path.getsize(self.log_file) - 16384))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""


def python_module(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module of Keibi with this very Python."""
    return (sys.executable, "-m", module, *arguments)


def _has_ended(pid: int, started: str) -> bool:
    try:
        # A child of this very process stays as a zombie until it is waited for.
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return _start_time(pid) != started


def _start_time(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == b"Z" else fields[19].decode()


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
