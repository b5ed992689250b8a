"""Measures how much each module slows ordinary work: a compile job, and the unpacking of fifty packages.

    python benchmarks/slowdown.py --rounds 3

The real agent with the shipped policy, enrolled at a real manager, in a temporary directory; needs root. Modules are switched by
policy between the jobs, every round goes through all of them, and each job is compared with the one without protection of its
own round. The compile job is `make -j2` of a C project made up here (the same one each time); the packages are small ones of
this computer's distribution without scripts of their own, unpacked by dpkg with a root of its own. *Held* is the compile job
on the mount of a private gate, where the kernel holds each opening and execution until the modules have judged it.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from agent_idle import cpu_shares, processes_of
from heartbeats import RunningManager, end, running_manager
from keibi.agent.config import load_config
from keibi.agent.enrolment import enrol
from keibi.agent.gate.private import PrivateGate

SOURCES = 160
PACKAGES = 50
GOAL_PERCENT = 5.0
SETTLED_SECONDS = 120.0
OFF = {"integrity_monitoring": "off", "anti_malware": "off", "application_control": "off"}
CONFIGURATIONS = {
    "none": OFF,
    "integrity monitoring, real-time": {**OFF, "integrity_monitoring": "real-time"},
    "anti-malware, on": {**OFF, "anti_malware": "on"},
    "application control, detect": {**OFF, "application_control": "detect"},
    "all three": {"integrity_monitoring": "real-time", "anti_malware": "on", "application_control": "detect"},
}
SOURCE = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <errno.h>
#include <sys/stat.h>
struct row_{n} {{ double values[32]; char name[64]; int count; }};
{functions}
int entry_{n}(int argc) {{ struct row_{n} row; memset(&row, 0, sizeof row); return {calls}; }}
"""
FUNCTION = """\
static int step_{n}_{m}(struct row_{n} *row, int argc) {{
    for (int i = 0; i < 32; i++) row->values[i] += sin(argc * {m}.5 + i) * (row->count + 1);
    snprintf(row->name, sizeof row->name, "%d-%f", argc, row->values[argc & 31]);
    return (int)strlen(row->name) + row->count++;
}}"""


