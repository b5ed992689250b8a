"""Measures the file baseline beside AIDE, on one tree in one run.

    python benchmarks/baseline.py --tree /usr --rounds 2

Each figure is of a whole process: wall time, processor time (user and system) and peak memory as the kernel counts them.
The tools take turns, on a tree that was read once before, and use as many threads as there are cores; the table gives each
tool's best round. AIDE is set to record what Keibi records (type, permissions, owner, group, size, times, inode, link count,
link target, SHA-256), without compressing its database. Keibi's database is written with full synchronisation, AIDE's with none.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

MOST_SECONDS = 270
CPU_RATIO_GOALS = {"aide --init": 6.0, "aide --check": 40.0}


@dataclass(frozen=True)
class Figure:
    """One process, measured."""

    name: str
    wall_seconds: float
    cpu_seconds: float
    peak_megabytes: float
    entry_count: int


def measure(name: str, command: list[str], *, accepted: range = range(1)) -> Figure:
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    output = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in accepted:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: {output.decode(errors='replace')[-500:]}")
    entries = int(output.split()[-1]) if output.strip().split()[-1:] and output.split()[-1].isdigit() else 0
    return Figure(name, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, entries)


def keibi(task: str, tree: str, directory: str, algorithm: str) -> Figure:
    command = [sys.executable, __file__, "--child", task, "--tree", tree, "--directory", directory, "--algorithm", algorithm]
    return measure(f"keibi {task} ({algorithm})", command)


def run_child(task: str, tree: str, directory: str, algorithm: str) -> None:
    """Do one thing as the integrity worker does it, in a process of its own."""
    from keibi.agent.linux.files import Wish
    from keibi.agent.modules.integrity_monitoring.baseline import Baseline, VersionKind
    from keibi.agent.modules.integrity_monitoring.scan_plan import DirectoryDecision, ScanPlan, Trust
    from keibi.agent.modules.integrity_monitoring.scanner import Scanner

    wish = Wish.STATE | Wish.CONTENT
    decision = DirectoryDecision(files=wish, directories=wish)
    trusts = {"build": Trust.NOTHING, "rescan": Trust.CHANGE_TIME, "share": Trust.SHARE, "full": Trust.NOTHING}
    plan = ScanPlan(
        roots=[os.fsencode(tree)],
        decide=lambda _: decision,
        algorithm=algorithm,
        trust=trusts[task],
        cpu_percent=100 * (os.cpu_count() or 1),
    )
    path = os.path.join(directory, f"{algorithm}.db")
    if task == "build":
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(path + suffix):
                os.unlink(path + suffix)
    baseline = Baseline.open(path)
    scanner = Scanner(baseline, plan)
    if task == "build":
        with baseline.transaction():
            version = baseline.begin_version(VersionKind.BUILD)
        scanner.build(version)
        with baseline.transaction():
            baseline.finish_version(version)
    else:
        for difference in scanner.differences():
            print(f"differs: {difference.directory!r}: {len(difference.changes)}", file=sys.stderr)
    baseline.close()
    if not scanner.summary.is_complete:
        sys.exit("the scan did not end")
    print(scanner.summary.entry_count)


def aide(task: str, tree: str, directory: str) -> Figure:
    config = os.path.join(directory, "aide.conf")
    with open(config, "w") as file:
        file.write(
            f"database_in=file:{directory}/aide.db\ndatabase_out=file:{directory}/aide.{task}.db\ngzip_dbout=no\n"
            f"report_url=file:{directory}/aide.report\nlog_level=error\nnum_workers={os.cpu_count()}\n"
            f"{tree} p+u+g+ftype+s+m+c+i+n+l+sha256\n"
        )
    # 1 to 7: something in the tree was added, removed or changed meanwhile.
    figure = measure(f"aide --{task}", ["aide", f"--config={config}", f"--{task}"], accepted=range(8))
    if task == "init":
        os.replace(f"{directory}/aide.init.db", f"{directory}/aide.db")
    return figure


def table(figures: list[Figure], tree: str, database_megabytes: float) -> str:
    best = {}
    for figure in figures:
        if figure.name not in best or figure.cpu_seconds < best[figure.name].cpu_seconds:
            best[figure.name] = figure
    entries = max(figure.entry_count for figure in figures)
    lines = [
        f"Baseline of {tree}: {entries} entries, {os.cpu_count()} cores, database {database_megabytes:.0f} MB, best rounds",
        "",
        "| what | wall s | CPU s | peak MB | AIDE does | wall ratio | CPU ratio | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figure in best.items():
        peer_name = "aide --init" if " build" in name else "aide --check"
        peer = best.get(peer_name) if name.startswith("keibi") else None
        row = f"| {name} | {figure.wall_seconds:.2f} | {figure.cpu_seconds:.2f} | {figure.peak_megabytes:.0f} |"
        if peer:
            wall, cpu = peer.wall_seconds / figure.wall_seconds, peer.cpu_seconds / figure.cpu_seconds
            has_goal = " build (sha256)" in name or " rescan" in name
            goal = f"{CPU_RATIO_GOALS[peer_name]:.0f}" if has_goal else ""
            row += f" {peer_name} | {wall:.1f} | {cpu:.1f} | {goal} |"
        else:
            row += " | | | |"
        lines.append(row)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the file baseline beside AIDE.")
    parser.add_argument("--tree", default="/usr", help="directory to take the baseline of (default /usr)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each tool has its turn (default 2)")
    parser.add_argument("--json", metavar="FILE", help="write every measured figure there too")
    parser.add_argument("--child", choices=["build", "rescan", "share", "full"], help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument("--algorithm", default="sha256", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tree = os.path.realpath(arguments.tree)
    if not os.path.isdir(tree):
        parser.error(f"--tree {arguments.tree} is no directory")
    if arguments.child:
        run_child(arguments.child, tree, arguments.directory, arguments.algorithm)
        return
    has_aide = shutil.which("aide") is not None
    with tempfile.TemporaryDirectory(prefix="keibi-bench-") as directory:
        keibi("build", tree, directory, "sha256")  # so that every tool finds the tree in memory
        figures = []
        started = time.monotonic()
        for done in range(arguments.rounds):
            spent = time.monotonic() - started
            if done and spent * (done + 1) / done > MOST_SECONDS:
                print(f"This computer is busy: {done} of {arguments.rounds} rounds took {spent:.0f} s, so no more are run.\n")
                break
            figures.append(keibi("build", tree, directory, "sha256"))
            if has_aide:
                figures.append(aide("init", tree, directory))
            figures.append(keibi("rescan", tree, directory, "sha256"))
            if has_aide:
                figures.append(aide("check", tree, directory))
            figures.append(keibi("share", tree, directory, "sha256"))
            figures.append(keibi("full", tree, directory, "sha256"))
            figures.append(keibi("build", tree, directory, "blake3"))
        size = os.path.getsize(os.path.join(directory, "sha256.db")) / 1e6
    print(table(figures, tree, size))
    if not has_aide:
        print("\nAIDE is not installed (apt-get install aide), so there is nothing to compare with.")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump([asdict(figure) for figure in figures], file, indent=1)


if __name__ == "__main__":
    main()
