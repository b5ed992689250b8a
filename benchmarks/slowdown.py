"""Measures how much each module slows ordinary work: a compile job, and the installation of fifty packages by apt.

    python benchmarks/slowdown.py --rounds 3

The real agent (core, sensor, gate, workers) enrolled at a real manager, with the shipped policy. It runs in a box (`_box.py`): a
Debian on a tmpfs with compiler, apt and dpkg, where its gate holds all that is opened or executed when a policy prevents; nothing
outside is touched. Modules are switched by policy between the jobs, every round goes through all of them, and each job is
compared with the one without protection. The jobs: `make -j2` of Lua from Debian's source package, three times over, and
`apt-get install` of packages fetched before. *Slower* compares the best of the rounds, since what else goes on can only add;
*CPU* compares the median processor time of job and agent together with that of the job alone, which depends less on what else
goes on.

A box has no kernel programs and process numbers of its own, so the agent learns from /proc and not from the kernel who did what.
"""

import argparse
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from _box import Box, make_tree, running_box
from heartbeats import RunningManager, children_of, running_manager

PACKAGES = 50
GOAL_PERCENT = 5.0
SETTLED_SECONDS = 120.0
JOB_SECONDS = 300.0
COMPILE_TIMES = 3
SOURCE = "lua5.4"
CANDIDATES = (
    "nano", "less", "file", "bc", "rsync", "tmux", "htop", "strace", "tree", "zip", "unzip", "curl", "git", "jq", "socat", "lsof",
    "psmisc", "time", "patch", "diffstat", "dc", "bzip2", "whois", "netcat-openbsd", "iputils-ping", "logrotate", "cron", "ed",
    "cpio", "pv", "moreutils", "sqlite3", "vim-tiny", "mc", "wget", "rename", "ncal", "dos2unix", "lz4", "zstd",
)  # fmt: skip
OFF = {"integrity_monitoring": "off", "anti_malware": "off", "application_control": "off"}
CONFIGURATIONS = {
    "none": OFF,
    "integrity monitoring, real-time": {**OFF, "integrity_monitoring": "real-time"},
    "anti-malware, on": {**OFF, "anti_malware": "on"},
    "anti-malware, prevent": {**OFF, "anti_malware": "prevent"},
    "application control, detect": {**OFF, "application_control": "detect"},
    "application control, prevent": {**OFF, "application_control": "prevent"},
    "all three, as shipped": {"integrity_monitoring": "real-time", "anti_malware": "on", "application_control": "detect"},
    "all three, prevent": {"integrity_monitoring": "real-time", "anti_malware": "prevent", "application_control": "prevent"},
}
AGENT_TOML = 'state_directory = "/var/lib/keibi/agent"\nsocket_path = "/run/keibi-agent.sock"\n'
ENROL = """
import sys
from keibi.agent.config import load_config
from keibi.agent.enrolment import enrol
print(enrol(load_config("/etc/keibi-agent.toml"), sys.argv[1], sys.argv[2], open("/etc/keibi-ca.pem").read()).computer_id)
"""


@dataclass(frozen=True)
class Measured:
    """One job: how long it took, and how much processor time it and the agent took."""

    seconds: float
    job_cpu_seconds: float
    agent_cpu_seconds: float


def fetch_source(box: Box) -> None:
    """Lay the C project down in /root/project."""
    box.run("apt-get", "source", "--download-only", "-qq", SOURCE, directory="/tmp")
    box.run("sh", "-c", "mkdir project && tar -xf /tmp/*.orig.tar.* -C project --strip-components=1")


def fetch_packages(box: Box) -> list[str]:
    """Download packages that bring as many as wanted with what they need; returns the names to install."""
    chosen: list[str] = []
    for name in CANDIDATES:
        chosen.append(name)
        planned = box.run("apt-get", "install", "-s", "--no-install-recommends", *chosen)
        count = sum(line.startswith("Inst ") for line in planned.splitlines())
        if count > PACKAGES:
            chosen.pop()
        if count == PACKAGES:
            break
    box.run("apt-get", "install", "-y", "-qq", "--download-only", "--no-install-recommends", *chosen)
    return chosen


