"""The gate's program: `python -m keibi.agent.gate --judges DIR --exclude STATE_DIR`, started by the core."""

import argparse
import json
import os
import sys
import threading
from typing import Any

from keibi.agent.gate import hardening
from keibi.agent.gate.warden import Warden, WardenOptions


def main() -> int:
    """Run the gate; returns its exit code."""
    parser = argparse.ArgumentParser(prog="keibi-gate", description="Answers the kernel about files that are opened or executed.")
    parser.add_argument("--judges", required=True, help="directory in which judges listen")
    parser.add_argument("--exclude", action="append", default=[], help="directory whose files are opened without asking")
    parser.add_argument("--private", default="", help="guard only a fresh tmpfs at this directory, in an own mount namespace")
    parser.add_argument("--options", default="size=64m,mode=0755", help="of that tmpfs")
    options = parser.parse_args()
    hardening.die_with_parent()
    hardening.come_first(nice=-15)
    if options.private:
        return _run_private(options)
    return 1


def _run_private(options: argparse.Namespace) -> int:
    hardening.enter_own_mounts()
    hardening.mount_memory(os.fsencode(options.private), options.options.encode())
    warden = Warden(
        WardenOptions(
            judges_directory=options.judges, excluded=tuple(options.exclude), private_point=os.path.realpath(options.private)
        ),
        _tell_by_line,
    )
    threading.Thread(target=_stop_at_end_of_input, args=(warden,), daemon=True).start()
    warden.run()
    return 0


def _stop_at_end_of_input(warden: Warden) -> None:
    while os.read(0, 4096):
        pass
    warden.stop()


def _tell_by_line(what: str, of: dict[str, Any]) -> None:
    os.write(1, json.dumps({"what": what, "of": of}).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
