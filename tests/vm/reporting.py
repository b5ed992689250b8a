"""What the parts that run inside a test machine share."""

import contextlib
import json
import os
import subprocess

SAMPLES = "/samples"
PYTHON = "/usr/bin/python3.11"
MEMFD = f"""
import os
program = os.memfd_create("x")
os.write(program, open("{SAMPLES}/static", "rb").read())
os.execve(program, ["x"], {{}})
"""


def say(**facts: object) -> None:
    """Report to whoever runs the machine."""
    print(json.dumps(facts), flush=True)


def ran(*command: str, environment: dict[str, str] | None = None) -> bool:
    """Whether the command said that its code ran."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, timeout=20, env={**os.environ, **(environment or {})}, check=False)
        return any(word in done.stdout for word in (b"ran", b"RAN", b"loaded"))
    return False