def children_cpu() -> float:
    """Return the processor seconds of everything that was started here and has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compile_project(box: Box) -> tuple[float, float]:
    """Return seconds and processor seconds."""
    seconds = cpu = 0.0
    for _ in range(COMPILE_TIMES):
        box.run("make", "-s", "clean", directory="/root/project")
        started, before = time.monotonic(), children_cpu()
        box.run("make", "-s", "-j2", "linux", directory="/root/project", timeout_seconds=JOB_SECONDS)
        seconds, cpu = seconds + time.monotonic() - started, cpu + children_cpu() - before
    return seconds, cpu


def install_packages(box: Box, names: list[str]) -> tuple[float, float]:
    """Return seconds and processor seconds."""
    before = set(box.run("dpkg-query", "-W", "-f", "${Package}\\n").split())
    started, cpu_before = time.monotonic(), children_cpu()
    box.run("apt-get", "install", "-y", "-qq", "--no-download", "--no-install-recommends", *names, timeout_seconds=JOB_SECONDS)
    seconds, cpu = time.monotonic() - started, children_cpu() - cpu_before
    brought = set(box.run("dpkg-query", "-W", "-f", "${Package}\\n").split()) - before
    if len(brought) < PACKAGES * 0.9:
        sys.exit(f"only {len(brought)} packages were installed")
    box.run("dpkg", "--purge", *sorted(brought), timeout_seconds=JOB_SECONDS)
    return seconds, cpu


def processes_below(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for child in children_of(pid):
        found += processes_below(child)
    return found


def cpu_below(pid: int) -> float:
    """Return the processor seconds of a process and all that descend from it, ended ones with them."""
    total = 0.0
    for one in processes_below(pid):
        try:
            with open(f"/proc/{one}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
        except FileNotFoundError:
            continue
        total += sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return total


def check_marks(box: Box, agent: int) -> None:
    """End the box if the agent watches any file system that is not the box's own."""
    own = f"{os.major(box.device) << 20 | os.minor(box.device):x}"
    for pid in processes_below(agent):
        for path in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
            try:
                text = path.read_text()
            except OSError:
                continue
            for line in text.splitlines():
                # Marks of single files (canary, verdicts) begin with "fanotify ino:"; those can be of files of the box alone.
                is_wide = line.startswith(("fanotify sdev:", "fanotify mnt_id:"))
                if is_wide and not line.startswith(f"fanotify sdev:{own} "):
                    box.end()
                    sys.exit(f"the agent in the box watches another file system: {line}")


class Setting:
    """The agent in the box, and the manager that tells it what to do."""

    def __init__(self, manager: RunningManager, box: Box, agent: int, computer_id: str) -> None:
        self._manager, self._box, self._computer_id = manager, box, computer_id
        self.agent = agent

    def modules(self) -> dict[str, dict[str, object]]:
        status = self._manager.api.get(f"/computers/{self._computer_id}").get("status") or {}
        return {module["module"]: module for module in status.get("modules", [])}

    def set_modules(self, states: dict[str, str]) -> None:
        """Switch the modules, and wait until they are in force and the agent is at rest."""
        levels = self._manager.api.get(f"/policies/computers/{self._computer_id}")
        change = {
            "modules": {module: {"state": state} for module, state in states.items()},
            "expected_version": levels.get("version", 0),
        }
        self._manager.api.call("PATCH", f"/policies/computers/{self._computer_id}", body=change)
        deadline = time.monotonic() + SETTLED_SECONDS
        while time.monotonic() < deadline:
            modules = self.modules()
            are_in_force = all(
                (modules.get(name, {}).get("health") == "inactive") == (state == "off") for name, state in states.items()
            )
            if are_in_force and all(module["health"] != "starting" for module in modules.values()):
                before, started = cpu_below(self.agent), time.monotonic()
                time.sleep(1.5)
                if (cpu_below(self.agent) - before) / (time.monotonic() - started) < 0.1:
                    check_marks(self._box, self.agent)
                    return
            time.sleep(0.3)
        print(f"\nThe agent was not at rest {SETTLED_SECONDS:.0f} s after the switch to {states}: {self.modules()}\n")


