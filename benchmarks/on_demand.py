"""On-demand scans of a sample of /usr: Keibi beside clamd (clamdscan --multiscan) and the yara command, with the same signatures.

    python benchmarks/on_demand.py --megabytes 600 --processes 2 --runs 2

Every so many-th file of /usr is copied into a temporary directory, so that the engines find the same files, all in the page
cache. The signatures are made up: hashes of nothing and byte patterns of random bytes, the same number for each engine (the
yara command has no hashes). Engines may use as many processors as `--processes` says, and all give way to others alike, as
our scans do, so that a busy machine is as busy for each. "MB per CPU-second" counts the processor time of scanner and engines
together. Goals: the first scan five times as fast as clamdscan, and 100,000 files a second when nothing changed.
"""

import argparse
import hashlib
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from tests.system.anti_malware_worker import AntiMalwareWorker, text_rule

from keibi.agent.modules.anti_malware.verdict_cache import SETTLED_SECONDS
from keibi.contract.policy import ContentReference, ModuleState
from keibi.protection.anti_malware.hash_list import build_hash_list

HASHES = 100_000
PATTERNS = 1000
GOAL_TIMES = 5.0
GOAL_UNCHANGED = 100_000
LIMIT_SECONDS = 600.0
NICE = ["nice", "-n", "10"]
TICKS = os.sysconf("SC_CLK_TCK")


def sample(target: pathlib.Path, megabytes: int, each: int) -> tuple[int, int]:
    """Copy every so many-th regular file of /usr until so much is copied; return files and bytes."""
    count = size = seen = 0
    for directory, _, names in os.walk("/usr"):
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            seen += 1
            if seen % each:
                continue
            copy = target / f"d{count // 100:04}" / f"{count:06}-{name}"
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
            count, size = count + 1, size + copy.stat().st_size
            if size > megabytes * 1_000_000:
                return count, size
    return count, size


