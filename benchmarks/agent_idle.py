"""Measures what protecting this computer costs: the agent's processes at rest, and while a hundred files a second change.

    python benchmarks/agent_idle.py --seconds 15

The real agent (core, sensor, integrity worker) with the shipped policy for this computer's system, enrolled at a real manager,
all in a temporary directory; needs root. It is measured after its first baseline is built: at rest, while files change of which
no rule tells (the kernel reports them, the sensor drops them), and while files change that one more rule, of the lowest
severity, watches. *CPU* is of one core. Other programs that change watched files at the same time are measured too.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from heartbeats import RunningManager, children_of, cpu_of, end, memory_of, running_manager
from keibi.agent.config import load_config
from keibi.agent.enrolment import enrol

GOAL_CORE_MEGABYTES = 60
CHANGES_A_SECOND = 100
FILES = 200
BASELINE_SECONDS = 60.0
ARRIVAL_SECONDS = 15.0
RULE = """\
id: im-own-benchmark
version: 1
title: {{en: Files of the benchmark}}
description: {{en: Files that the benchmark changes.}}
severity: low
entities:
  - type: file
    base: {folder}
"""


@dataclass(frozen=True)
class Process:
    name: str
    pid: int


def processes_of(core: int) -> list[Process]:
    found = [Process("core", core)]
    for pid in children_of(core):
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = next((word.decode() for word in words if word.startswith(b"keibi.agent")), "other")
        found.append(Process(name.removeprefix("keibi.agent.").removeprefix("modules.").removesuffix(".worker"), pid))
    return found


def change_files(folder: pathlib.Path, seconds: float) -> int:
    """Write so many small files a second as wanted, or as many as this computer lets us; return how many it were."""
    started, done = time.monotonic(), 0
    while (now := time.monotonic()) - started < seconds:
        if (wait := started + done / CHANGES_A_SECOND - now) > 0:
            time.sleep(wait)
        (folder / f"file-{done % FILES}").write_text(f"change {done} of the benchmark\n")
        done += 1
    return done


def cpu_shares(processes: list[Process], act: Any) -> tuple[list[float], Any]:
    """Return the share of a core that each process takes while `act` runs, and what that returns."""
    before, started = [cpu_of(process.pid) for process in processes], time.monotonic()
    outcome = act()
    seconds = time.monotonic() - started
    return [(cpu_of(process.pid) - spent) / seconds for process, spent in zip(processes, before, strict=True)], outcome


def wait_for_baseline(
    manager: RunningManager, computer_id: str, agent: subprocess.Popen[bytes], log: pathlib.Path
) -> dict[str, Any]:
    """Return the module's status once its first scan is over and the worker is at rest."""
    deadline = time.monotonic() + BASELINE_SECONDS
    while time.monotonic() < deadline:
        if agent.poll() is not None:
            sys.exit(f"the agent ended:\n{log.read_text()[-3000:]}")
        modules = (manager.api.get(f"/computers/{computer_id}").get("status") or {}).get("modules", [])
        done = [module for module in modules if module["metrics"].get("last_scan_at")]
        if done:
            shares, _ = cpu_shares(processes_of(agent.pid), lambda: time.sleep(2))
            if sum(shares) < 0.3:
                module: dict[str, Any] = done[0]
                return module
        time.sleep(0.5)
    print(f"\nThe first scan, or what came after it, was not over within {BASELINE_SECONDS:.0f} s: the figures are too high.\n")
    return modules[0] if modules else {"metrics": {}, "rule_count": 0, "health": "unknown"}


def arrived(manager: RunningManager, computer_id: str, wanted: int) -> tuple[int, float]:
    """Return how many events of our rule are at the manager once no more come, and after how many seconds the last came."""
    started, last, count, since = time.monotonic(), 0.0, -1, time.monotonic()
    while time.monotonic() - started < ARRIVAL_SECONDS and time.monotonic() - since < 3 and count < wanted:
        now = manager.api.get("/events/count", computer=computer_id, rule="im-own-benchmark")["event_count"]
        if now != count:
            count, since, last = now, time.monotonic(), time.monotonic() - started
        time.sleep(0.1)
    return count, last


