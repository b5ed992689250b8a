"""Runs every check and every test, and ends with one line that says how it went.

Static checks come first because they are quick; a failure there does not keep the tests from running.
"""

import platform
import subprocess
import sys
import time

CHECKS = (
    ("style", ["ruff", "check", "."]),
    ("format", ["ruff", "format", "--check", "-q", "."]),
    ("types", ["mypy"]),
    ("layers", ["lint-imports", "--no-logo"]),
    ("dependencies", ["deptry", "src"]),
)
# The browser's driver keeps an event loop running in its process, where no other test could run one of its own.
SUITES = (
    ("tests", ["tests", "--ignore=tests/console", "--ignore=tests/vm"]),
    ("console tests", ["tests/console"]),
    ("tests on other kernels", ["tests/vm"]),
)


def main() -> int:
    """Return 0 when everything passed."""
    bin_directory = sys.prefix + "/bin/"
    failed = []
    for name, command in CHECKS:
        started = time.monotonic()
        outcome = subprocess.run([bin_directory + command[0], *command[1:]], capture_output=True, text=True, check=False)
        print(f"{name:14} {'passed' if outcome.returncode == 0 else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
        if outcome.returncode:
            failed.append(name)
            print(outcome.stdout[-6000:] + outcome.stderr[-3000:], flush=True)
    suites = (("tests", sys.argv[1:]),) if sys.argv[1:] else SUITES
    missing = "" if sys.argv[1:] else why_no_machines()
    for name, selection in suites:
        if missing and "tests/vm" in selection:
            continue
        if subprocess.run([bin_directory + "pytest", "--durations=10", *selection], check=False).returncode:
            failed.append(name)
    if missing:
        print(f"NOT TESTED: level A of the kernel guard, on Debian's stock kernels in QEMU: {missing}", flush=True)
    if failed:
        print(f"FAILED: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


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
