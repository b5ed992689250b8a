"""Opens (and executes) files of a directory for some seconds, or until told; prints what it met as JSON.

`python gate_load_program.py DIRECTORY SECONDS` runs inside a private gate's namespace.
"""

import json
import os
import random
import sys
import time


def main() -> None:
    directory, seconds = sys.argv[1], float(sys.argv[2])
    names = [os.path.join(directory, name) for name in os.listdir(directory)]
    chooser = random.Random()
    met = {"count": 0, "denied": 0, "max_seconds": 0.0, "failed": 0}
    until = time.monotonic() + seconds
    print("ready", flush=True)
    while time.monotonic() < until:
        name = chooser.choice(names)
        started_at = time.monotonic()
        try:
            os.close(os.open(name, os.O_RDONLY))
        except PermissionError:
            met["denied"] += 1
        except OSError:
            met["failed"] += 1
        met["count"] += 1
        met["max_seconds"] = max(met["max_seconds"], time.monotonic() - started_at)
    print(json.dumps(met), flush=True)


if __name__ == "__main__":
    main()
