"""Measures how long the first opening of a small file takes with the real judges: application control, anti-malware, and both.

    python benchmarks/judges.py --rounds 3

The real workers answer a gate on a private mount, as for a policy that prevents; anti-malware has the shipped rules. *Open*: a
text file of 4 kB. *Script*: a file that begins with #!. *Exec*: a program of 5 kB that application control does not know, so
that it is refused and an event is written first. Every round has fresh files, which have been at rest for a while. With
`--busy`, as many other programs as there are cores do nothing but compute meanwhile.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from tests.system.anti_malware_worker import AntiMalwareWorker
from tests.system.application_control_worker import ApplicationControlWorker
from tests.system.worker_process import WorkerProcess

from gate import Place, Table, met, percentile, settle
from heartbeats import children_of, cpu_of
from keibi.agent.gate.private import PrivateGate
from keibi.contract.policy import ModuleState
from keibi.protection.anti_malware.rules import Rule

GOAL_MILLISECONDS = 5.0
FILES = 500
KINDS = ("open", "script", "exec")
PROGRAM = ".globl _start\n_start: mov $60, %eax\nxor %edi, %edi\nsyscall\n"
QUIET_SECONDS = 30.0


def shipped_rules() -> list[Rule]:
    """Return the anti-malware rules of this repository, without their samples."""
    rules = []
    for path in sorted((pathlib.Path(__file__).resolve().parents[1] / "content/anti_malware").glob("*.yaml")):
        about = yaml.safe_load(path.read_text())
        about.pop("samples", None)
        rules.append(msgspec.convert(about, Rule))
    return rules


def tiny_program(directory: pathlib.Path) -> bytes:
    """Return the smallest program that gcc makes."""
    (directory / "tiny.S").write_text(PROGRAM)
    subprocess.run(["gcc", "-nostdlib", "-static", "-o", directory / "tiny", directory / "tiny.S"], check=True)
    return (directory / "tiny").read_bytes()


@contextlib.contextmanager
def running_judges(directory: pathlib.Path, names: tuple[str, ...]) -> Iterator[tuple[str, list[WorkerProcess]]]:
    """Start workers that prevent; give the directory in which gates find them."""
    (directory / "software").mkdir()
    workers: list[WorkerProcess] = []
    judges = str(directory / "agent/judges")
    is_over = threading.Event()
    try:
        if "anti_malware" in names:
            anti_malware = AntiMalwareWorker(str(directory))
            workers.append(anti_malware)
            applied = anti_malware.configure(ModuleState.PREVENT, rules=shipped_rules())
            if applied.error:
                sys.exit(f"the shipped rules are refused: {applied.error}")
        if "application_control" in names:
            control = ApplicationControlWorker(str(directory / "agent"), roots=(str(directory / "software"),))
            workers.append(control)
            control.configure(state=ModuleState.PREVENT)

        def listen() -> None:
            while not is_over.wait(0.05):
                for worker in workers:
                    worker.take()

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield judges, workers
        finally:
            is_over.set()
            listener.join()
    finally:
        for worker in workers:
            worker.kill()


def wait_quiet(workers: list[WorkerProcess]) -> None:
    """Return once the workers have done what they had to."""

    def spent() -> float:
        return sum(cpu_of(pid) for worker in workers for pid in (worker.process.pid, *children_of(worker.process.pid)))

    until, before = time.monotonic() + QUIET_SECONDS, spent()
    while time.monotonic() < until:
        time.sleep(1.0)
        if (now := spent()) - before < 0.03:
            return
        before = now


def write_files(place: Place, round_: int, program: bytes) -> None:
    for number in range(FILES):
        place.write(f"{round_}/open/{number}", b"file %d of round %d\n" % (number, round_) + b"x" * 4000)
        place.write(f"{round_}/script/{number}", b"#!/bin/sh\necho %d %d\n" % (number, round_), mode=0o755)
        place.write(f"{round_}/exec/{number}", program + b"%d %d" % (number, round_), mode=0o755)


def time_of(kind: str, path: str) -> int:
    """Return the nanoseconds of one opening or execution."""
    started = time.perf_counter_ns()
    if kind == "exec":
        with contextlib.suppress(PermissionError):
            os.waitpid(os.posix_spawn(path, [path], {}), 0)
        return time.perf_counter_ns() - started
    descriptor = os.open(path, os.O_RDONLY)
    taken = time.perf_counter_ns() - started
    os.close(descriptor)
    return taken


def measure(names: tuple[str, ...], rounds: int, table: Table) -> float:
    """Fill the rows of some judges; return the worst p99 in milliseconds."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="keibi-judges-"))
    directory.chmod(0o755)
    worst = 0.0
    try:
        program = tiny_program(directory)
        (directory / "guarded").mkdir()
        with (
            running_judges(directory, names) as (judges, workers),
            PrivateGate(str(directory / "guarded"), judges, options="size=1g,nr_inodes=600k,mode=0755") as gate,
        ):
            place = Place("guarded", gate.pid, str(directory / "guarded"))
            for round_ in range(rounds):
                write_files(place, round_, program)
            settle()
            wait_quiet(workers)
            for kind in KINDS:

                def act(round_: int, kind: str = kind) -> Callable[[], list[int]]:
                    return lambda: [time_of(kind, f"{place.directory}/{round_}/{kind}/{n}") for n in range(FILES)]

                times = [place.call(act(round_)) for round_ in range(rounds)]
                table.add(f"unknown, {kind}", "+".join(name[0] + name.partition("_")[2][0] for name in names), times, None)
                worst = max(worst, statistics.median(percentile(one, 0.99) for one in times) / 1000)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="with busy programs beside")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("needs root: not measured")
        return 0
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range((os.cpu_count() or 1) * options.busy)]
    table = Table()
    try:
        for names in (("application_control",), ("anti_malware",), ("application_control", "anti_malware")):
            print(f"{', '.join(names)} (load average {os.getloadavg()[0]:.1f})")
            worst = measure(names, options.rounds, table)
            print(f"  worst p99 {worst:.2f} ms; goal {GOAL_MILLISECONDS} ms: {met(worst, GOAL_MILLISECONDS)}\n", flush=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