def patterns() -> Iterator[bytes]:
    """Yield the made-up byte patterns, the same each time."""
    for number in range(PATTERNS):
        yield hashlib.sha256(b"pattern %d" % number).digest()[:16]


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of those of its children that have ended."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def peak_megabytes(pid: int) -> float:
    """Return the most memory that a process has had."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1000


@dataclass(frozen=True)
class Rate:
    """How fast one scan was."""

    files: float  # a second
    megabytes: float  # a second of processor time; 0 where it is too short to be measured


def row(name: str, files: int, size: int, seconds: float, cpu: float, memory: str) -> Rate:
    """Print one line of the table."""
    rate = Rate(files / seconds, size / 1e6 / cpu if cpu > 0.02 else 0.0)
    shown = f"{rate.megabytes:8.0f}" if rate.megabytes else f"{'-':>8}"
    print(f"| {name:44} | {rate.files:9,.0f} | {shown} | {seconds:7.2f} | {memory:>16} |", flush=True)
    return rate


def keibi(tree: pathlib.Path, size: int, processes: int) -> tuple[Rate, Rate]:
    """Scan with the real worker; returns the rates of the first scan and of one when nothing changed."""
    with tempfile.TemporaryDirectory(prefix="keibi-bench-") as directory:
        worker = AntiMalwareWorker(directory)
        try:
            listed = build_hash_list((hashlib.sha256(b"hash %d" % number).digest() for number in range(HASHES)), "made up")
            name = hashlib.sha256(listed).hexdigest()
            pathlib.Path(worker.content, name).write_bytes(listed)
            hexed = [" ".join(f"{byte:02x}" for byte in pattern) for pattern in patterns()]
            source = "\n".join(
                f"rule p{number} {{ strings: $a = {{ {one} }} condition: $a }}" for number, one in enumerate(hexed)
            )
            rule = msgspec.structs.replace(text_rule("x", "am-made-up"), yara=source)
            applied = worker.configure(
                ModuleState.ON,
                [rule],
                [ContentReference(name, len(listed), "sha256_list", "made up")],
                engine_processes=processes,
                cpu_percent=100 * processes,
            )
            if applied.error:
                raise SystemExit(applied.error)
            rates = []
            for what in ("Keibi, first scan", "Keibi, nothing changed"):
                pids = [worker.process.pid, *children(worker.process.pid)]
                before = sum(cpu_seconds(pid) for pid in pids)
                started = time.monotonic()
                answer = worker.wait_final(worker.start_command("scan", kind="paths", paths=[str(tree)]), LIMIT_SECONDS)  # type: ignore[arg-type]
                seconds = time.monotonic() - started
                pids += [pid for pid in children(worker.process.pid) if pid not in pids]
                cpu = sum(cpu_seconds(pid) for pid in pids) - before
                memory = " + ".join(f"{peak_megabytes(pid):.0f}" for pid in pids)
                files = answer.result["files_count"]
                # What takes a fraction of a second is measured by the scan itself: the way to it and back is not the scan.
                own = answer.result["seconds"] if what.endswith("changed") else seconds
                rates.append(row(what, files, size, own, cpu, f"{memory} MB"))
            return rates[0], rates[1]
        finally:
            worker.stop()


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, check=False).stdout.split()
    return [int(one) for one in listed]


def clamd(tree: pathlib.Path, files: int, size: int, processes: int) -> Rate | None:
    """Scan with clamd's --multiscan; returns its rate, None where it is not installed."""
    if not (shutil.which("clamd") and shutil.which("clamdscan")):
        print("| clamd is not installed (make bench installs it) | | | | |")
        return None
    with tempfile.TemporaryDirectory(prefix="keibi-clamd-") as directory:
        folder = pathlib.Path(directory)
        (folder / "db").mkdir()
        (folder / "db" / "made.hsb").write_text(
            "".join(f"{hashlib.sha256(b'hash %d' % number).hexdigest()}:*:Made.{number}:73\n" for number in range(HASHES))
        )
        (folder / "db" / "made.ndb").write_text(
            "".join(f"Made.Body.{number}:0:*:{pattern.hex()}\n" for number, pattern in enumerate(patterns()))
        )
        configuration = folder / "clamd.conf"
        configuration.write_text(
            f"LocalSocket {folder}/clamd.sock\nDatabaseDirectory {folder}/db\nForeground yes\nUser root\nMaxThreads {processes}\n"
            "DisableCache yes\nMaxScanSize 256M\nMaxFileSize 256M\nMaxRecursion 8\nMaxFiles 10000\nSelfCheck 0\n"
        )
        with subprocess.Popen(
            [*NICE, "clamd", "-c", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as daemon:
            try:
                deadline = time.monotonic() + 60
                while not (folder / "clamd.sock").exists():
                    if daemon.poll() is not None or time.monotonic() > deadline:
                        print("| clamd did not start | | | | |")
                        return None
                    time.sleep(0.1)
                before, before_own = cpu_seconds(daemon.pid), resource.getrusage(resource.RUSAGE_CHILDREN)
                started = time.monotonic()
                command = [
                    *NICE,
                    "clamdscan",
                    "-c",
                    str(configuration),
                    "--multiscan",
                    "--fdpass",
                    "--no-summary",
                    "--infected",
                    str(tree),
                ]
                subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=LIMIT_SECONDS)
                seconds = time.monotonic() - started
                after_own = resource.getrusage(resource.RUSAGE_CHILDREN)
                own = after_own.ru_utime + after_own.ru_stime - before_own.ru_utime - before_own.ru_stime
                cpu = cpu_seconds(daemon.pid) - before + own
                return row("clamdscan --multiscan", files, size, seconds, cpu, f"{peak_megabytes(daemon.pid):.0f} MB")
            finally:
                daemon.terminate()


def yara(tree: pathlib.Path, files: int, size: int, processes: int) -> Rate | None:
    """Scan with the yara command; returns its rate, None where it is not installed."""
    if not shutil.which("yara"):
        print("| yara is not installed (make bench installs it) | | | | |")
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".yar") as source:
        for number, pattern in enumerate(patterns()):
            hexed = " ".join(f"{byte:02x}" for byte in pattern)
            source.write(f"rule p{number} {{ strings: $a = {{ {hexed} }} condition: $a }}\n")
        source.flush()
        started = time.monotonic()
        command = [*NICE, "yara", "-r", "-w", "-p", str(processes), source.name, str(tree)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        seconds = time.monotonic() - started
        memory = f"{usage.ru_maxrss / 1000:.0f} MB"
        return row("yara command (no hashes, no archives)", files, size, seconds, usage.ru_utime + usage.ru_stime, memory)


def compare(tree: pathlib.Path, files: int, size: int, processes: int) -> None:
    """Run all once and print the table and the ratios."""
    print(f"\n| {'':44} | {'files/s':>9} | {'MB/CPU s':>8} | {'seconds':>7} | {'peak memory':>16} |")
    print(f"|{'-' * 46}|{'-' * 11}|{'-' * 10}|{'-' * 9}|{'-' * 18}|")
    peers = {"clamdscan": clamd(tree, files, size, processes), "yara": yara(tree, files, size, processes)}
    first, unchanged = keibi(tree, size, processes)
    print()
    for name, peer in peers.items():
        if peer is not None:
            verdict = f" (goal {GOAL_TIMES:.0f}: {_met(first.files >= GOAL_TIMES * peer.files)})" if name == "clamdscan" else ""
            wall, processor = first.files / peer.files, first.megabytes / peer.megabytes
            print(f"First scan: {wall:.1f} times {name} by the clock{verdict}, {processor:.1f} times by processor time")
    print(f"Nothing changed: {unchanged.files:,.0f} files/s (goal {GOAL_UNCHANGED:,}: {_met(unchanged.files >= GOAL_UNCHANGED)})")


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def main() -> int:
    """Run all, as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--each", type=int, default=12, help="every so many-th file of /usr")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("This needs root.")
        return 0
    with tempfile.TemporaryDirectory(prefix="keibi-sample-") as directory:
        tree = pathlib.Path(directory) / "sample"
        tree.mkdir()
        files, size = sample(tree, options.megabytes, options.each)
        print(f"{files:,} files, {size / 1e6:.0f} MB, {HASHES:,} hashes, {PATTERNS:,} patterns, {options.processes} processes")
        time.sleep(SETTLED_SECONDS + 0.5)  # what has just changed is not remembered
        for _ in range(options.runs):
            compare(tree, files, size, options.processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