def measure(manager: RunningManager, directory: pathlib.Path, seconds: float) -> None:
    for name in ("agent", "watched", "unwatched"):
        (directory / name).mkdir(mode=0o700 if name == "agent" else 0o755)
    config_file = directory / "agent.toml"
    config_file.write_text(f'state_directory = "{directory}/agent"\nsocket_path = "{directory}/agent.sock"\n')
    computer_id = enrol(load_config(str(config_file)), manager.url, manager.make_token(1), manager.ca_pem).computer_id
    manager.api.post("/rules", {"text": RULE.format(folder=directory / "watched")})
    change = {"modules": {"integrity_monitoring": {"rules": {"im-own-benchmark": {"is_assigned": True}}}}, "expected_version": 0}
    manager.api.call("PATCH", f"/policies/computers/{computer_id}", body=change)
    log = directory / "agent.log"
    started = time.monotonic()
    with open(log, "wb") as file:
        command = [sys.executable, "-m", "keibi.agent.main", "--config", str(config_file)]
        agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd="/")
    try:
        module = wait_for_baseline(manager, computer_id, agent, log)
        ready = time.monotonic() - started
        processes = processes_of(agent.pid)
        at_rest, _ = cpu_shares(processes, lambda: time.sleep(seconds))
        rested = [memory_of(process.pid) for process in processes]
        unwatched, _ = cpu_shares(processes, lambda: change_files(directory / "unwatched", seconds))
        watched, changes = cpu_shares(processes, lambda: change_files(directory / "watched", seconds))
        events, after = arrived(manager, computer_id, changes)
        worked = [memory_of(process.pid) for process in processes]
    finally:
        end(agent)
    print("| process | MB at rest, resident | proportional | CPU at rest | CPU at", end=" ")
    print(f"{CHANGES_A_SECOND} changes/s not watched | CPU at {CHANGES_A_SECOND} changes/s watched | MB after it, resident |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for index, process in enumerate(processes):
        print(
            f"| {process.name} | {rested[index][0]:.1f} | {rested[index][1]:.1f} | {at_rest[index]:.2%} | {unwatched[index]:.1%}"
            f" | {watched[index]:.1%} | {worked[index][0]:.1f} |"
        )
    print(
        f"| together | {sum(rss for rss, _ in rested):.1f} | {sum(pss for _, pss in rested):.1f} | {sum(at_rest):.2%}"
        f" | {sum(unwatched):.1%} | {sum(watched):.1%} | {sum(rss for rss, _ in worked):.1f} |"
    )
    told = module["metrics"]
    print(
        f"\n{module['rule_count']} rules, {told.get('entities_count', 0):,.0f} entities, {module['health']}; last scan", end=" "
    )
    print(f"{told.get('last_scan_seconds', 0):.1f} s, at rest {ready:.1f} s after the start.")
    print(f"Of {changes:,} changes, {changes / seconds:.0f} a second, {events:,} events came to the manager,", end=" ")
    print(f"the last {after:.1f} s after the last change; changes of one file that follow at once are told together.")
    core, together = rested[0][0], sum(pss for _, pss in rested)
    print(
        f"The core takes {core:.0f} MB (goal {GOAL_CORE_MEGABYTES}: {'reached' if core <= GOAL_CORE_MEGABYTES else 'missed'});",
        end=" ",
    )
    print(f"the agent {together:.0f} MB in all, memory that its processes share counted once.")
    print(f"This computer was {os.getloadavg()[0]:.1f} busy (load average) on {os.cpu_count()} cores.")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the agent at rest and at a hundred changes a second.")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the agent observes the kernel's events, which are root's: run as root")
    directory = pathlib.Path(tempfile.mkdtemp(prefix="keibi-agent-idle-"))
    # The integrity worker, which is not root, reads the files that change here.
    directory.chmod(0o755)
    try:
        with running_manager(directory, [sys.executable, "-m", "keibi.manager.main"]) as manager:
            measure(manager, directory, options.seconds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
