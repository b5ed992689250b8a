"""Detect mode with the gate as the core runs it: everything runs, everything that prevent mode would stop is told of."""

import asyncio
import os
import pathlib
import subprocess
import sys

import pytest

from keibi.contract.policy import ModuleState
from keibi.protection.application_control.rules import RuleAction
from tests.system.application_control_worker import ApplicationControlWorker, hash_entry, ruleset
from tests.system.test_gate_and_core import RunningGate, running_gate

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="file events need root"),
    pytest.mark.timeout(60),
]

TRUE = pathlib.Path(os.path.realpath("/bin/true")).read_bytes()


def place_file(gate: RunningGate, place: str, name: str, content: bytes) -> str:
    path = pathlib.Path(f"/proc/{gate.link.pid}/root{place}/{name}")
    path.write_bytes(content)
    path.chmod(0o755)
    return f"{place}/{name}"


STRANGER = """
import os, subprocess, sys, time
parent = os.getpid()
if os.fork():
    os._exit(0)
until = time.monotonic() + 10
while os.getppid() == parent and time.monotonic() < until:
    time.sleep(0.001)
try:
    print(subprocess.run([sys.argv[1]], check=False).returncode, flush=True)
except OSError:
    print(126, flush=True)
"""
"""Runs a program as no descendant of this test, which the gate takes for the core."""


def run_inside(gate: RunningGate, path: str) -> int:
    enter = ["nsenter", f"--mount=/proc/{gate.link.pid}/ns/mnt", "--", sys.executable, "-c", STRANGER, path]
    return int(subprocess.run(enter, capture_output=True, timeout=20, check=True).stdout)


def test_unknown_software_runs_and_is_told_of(tmp_path):
    known = tmp_path / "known"
    known.mkdir()
    (known / "program").write_bytes(TRUE)
    (known / "program").chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    tmp_path.chmod(0o755)
    worker = ApplicationControlWorker(str(tmp_path / "agent"), roots=(str(known),))

    async def scenario() -> None:
        async with running_gate(worker.judges, str(place)) as gate:
            good = place_file(gate, str(place), "good", TRUE)
            bad = place_file(gate, str(place), "bad", TRUE + b"unknown")
            for _ in range(10):
                assert run_inside(gate, good) == 0
                assert run_inside(gate, bad) == 0
            event = worker.next_event("software.would_block", bad)
            assert event.details["reason_code"] == "unrecognised"
            assert "is_proof" not in event.details
            worker.next_event("software.appeared", bad)
            assert worker.events_of("software.would_block", good) == []
            assert len(worker.events_of("software.would_block")) == 1
            # A block rule holds in detect mode too: then, and only then, programs are held.
            worker.configure(ruleset(RuleAction.BLOCK, hash_entry(TRUE + b"unknown")), state=ModuleState.DETECT)
            await gate.until(lambda: run_inside(gate, bad) == 126, "the gate holds programs", 20)
            assert run_inside(gate, good) == 0
            assert worker.next_event("software.blocked", bad).rule_id == "ac-test"
            worker.configure(state=ModuleState.OFF)
            await gate.until(lambda: run_inside(gate, bad) == 0, "the gate lets everything run")

    try:
        worker.configure(state=ModuleState.DETECT)
        asyncio.run(scenario())
    finally:
        worker.stop()