def measure(manager: RunningManager, directory: pathlib.Path, box: Box, rounds: int, only: str) -> None:
    fetch_source(box)
    names = fetch_packages(box)
    (box.root / "etc/keibi-agent.toml").write_text(AGENT_TOML)
    (box.root / "etc/keibi-ca.pem").write_text(manager.ca_pem)
    box.run("mkdir", "-p", "-m", "700", "/var/lib/keibi/agent")
    box.run("chmod", "711", "/var/lib/keibi", "/var/lib/keibi/agent")
    computer_id = box.run("/usr/bin/python3", "-c", ENROL, manager.url, manager.make_token(1)).strip()
    jobs: dict[str, Callable[[], tuple[float, float]]] = {
        "make -j2": lambda: compile_project(box),
        f"apt-get install, {PACKAGES} packages": lambda: install_packages(box, names),
    }
    for run in jobs.values():
        run()  # not counted: the first time reads everything from the archive
    times: dict[tuple[str, str], list[Measured]] = {}
    configurations = {name: states for name, states in CONFIGURATIONS.items() if name == "none" or only in name}
    with open(directory / "agent.log", "wb") as log:
        command = box.agent_command("keibi.agent.main", "--config", "/etc/keibi-agent.toml")
        entered = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    time.sleep(3)
    if entered.poll() is not None or not children_of(entered.pid):
        sys.exit(f"the agent did not start:\n{(directory / 'agent.log').read_text()[-3000:]}")
    setting = Setting(manager, box, children_of(entered.pid)[0], computer_id)
    try:
        for _ in range(rounds):
            for name, states in configurations.items():
                setting.set_modules(states)
                for job, run in jobs.items():
                    before = cpu_below(setting.agent)
                    seconds, cpu = run()
                    agent_cpu = cpu_below(setting.agent) - before
                    times.setdefault((name, job), []).append(Measured(seconds, cpu, agent_cpu))
                    print(f"  {name:34} {job:32} {seconds:6.2f} s, CPU {cpu:6.2f} s, agent {agent_cpu:5.2f} s", flush=True)
                    for module, about in setting.modules().items():
                        if about["health"] not in ("active", "inactive"):
                            print(f"    {module} is {about['health']}: {about.get('reason', about)}")
    finally:
        entered.terminate()
        entered.wait(20)
        print(
            (directory / "agent.log").read_text()[-int(os.environ.get("LOG_BYTES", "0")) :] if "LOG_BYTES" in os.environ else ""
        )
    print_table(configurations, list(jobs), times)


def print_table(configurations: dict[str, dict[str, str]], jobs: list[str], times: dict[tuple[str, str], list[Measured]]) -> None:
    print(f"\n| modules | {' | '.join(f'{job} [s] | slower | CPU | agent [CPU s]' for job in jobs)} |")
    print("|---|" + "---:|---:|---:|---:|" * len(jobs))
    worst = 0.0
    for name in configurations:
        cells = []
        for job in jobs:
            mine, base = times[name, job], times["none", job]
            best, base_best = min(one.seconds for one in mine), min(one.seconds for one in base)
            cpu = statistics.median(one.job_cpu_seconds + one.agent_cpu_seconds for one in mine)
            base_cpu = statistics.median(one.job_cpu_seconds for one in base)
            percent, cpu_percent = (best / base_best - 1) * 100, (cpu / base_cpu - 1) * 100
            worst = max(worst, percent)
            agent = statistics.median(one.agent_cpu_seconds for one in mine)
            cells.append(f"{best:.2f} | {percent:+.1f} % | {cpu_percent:+.1f} % | {agent:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    outcome = "reached" if worst < GOAL_PERCENT else "missed"
    print(f"\nThe goal is below {GOAL_PERCENT:.0f} %: {outcome} (worst {worst:+.1f} %).", end=" ")
    print(f"This computer was {os.getloadavg()[0]:.1f} busy (load average) on {os.cpu_count()} cores.")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how much each module slows a compile job and apt.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only configurations whose name has this")
    parser.add_argument("--tree", default="", help="a tree made before (by mmdebstrap), kept")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        print("needs root and mmdebstrap: not measured")
        return 0
    directory = pathlib.Path(tempfile.mkdtemp(prefix="keibi-slowdown-"))
    directory.chmod(0o755)
    tree = pathlib.Path(options.tree) if options.tree else directory / "tree.tar"
    try:
        if not tree.exists():
            make_tree(tree)
        with (
            running_manager(directory, [sys.executable, "-m", "keibi.manager.main"]) as manager,
            running_box(directory, tree) as box,
        ):
            measure(manager, directory, box, options.rounds, options.only)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