def make_project(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    for n in range(SOURCES):
        functions = "\n".join(FUNCTION.format(n=n, m=m) for m in range(12))
        calls = " + ".join(f"step_{n}_{m}(&row, argc)" for m in range(12))
        (folder / f"part{n}.c").write_text(SOURCE.format(n=n, functions=functions, calls=calls))
    declared = "\n".join(f"int entry_{n}(int);" for n in range(SOURCES))
    summed = " + ".join(f"entry_{n}(argc)" for n in range(SOURCES))
    (folder / "main.c").write_text(f"{declared}\nint main(int argc, char **argv) {{ (void)argv; return ({summed}) & 1; }}\n")
    objects = " ".join(f"part{n}.o" for n in range(SOURCES))
    (folder / "Makefile").write_text(f"program: main.o {objects}\n\tcc -o $@ $^ -lm\nCFLAGS = -O1\nclean:\n\trm -f *.o program\n")


def compile_in(folder: pathlib.Path) -> float:
    subprocess.run(["make", "-s", "clean"], cwd=folder, check=True)
    started = time.monotonic()
    subprocess.run(["make", "-s", "-j2"], cwd=folder, check=True)
    return time.monotonic() - started


def fetch_packages(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return small packages that bring no scripts; fewer, or none, where the mirror does not give them."""
    folder.mkdir()
    listed = subprocess.run(["apt-cache", "pkgnames", "python3-"], capture_output=True, text=True, check=False)
    names = [name for name in sorted(listed.stdout.split()) if name.count("-") == 1][: PACKAGES * 4]
    for start in range(0, len(names), 50):
        command = ["apt-get", "download", "-qq", *names[start : start + 50]]
        subprocess.run(command, cwd=folder, capture_output=True, check=False)
    found = []
    for path in sorted(folder.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "--ctrl-tarfile", path], capture_output=True, check=False).stdout
        if path.stat().st_size < 400_000 and b"preinst" not in control and len(found) < PACKAGES:
            found.append(path)
    return found


def unpack(packages: list[pathlib.Path], root: pathlib.Path) -> float:
    shutil.rmtree(root, ignore_errors=True)
    admin = root / "var/lib/dpkg"
    for name in ("info", "updates", "triggers"):
        (admin / name).mkdir(parents=True)
    for name in ("status", "available"):
        (admin / name).touch()
    command = ["dpkg", f"--root={root}", "--force-depends", "--force-script-chrootless", "--unpack", *map(str, packages)]
    started = time.monotonic()
    subprocess.run(command, capture_output=True, check=True)
    return time.monotonic() - started


def set_modules(manager: RunningManager, computer_id: str, agent: int, states: dict[str, str]) -> None:
    """Switch the modules, and wait until they are in force and the agent is at rest."""
    levels = manager.api.get(f"/policies/computers/{computer_id}")
    change = {
        "modules": {module: {"state": state} for module, state in states.items()},
        "expected_version": levels.get("version", 0),
    }
    manager.api.call("PATCH", f"/policies/computers/{computer_id}", body=change)
    deadline = time.monotonic() + SETTLED_SECONDS
    while time.monotonic() < deadline:
        status = manager.api.get(f"/computers/{computer_id}").get("status") or {}
        health = {module["module"]: module["health"] for module in status.get("modules", [])}
        is_ready = all((health.get(name) == "inactive") == (state == "off") for name, state in states.items())
        if is_ready and "starting" not in health.values():
            shares, _ = cpu_shares(processes_of(agent), lambda: time.sleep(1))
            if sum(shares) < 0.15:
                return
        time.sleep(0.3)
    print(f"\nThe agent was not at rest {SETTLED_SECONDS:.0f} s after the switch to {states}: the figures are too high.\n")


def measure(manager: RunningManager, directory: pathlib.Path, rounds: int) -> None:
    (directory / "agent").mkdir(mode=0o700)
    config_file = directory / "agent.toml"
    config_file.write_text(f'state_directory = "{directory}/agent"\nsocket_path = "{directory}/agent.sock"\n')
    computer_id = enrol(load_config(str(config_file)), manager.url, manager.make_token(1), manager.ca_pem).computer_id
    project = directory / "project"
    make_project(project)
    packages = fetch_packages(directory / "packages")
    jobs: dict[str, Callable[[], float]] = {"make -j2": lambda: compile_in(project)}
    if len(packages) >= PACKAGES // 2:
        jobs[f"dpkg, {len(packages)} packages"] = lambda: unpack(packages, directory / "root")
    times: dict[tuple[str, str], list[float]] = {}
    with open(directory / "agent.log", "wb") as log:
        command = [sys.executable, "-m", "keibi.agent.main", "--config", str(config_file)]
        agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
    try:
        for _ in range(rounds):
            for name, states in CONFIGURATIONS.items():
                set_modules(manager, computer_id, agent.pid, states)
                for job, run in jobs.items():
                    times.setdefault((name, job), []).append(run())
        held = _held(directory, rounds)
    finally:
        end(agent)
    print(f"| modules | {' | '.join(f'{job} [s] | slower' for job in jobs)} |")
    print("|---|" + "---:|---:|" * len(jobs))
    worst = 0.0
    for name in CONFIGURATIONS:
        cells = []
        for job in jobs:
            ratios = [mine / base for mine, base in zip(times[name, job], times["none", job], strict=True)]
            percent = (statistics.median(ratios) - 1) * 100
            worst = max(worst, percent)
            cells.append(f"{statistics.median(times[name, job]):.2f} | {percent:+.1f} %")
        print(f"| {name} | {' | '.join(cells)} |")
    if held:
        bare, gated = held
        told = f"\nHeld: make -j2 on a private mount {bare:.2f} s, with every opening and execution judged {gated:.2f} s:"
        print(f"{told} {(gated / bare - 1) * 100:+.1f} %.")
    outcome = "reached" if worst < GOAL_PERCENT else "missed"
    print(f"\nThe goal is below {GOAL_PERCENT:.0f} %: {outcome} (worst {worst:+.1f} %).", end=" ")
    print(f"This computer was {os.getloadavg()[0]:.1f} busy (load average) on {os.cpu_count()} cores.")


def _held(directory: pathlib.Path, rounds: int) -> tuple[float, float] | None:
    """Return the seconds of the compile job on a tmpfs, and on one whose gate asks the agent's modules."""
    place = directory / "held"
    place.mkdir()
    bare = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        make_project(pathlib.Path(shared, "project"))
        bare = [compile_in(pathlib.Path(shared, "project")) for _ in range(rounds)]
    with PrivateGate(str(place), str(directory / "agent" / "judges")) as gate:
        gate.enter(lambda: make_project(place / "project"))
        gated = [gate.enter(lambda: compile_in(place / "project"), timeout_seconds=120.0) for _ in range(rounds)]
    return statistics.median(bare), statistics.median(gated)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how much each module slows a compile job and dpkg.")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the agent observes the kernel's events, which are root's: run as root")
    directory = pathlib.Path(tempfile.mkdtemp(prefix="keibi-slowdown-"))
    directory.chmod(0o755)
    try:
        with running_manager(directory, [sys.executable, "-m", "keibi.manager.main"]) as manager:
            measure(manager, directory, options.rounds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
