"""Plays the agent's core inside a test machine: starts the real gate and application control worker, and tells what they say.

`python -m tests.vm.core_program DIRECTORY [--deaf]`. One JSON object a line: {"pids": …} once, {"gate": frame}, {"event": …}.
Ends in order by SIGTERM; with `--deaf` it heeds none, as a core that hangs.
"""

import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys

from keibi.agent.gate.core_channel import CoreChannel
from keibi.protection.application_control.rules import RuleAction
from keibi.protection.application_control.settings import ApplicationControlSettings
from tests.system.application_control_worker import ApplicationControlWorker, hash_entry, ruleset

MATERIAL = pathlib.Path("/samples/material")
KNOWN = ("/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/python3.11/lib-dynload")


def main() -> int:
    """Run until SIGTERM; returns the exit code."""
    directory, is_deaf = sys.argv[1], "--deaf" in sys.argv[2:]
    wake, wake_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake_end, b"t"))
    worker = ApplicationControlWorker(directory, roots=KNOWN)
    ours, theirs = socket.socketpair()
    state = os.path.join(directory, "state")
    command = [sys.executable, "-m", "keibi.agent.gate", "--judges", worker.judges, "--exclude", state]
    gate = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
    theirs.close()
    channel = CoreChannel(ours)
    allowed = [hash_entry((MATERIAL / name).read_bytes()) for name in ("good", "good.so")]
    settings = ApplicationControlSettings(inventory_cpu_percent=400)
    worker.configure(ruleset(RuleAction.ALLOW, *allowed), settings=settings, seconds=180.0)
    say(pids={"core": os.getpid(), "gate": gate.pid, "worker": worker.process.pid})
    told = 0
    while True:
        ready = select.select([wake, channel], [], [], 0.1)[0]
        if wake in ready and os.read(wake, 64) and not is_deaf:
            break
        if channel in ready:
            pass_on(channel)
        worker.take()
        for event in worker.events[told:]:
            say(event={"kind": event.kind, "subject": event.subject, "reason": event.details.get("reason_code")})
        told = len(worker.events)
    channel.send({"type": "Stop"})
    gate.wait(20)
    pass_on(channel)
    worker.stop()
    say(stopped=True)
    return 0


def pass_on(channel: CoreChannel) -> None:
    """Tell what the gate has said."""
    for frame in channel.receive() or []:
        say(gate=frame)


def say(**facts: object) -> None:
    """Tell whoever started this; nobody may be left."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
