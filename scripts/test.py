"""Runs every check and every test, and ends with one line that says how it went.

Static checks come first because they are quick; a failure there does not keep the tests from running.
"""

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
    # The browser's driver keeps an event loop running in its process, where no other test could run one of its own.
    plain = ["tests", "--ignore=tests/console", "--ignore=tests/vm"]
    for name, selection in (("tests", plain), ("console tests", ["tests/console"])):
        if subprocess.run([bin_directory + "pytest", "--durations=10", *(sys.argv[1:] or selection)], check=False).returncode:
            failed.append(name)
        if sys.argv[1:]:
            break
    if failed:
        print(f"FAILED: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
