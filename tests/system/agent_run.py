"""Starting, asking and ending a real agent core in tests."""

import asyncio
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import msgspec

from keibi.agent.config import load_config
from keibi.agent.control import request
from keibi.agent.enrolment import enrol
from keibi.contract.names import ModuleId
from keibi.contract.policy import EffectivePolicy, ModulePolicy, ModuleState
from keibi.errors import KeibiError

HERE = pathlib.Path(__file__).parent
WORKER = str(HERE / "agent_worker_program.py")


def wait_for(condition, what: str, seconds: float = 20.0):
    """Return the first true value of `condition()`; fails when there is none in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def policy(generation: int, state: ModuleState = ModuleState.REAL_TIME, **settings) -> EffectivePolicy:
    part = ModulePolicy(ModuleId.INTEGRITY_MONITORING, state, msgspec.json.encode(settings))
    return EffectivePolicy(generation, "Base", [part])


class AgentRun:
    """A state directory, and the core processes that run with it one after another."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.worker_state = directory / "worker"
        self.socket = str(directory / "agent.sock")
        self.config_path = directory / "agent.toml"
        self.log_path = directory / "log"
        self.process: subprocess.Popen | None = None
        self.configure()

    def configure(self, **settings) -> None:
        lines = {"state_directory": str(self.state), "socket_path": self.socket, "log_level": "debug", **settings}
        self.config_path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))

    @property
    def config(self):
        return load_config(str(self.config_path), must_exist=True)

    def enrol(self, manager_url: str, ca_pem: str, token: str = "good-token", **options):
        return enrol(self.config, manager_url, token, ca_pem, **options)

    def worker(self, *arguments: str, **values) -> dict:
        return {"name": "integrity_monitoring", "argv": [WORKER, str(self.worker_state), *arguments], **values}

    def start_only(self, *workers: dict) -> None:
        log = self.log_path.open("a")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "agent_core_program.py"), str(self.config_path), json.dumps(workers)],
            stderr=log,
            stdout=log,
        )
        log.close()

    def start(self, *workers: dict) -> "AgentRun":
        self.start_only(*workers)
        wait_for(lambda: self.process.poll() is not None or self.answers(), "the agent's control socket")
        assert self.process.poll() is None, self.log()
        return self

    def answers(self) -> bool:
        try:
            self.ask("status")
        except KeibiError:
            return False
        return True

    def ask(self, do: str, **values) -> dict:
        return asyncio.run(request(self.socket, {"do": do, **values}, timeout_seconds=15.0))

    def status(self) -> dict:
        return self.ask("status")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        if self.process is None or self.process.poll() is not None:
            return -1
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def notes(self, name: str = "worker") -> list[str]:
        path = self.directory / name / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def born(self) -> set[str]:
        with sqlite3.connect(self.worker_state / "outbox.db") as connection:
            found = {row[0] for row in connection.execute("SELECT event_id FROM born")}
        connection.close()
        return found


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def core_memory_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
