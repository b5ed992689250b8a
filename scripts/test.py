"""Runs every check and every test, and ends with one line that says how it went.

Static checks come first, side by side, because they are quick; a failure there does not keep the tests from running.
"""

import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

CHECKS = (
    ("style", ["ruff", "check", "."]),
    ("format", ["ruff", "format", "--check", "-q", "."]),
    ("types", ["mypy"]),
    ("layers", ["lint-imports", "--no-logo"]),
    ("dependencies", ["deptry", "src"]),
)
# What watches the whole kernel has the computer to itself. The rest shares its processors: each worker has databases, an event
# store and folders of its own. The browser's driver keeps an event loop running in its process, where no other test could run
# one of its own.
SIDE_BY_SIDE = ["--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"]
SUITES = (
    ("tests", [*SIDE_BY_SIDE, "tests", "--ignore=tests/system", "--ignore=tests/console", "--ignore=tests/vm"]),
    ("system tests", ["tests/system"]),
    ("console tests", ["tests/console"]),
    ("tests on other kernels", ["tests/vm"]),
)


def main() -> int:
    """Return 0 when everything passed."""
    bin_directory = sys.prefix + "/bin/"
    began_at = time.monotonic()
    failed = check(bin_directory)
    suites = (("tests", sys.argv[1:]),) if sys.argv[1:] else SUITES
    missing = "" if sys.argv[1:] else why_no_machines()
    for name, selection in suites:
        if missing and "tests/vm" in selection:
            continue
        if subprocess.run([bin_directory + "pytest", "--durations=10", *selection], check=False).returncode:
            failed.append(name)
    if missing:
        print(f"NOT TESTED: level A of the kernel guard, on Debian's stock kernels in QEMU: {missing}", flush=True)
    took = f"in {(time.monotonic() - began_at) / 60:.1f} minutes"
    print(f"FAILED: {', '.join(failed)}, {took}" if failed else f"PASSED: everything that was run, {took}", flush=True)
    return 1 if failed else 0


def check(bin_directory: str) -> list[str]:
    """Run the static checks side by side; say how each went, and return the names of those that failed."""

    def run(command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
        began_at = time.monotonic()
        done = subprocess.run([bin_directory + command[0], *command[1:]], capture_output=True, text=True, check=False)
        return done, time.monotonic() - began_at

    failed = []
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        for (name, _), (done, seconds) in zip(CHECKS, pool.map(run, [command for _, command in CHECKS]), strict=True):
            print(f"{name:14} {'FAILED' if done.returncode else 'passed'} in {seconds:.0f} s", flush=True)
            if done.returncode:
                failed.append(name)
                print(done.stdout[-6000:] + done.stderr[-3000:], flush=True)
    return failed


def why_no_machines() -> str:
    """Install what test machines need; return why there can be none, or ""."""
    if platform.machine() != "x86_64":
        return f"the machines are x86_64, this is {platform.machine()}"
    installed = subprocess.run(
        ["scripts/install_packages.sh", "vm"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    said = installed.stdout.strip().splitlines()
    return "" if installed.returncode == 0 else (said[-1] if said else "their packages could not be installed")


if __name__ == "__main__":
    sys.exit(main())
