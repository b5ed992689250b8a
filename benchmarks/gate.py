"""Measures what the file gate costs: open() and exec without an agent, with the gate, and with clamonacc where it is installed.

    python benchmarks/gate.py --rounds 9

Everything happens on fresh tmpfs mounts in mount namespaces of the benchmark's own; nothing else on the computer is held up.
One process sees a guarded and an unguarded mount and measures them by turns, so that what else goes on hits both. The gate
asks one judge in the benchmark's own process, which allows everything at once: the figures are the gate's and not a
scanner's. A ratio is the median over the rounds, of means without the slowest tenth.

*Known*: judged before. Of root: a mark in the kernel stands for the verdict. Of another user: the gate answers from memory
each time. *Unknown*: the first opening of a small file, with the question to the judge (`judges.py` has the real ones).
clamonacc with prevention runs with clamd and one signature; fapolicyd in a box of its own (`_fapolicyd.py`), which is all that it
watches.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from _box import make_tree, running_box
from _fapolicyd import measure_in
from keibi.agent.gate.judging import EXEC, OPEN, PREVENT, Terms
from keibi.agent.gate.private import PrivateGate, call_in_mounts_of
from keibi.agent.judge_server import Asked, JudgeServer

KNOWN_OPEN_GOAL, KNOWN_EXEC_GOAL, UNKNOWN_P99_GOAL_MILLISECONDS, MEMORY_GOAL_MEGABYTES = 1.3, 1.1, 5.0, 25.0
STALL_GOAL_SECONDS = 1.0
OTHER_USER = 65534
MOST_SECONDS = 120


@dataclass(frozen=True)
class Place:
    """A private tmpfs: whose mount namespace shows it, and where."""

    name: str
    pid: int
    directory: str

    def call(self, function: Callable[[], Any]) -> Any:
        return call_in_mounts_of(self.pid, function, MOST_SECONDS)

    def write(self, name: str, content: bytes, *, mode: int = 0o644, owner: int = 0) -> str:
        path = f"/proc/{self.pid}/root{self.directory}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, mode)
        os.chown(path, owner, owner)
        return os.path.join(self.directory, name)


@contextlib.contextmanager
def plain_place(name: str, directory: str) -> Iterator[Place]:
    """Give a tmpfs in a mount namespace of its own that nobody guards yet."""
    script = f"mount -t tmpfs -o size=1g,nr_inodes=600k,mode=0755 none {directory} && echo ready && read end"
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        if holder.stdout is None or holder.stdout.readline() != b"ready\n":
            sys.exit("no mount namespace of one's own: this benchmark needs root")
        yield Place(name, holder.pid, directory)
    finally:
        holder.kill()
        holder.communicate()


def mount_beside(pid: int, directory: str) -> Place:
    """Give another tmpfs in the same mount namespace, which nobody guards: so that both are measured by one process."""
    options = "size=1g,nr_inodes=600k,mode=0755"
    command = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", "mount", "-t", "tmpfs", "-o", options, "none", directory]
    subprocess.run(command, check=True)
    return Place("no agent", pid, directory)


def percentile(values: list[int], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] / 1000


def typical(values: list[int]) -> float:
    """Return the mean without the slowest tenth, which on a shared machine is other people's work."""
    return statistics.fmean(sorted(values)[: max(1, len(values) * 9 // 10)])


def open_times(paths: list[str]) -> list[int]:
    """Return the nanoseconds of one opening of each path."""
    times = []
    clock = time.perf_counter_ns
    for path in paths:
        started = clock()
        descriptor = os.open(path, os.O_RDONLY)
        times.append(clock() - started)
        os.close(descriptor)
    return times


def exec_times(path: str) -> list[int]:
    """Return the nanoseconds from the start of a tiny program to its end."""
    started = time.perf_counter_ns()
    os.waitpid(os.posix_spawn(path, [path], {}), 0)
    return [time.perf_counter_ns() - started]


def by_turns(places: list[Place], turns: int, measure: Callable[[Place], list[int]]) -> dict[str, list[int]]:
    """Measure each place again and again, one right after the other, in one process that sees both."""
    times: dict[str, list[int]] = {place.name: [] for place in places}
    for _ in range(turns):
        for place in places:
            times[place.name] += measure(place)
    return times


def cat_everything(directory: str) -> dict[str, float]:
    """Read a tree with find and cat; return the seconds that took."""
    started = time.monotonic()
    subprocess.run(["find", directory, "-type", "f", "-exec", "cat", "{}", "+"], stdout=subprocess.DEVNULL, check=True)
    return {"seconds": time.monotonic() - started}


def tiny_program(directory: str) -> bytes:
    """Return a static program that ends at once."""
    source, program = os.path.join(directory, "tiny.c"), os.path.join(directory, "tiny")
    with open(source, "w", encoding="ascii") as file:
        file.write("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
    with open(program, "rb") as file:
        return file.read()


def settle() -> None:
    """Wait until files are old enough for verdicts on them to be remembered."""
    time.sleep(2.2)


class Table:
    """Rows of figures, printed in the end."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, who: str, times: list[list[int]], base: list[list[int]] | None, goal: float | None = None) -> float:
        p50 = statistics.median(percentile(round_, 0.5) for round_ in times)
        p99 = statistics.median(percentile(round_, 0.99) for round_ in times)
        mean = statistics.median(typical(round_) / 1000 for round_ in times)
        ratio = 1.0
        if base is not None:
            ratio = statistics.median(typical(now) / typical(before) for now, before in zip(times, base, strict=False))
        row = {"what": what, "who": who, "p50_us": round(p50, 1), "p99_us": round(p99, 1), "per_second": round(1e6 / mean)}
        row |= {"ratio": round(ratio, 2), "goal": goal}
        self.rows.append(row)
        mark = "" if goal is None else f"   goal {goal}: {'met' if ratio <= goal else 'MISSED'}"
        print(f"{what:36} {who:12} p50 {p50:8.1f} us   p99 {p99:8.1f} us   {1e6 / mean:9.0f}/s   x{ratio:.2f}{mark}", flush=True)
        return p99


def rounds_of(rounds: int, places: list[Place], turns: int, measure: Callable[[Place], list[int]]) -> dict[str, list[list[int]]]:
    """Return the times of each place in each round; the first round is not counted."""
    found: dict[str, list[list[int]]] = {place.name: [] for place in places}
    for number in range(rounds + 1):
        times = places[0].call(lambda: by_turns(places, turns, measure))
        if number:
            for name, values in times.items():
                found[name].append(values)
    return found


def measure_gate(scratch: str, rounds: int, table: Table, file_count: int) -> None:
    """Fill the table's rows of Keibi."""
    judges = os.path.join(scratch, "judges")
    asked: list[float] = []

    def judge(question: Asked) -> None:
        question.answer(is_allowed=True, remember=True)
        question.close()
        asked.append(question.question.at)

    server = JudgeServer(judges, "anti_malware", on_question=judge, on_told=lambda _: None, on_state=lambda _: None)
    server.set_terms(Terms(module="anti_malware", generation=1, mode=PREVENT, events=(EXEC, OPEN)))
    server.start()
    guarded, plain = os.path.join(scratch, "guarded"), os.path.join(scratch, "plain")
    os.mkdir(guarded)
    os.mkdir(plain)
    try:
        with PrivateGate(guarded, judges, options="size=1g,nr_inodes=600k,mode=0755") as gate:
            places = [mount_beside(gate.pid, plain), Place("keibi", gate.pid, guarded)]
            program = tiny_program(scratch)
            for place in places:
                place.write("tiny", program, mode=0o755)
                for number in range(100):
                    place.write(f"roots/{number}", b"x" * 4096)
                    place.write(f"theirs/{number}", b"x" * 4096, owner=OTHER_USER)
                for number in range(2000):
                    place.write(f"unknown/{number}", b"x" * 4096)
            settle()

            def opening(kind: str) -> Callable[[Place], list[int]]:
                return lambda place: open_times([f"{place.directory}/{kind}/{number}" for number in range(100)])

            found = rounds_of(rounds, places, 100, opening("roots"))
            table.add("known open, of root", "no agent", found["no agent"], None)
            table.add("known open, of root", "keibi", found["keibi"], found["no agent"], KNOWN_OPEN_GOAL)
            found = rounds_of(rounds, places, 30, opening("theirs"))
            table.add("known open, of another user", "keibi", found["keibi"], found["no agent"])
            found = rounds_of(rounds, places, 1000, lambda place: exec_times(f"{place.directory}/tiny"))
            table.add("known exec", "no agent", found["no agent"], None)
            table.add("known exec", "keibi", found["keibi"], found["no agent"], KNOWN_EXEC_GOAL)

            unknown: dict[str, list[list[int]]] = {place.name: [] for place in places}
            before = len(asked)
            for _ in range(rounds):
                server.forget()
                time.sleep(0.1)
                for place in places:
                    names = [f"{place.directory}/unknown/{number}" for number in range(2000)]
                    unknown[place.name].append(place.call(lambda names=names: open_times(names)))
            if len(asked) - before < 2000 * rounds:
                sys.exit(f"only {len(asked) - before} questions were asked: the files were not unknown")
            p99 = table.add("unknown small file, open", "keibi", unknown["keibi"], unknown["no agent"]) / 1000
            print(f"  p99 {p99:.2f} ms; goal {UNKNOWN_P99_GOAL_MILLISECONDS} ms: {met(p99, UNKNOWN_P99_GOAL_MILLISECONDS)}")
            measure_find(places, file_count, table)
            measure_memory(gate, table)
    finally:
        server.close()


def measure_find(places: list[Place], file_count: int, table: Table) -> None:
    """Read many fresh files with find and cat while another program looks how long one opening takes at most."""
    for place in places:
        place.call(lambda place=place: write_many(f"{place.directory}/many", file_count))
    seconds = {}
    worst = {}
    for place in places:
        probe = place.write("probe", b"probe")
        child = os.fork()
        if child == 0:
            stalls = place.call(lambda probe=probe: probe_until_gone(probe))
            with open(os.path.join(os.path.dirname(place.directory), "stall"), "w", encoding="ascii") as file:
                file.write(str(stalls))
            os._exit(0)
        seconds[place.name] = place.call(lambda place=place: cat_everything(f"{place.directory}/many"))["seconds"]
        os.unlink(f"/proc/{place.pid}/root{probe}")
        os.waitpid(child, 0)
        with open(os.path.join(os.path.dirname(place.directory), "stall"), encoding="ascii") as file:
            worst[place.name] = float(file.read())
    ratio = seconds["keibi"] / seconds["no agent"]
    print(
        f"find | cat of {file_count:,} fresh files: {seconds['no agent']:.1f} s without, {seconds['keibi']:.1f} s with the gate"
        f" (x{ratio:.2f}); meanwhile another file's opening took at most {worst['keibi'] * 1000:.0f} ms"
        f" (without: {worst['no agent'] * 1000:.0f} ms); goal {STALL_GOAL_SECONDS} s: {met(worst['keibi'], STALL_GOAL_SECONDS)}",
        flush=True,
    )
    table.rows.append({"what": "find and cat", "files": file_count, "seconds": seconds, "worst_seconds": worst, "ratio": ratio})


def write_many(directory: str, count: int) -> None:
    for number in range(count):
        if number % 1000 == 0:
            os.makedirs(f"{directory}/{number // 1000}", exist_ok=True)
        with open(f"{directory}/{number // 1000}/{number}", "wb") as file:
            file.write(b"%d\n" % number)


def probe_until_gone(path: str) -> float:
    """Open a file again and again until it is removed; return the longest time one opening took."""
    worst = 0.0
    until = time.monotonic() + MOST_SECONDS - 10
    while time.monotonic() < until:
        started = time.monotonic()
        try:
            os.close(os.open(path, os.O_RDONLY))
        except FileNotFoundError:
            break
        worst = max(worst, time.monotonic() - started)
        time.sleep(0.002)
    return worst


def measure_memory(gate: PrivateGate, table: Table) -> None:
    kib = 0
    for pid in (gate.pid, gate.refresh()["pid"]):
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            kib += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    print(f"memory of the gate after all that: {kib / 1024:.1f} MB (PSS); goal {MEMORY_GOAL_MEGABYTES} MB: "
          f"{met(kib / 1024, MEMORY_GOAL_MEGABYTES)}")  # fmt: skip
    table.rows.append({"what": "memory", "megabytes": kib / 1024})


def measure_clamonacc(scratch: str, rounds: int, table: Table) -> None:
    """Fill the table's rows of clamonacc with prevention, on a private mount and with a watchdog."""
    if not shutil.which("clamonacc") or not shutil.which("clamd"):
        print("clamonacc: not installed, so not measured")
        return
    guarded, plain, state = (os.path.join(scratch, name) for name in ("clam", "clam-plain", "clam-state"))
    for directory in (guarded, plain, state):
        os.mkdir(directory)
    with open(os.path.join(state, "one.hdb"), "w", encoding="ascii") as file:
        file.write("44d88612fea8a8f36de82e1278abb02f:68:Test.File\n")
    config = os.path.join(state, "clamd.conf")
    with open(config, "w", encoding="ascii") as file:
        file.write(
            f"LocalSocket {state}/clamd.sock\nDatabaseDirectory {state}\nUser root\nForeground yes\nLogFile {state}/clamd.log\n"
            f"OnAccessIncludePath {guarded}\nOnAccessPrevention yes\nOnAccessExcludeUname clamav\nOnAccessMaxThreads 5\n"
        )
    with plain_place("clamonacc", guarded) as place:
        places = [mount_beside(place.pid, plain), place]
        for target in places:
            for number in range(100):
                target.write(f"roots/{number}", b"x" * 4096)
        enter = ["nsenter", f"--mount=/proc/{place.pid}/ns/mnt", "--", "setpriv", "--pdeathsig", "KILL", "--"]
        daemon = subprocess.Popen(
            [*enter, "clamd", f"--config-file={config}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        client: subprocess.Popen[bytes] | None = None
        try:
            until = time.monotonic() + 30
            while not os.path.exists(f"{state}/clamd.sock") and time.monotonic() < until and daemon.poll() is None:
                time.sleep(0.1)
            client = subprocess.Popen(
                [*enter, "clamonacc", f"--config-file={config}", "--fdpass", "--foreground", f"--log={state}/clamonacc.log"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(3)
            if daemon.poll() is not None or client.poll() is not None:
                print("clamonacc: it or clamd did not stay up here, so not measured")
                return
            found = rounds_of(
                max(1, rounds // 2),
                places,
                5,
                lambda target: open_times([f"{target.directory}/roots/{number}" for number in range(100)]),
            )
            if statistics.fmean(found["clamonacc"][0]) < 2 * statistics.fmean(found["no agent"][0]):
                print("clamonacc: it holds nothing here (no difference to no agent), so its figures would say nothing")
                return
            table.add("known open, of root", "clamonacc", found["clamonacc"], found["no agent"])
        finally:
            for process in (client, daemon):
                if process is not None:
                    process.send_signal(signal.SIGKILL)
                    process.wait()


def measure_fapolicyd(scratch: str, rounds: int, table: Table) -> None:
    """Fill the table's rows of fapolicyd, in a box of its own."""
    if not shutil.which("mmdebstrap"):
        print("fapolicyd: its box is made by mmdebstrap, which is not installed, so not measured")
        return
    directory = pathlib.Path(scratch, "fapolicyd")
    directory.mkdir()
    program = tiny_program(scratch)
    make_tree(directory / "tree.tar")
    with running_box(directory, directory / "tree.tar") as box:
        without, with_it = measure_in(box, program, max(1, rounds // 2))
    for what in ("open", "exec"):
        name = "known open, of root" if what == "open" else "known exec"
        table.add(name, "ramfs", without[what]["/plain"], None)
        table.add(name, "tmpfs", without[what]["/guarded"], without[what]["/plain"])
        table.add(name, "fapolicyd", with_it[what]["/guarded"], with_it[what]["/plain"])


def met(value: float, goal: float) -> str:
    return "met" if value <= goal else "MISSED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--files", type=int, default=100_000, help="for find and cat")
    parser.add_argument("--json", default="", help="also write the figures there")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("needs root: not measured")
        return 0
    table = Table()
    scratch = tempfile.mkdtemp(prefix="keibi-gate-")
    try:
        measure_gate(scratch, options.rounds, table, options.files)
        measure_clamonacc(scratch, options.rounds, table)
        measure_fapolicyd(scratch, options.rounds, table)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(table.rows, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
