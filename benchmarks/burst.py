"""Measures the sensor in a burst: 50,000 files created, written and renamed on a filesystem of its own.

    python benchmarks/burst.py --files 50000 --filesystem tmpfs --filesystem ext4

Sensor and filesystem live in a mount namespace of their own. *Seen* counts files whose final name was told, *lost* those that
were neither told nor covered by the advice to look again. *Delay* is from the generator's clock after a rename to the moment its
observation is read here; *idle delay* the same for single files in between, on a quiet filesystem. The generator is a tight
loop of system calls in Python; its slow-down is against the same loop, before and after, on one that nobody watches.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from keibi.agent.ports import Happening

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from tests.system.sensor_run import SensorRun

GENERATOR = """
import os, sys, time, json
directory, files = sys.argv[1].encode(), int(sys.argv[2])
for number in range(files // 1000 + 1):
    os.mkdir(b"%s/%d" % (directory, number))
done = []
started, cpu = time.perf_counter(), time.process_time()
for number in range(files):
    path = b"%s/%d/%d" % (directory, number // 1000, number)
    fd = os.open(path + b".new", os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(fd, b"some text\\n")
    os.close(fd)
    os.rename(path + b".new", path)
    done.append(time.time())
json.dump({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "done": done}, sys.stdout)
"""


@dataclass(frozen=True)
class Row:
    filesystem: str
    files: int
    generator_seconds: float
    slow_down: float
    seen: int
    lost: int
    overflows: int
    events: int
    p50_ms: float
    p99_ms: float
    idle_p50_ms: float
    idle_p99_ms: float
    sensor_cpu_seconds: float
    resident_megabytes: float


def mounts_for(filesystem: str, directory: pathlib.Path) -> tuple[str, ...]:
    point = directory / "watched"
    if filesystem == "tmpfs":
        return (f"mount -t tmpfs keibi-bench {point}",)
    image = directory / "image"
    return (f"truncate -s 1G {image}", f"mkfs.ext4 -q -N 200000 {image}", f"mount -o loop {image} {point}")


def generate(directory: bytes, files: int) -> dict:
    finished = subprocess.run(
        [sys.executable, "-c", GENERATOR, os.fsdecode(directory), str(files)], stdout=subprocess.PIPE, check=True
    )
    return json.loads(finished.stdout)


def cpu_of(pid: int) -> float:
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_of(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def percentiles(milliseconds: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(milliseconds, n=100)
    return cuts[49], cuts[98]


def quiet_delays(sensor: SensorRun, count: int) -> list[float]:
    """Return the milliseconds from closing a written file to reading its observation, one file at a time."""
    delays = []
    for number in range(count):
        name = f"quiet{number}"
        with open(sensor.reach(name), "wb") as file:
            file.write(b"text")
        closed = time.perf_counter()
        sensor.expect(Happening.CREATED, name)
        delays.append((time.perf_counter() - closed) * 1000)
        sensor.observations.clear()
    return delays


def unwatched_seconds(filesystem: str, files: int) -> float:
    with (
        tempfile.TemporaryDirectory() as directory,
        SensorRun(pathlib.Path(directory), *mounts_for(filesystem, pathlib.Path(directory))) as sensor,
    ):
        return generate(sensor.reach(), files)["seconds"]


def measure(filesystem: str, files: int) -> Row:
    before = unwatched_seconds(filesystem, files)
    with (
        tempfile.TemporaryDirectory() as directory,
        SensorRun(pathlib.Path(directory), *mounts_for(filesystem, pathlib.Path(directory))) as sensor,
        tempfile.TemporaryFile() as out,
    ):
        sensor.watch()
        quiet = quiet_delays(sensor, 100)
        cpu = cpu_of(sensor.process.pid)
        process = subprocess.Popen([sys.executable, "-c", GENERATOR, os.fsdecode(sensor.reach()), str(files)], stdout=out)
        told: dict[bytes, float] = {}
        events = 0
        silent_since = time.monotonic()
        while process.poll() is None or time.monotonic() - silent_since < 2.0:
            if sensor.receive(0.1):
                now = time.time()
                silent_since = time.monotonic()
                events += len(sensor.observations)
                for one in sensor.observations:
                    if one.happening is Happening.RENAMED:
                        told[one.path] = now
                sensor.observations.clear()
        out.seek(0)
        generated = json.load(out)
        spent = cpu_of(sensor.process.pid) - cpu
        wanted = [sensor.shown(f"{number // 1000}/{number}") for number in range(files)]
        delays = [(told[path] - done) * 1000 for path, done in zip(wanted, generated["done"], strict=True) if path in told]
        covered = max((one.until for one in sensor.overflows), default=0.0)
        missing = [done for path, done in zip(wanted, generated["done"], strict=True) if path not in told]
        resident = resident_of(sensor.process.pid)
    after = unwatched_seconds(filesystem, files)
    return Row(
        filesystem=filesystem,
        files=files,
        generator_seconds=generated["seconds"],
        slow_down=generated["seconds"] / ((before + after) / 2),
        seen=len(delays),
        lost=sum(done > covered for done in missing),
        overflows=len(sensor.overflows),
        events=events,
        p50_ms=percentiles(delays)[0],
        p99_ms=percentiles(delays)[1],
        idle_p50_ms=percentiles(quiet)[0],
        idle_p99_ms=percentiles(quiet)[1],
        sensor_cpu_seconds=spent,
        resident_megabytes=resident,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the sensor in a burst of file changes.")
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--filesystem", action="append", choices=["tmpfs", "ext4"])
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("fanotify marks on filesystems are root's: run as root")
    print("| filesystem | files | seen | lost | told to look | observations | generator s | slow-down | delay p50 / p99 ms |"
          " idle delay p50 / p99 ms | sensor CPU s | CPU us/file | resident MB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    is_lost = False
    for filesystem in options.filesystem or ["tmpfs", "ext4"]:
        row = measure(filesystem, options.files)
        is_lost |= row.lost > 0
        cells = [
            row.filesystem,
            row.files,
            row.seen,
            row.lost,
            row.overflows,
            row.events,
            f"{row.generator_seconds:.2f}",
            f"{row.slow_down:.2f}x",
            f"{row.p50_ms:.0f} / {row.p99_ms:.0f}",
            f"{row.idle_p50_ms:.1f} / {row.idle_p99_ms:.1f}",
            f"{row.sensor_cpu_seconds:.2f}",
            f"{row.sensor_cpu_seconds / row.files * 1e6:.0f}",
            f"{row.resident_megabytes:.1f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print(f"\nThis computer was {os.getloadavg()[0]:.1f} busy (load average) on {os.cpu_count()} cores.")
    return 1 if is_lost else 0


if __name__ == "__main__":
    sys.exit(main())
