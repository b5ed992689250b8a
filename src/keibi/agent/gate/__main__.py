"""The gate's program: `python -m keibi.agent.gate --judges DIR --exclude STATE_DIR`, started by the core."""

import argparse
import contextlib
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final

from keibi.agent.gate import hardening
from keibi.agent.gate.core_channel import CoreChannel, event_message, hello_message
from keibi.agent.gate.remembering import SETTLED_SECONDS
from keibi.agent.gate.self_test import layers_are_told, run_self_test
from keibi.agent.gate.warden import Warden, WardenOptions

NICE: Final = -15
MOST_LINE_BYTES: Final = 65536
JOURNALS: Final = ("/var/log/journal", "/run/log/journal")
"""Whoever judges may have to log; a journal that waited for a verdict to open its next file would be waited for in turn."""


_TRIED: Final = {
    "signal": "Somebody tried to end, stop or limit a process of the agent.",
    "trace": "Somebody tried to look into, or to change, the memory of a process of the agent.",
    "write": "Somebody tried to change what the agent keeps on disk.",
    "control": "Somebody tried to get at the kernel guard's own maps.",
}
_ASKED_TO_STOP: Final = "Somebody asked the agent to stop."
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


class CoreOutlet:
    """Tells the core, which started this program with its socket as standard input."""

    def __init__(self, channel: CoreChannel, capabilities: list[tuple[str, bool, str]]) -> None:
        self._channel = channel
        self._capabilities = capabilities

    def fileno(self) -> int:
        """Return the descriptor on which orders come."""
        return self._channel.fileno()

    @property
    def is_blocked(self) -> bool:
        """Whether something waits to be written."""
        return self._channel.is_blocked

    def on_ready(self) -> bool:
        """Take orders; False when the core says stop or is gone."""
        messages = self._channel.receive()
        return messages is not None and all(message.get("type") != "Stop" for message in messages)

    def is_alive(self) -> None:
        """Say so, unless the core is behind with reading: then it would push out what is worth telling."""
        if not self._channel.is_blocked:
            self._channel.send({"type": "Alive"})

    def flush(self) -> None:
        """Write what waits."""
        self._channel.flush()

    def tell(self, what: str, of: dict[str, Any]) -> None:
        """Tell what an administrator must know; states go to the judges by the decider itself."""
        match what:
            case "guard":
                levels = [(f"kernel_guard_level_{level.lower()}", of["level"] == level, of["reason"]) for level in "AB"]
                # Level B is no gain where A is there, and would only be said to be missing.
                self._channel.send(hello_message([*self._capabilities, *(levels[:1] if of["level"] == "A" else levels)]))
            case "tried":
                self._channel.send(
                    event_message(
                        "gate.tampering",
                        "high" if of["was_refused"] else "medium",
                        _ASKED_TO_STOP if not of["was_refused"] and of["signal"] in _STOPPING else _TRIED[of["what"]],
                        details=of,
                    )
                )
            case "closed":
                self._channel.send(
                    event_message(
                        "gate.closed",
                        "high" if of["was_enforcing"] else "medium",
                        "The file gate was closed, so files were opened and executed without a check.",
                        reason=of["reason"],
                        details=of,
                    )
                )
            case "restarted":
                self._channel.send(event_message("gate.restarted", "medium", "The file gate works again.", details=of))
            case "suspended" if of["judges"]:
                self._channel.send(
                    event_message(
                        "gate.suspended",
                        "high",
                        f"No verdict came from {', '.join(of['judges'])} for so long that what it does not know is let pass "
                        "and reported until it answers again.",
                        details=of,
                    )
                )
            case "suspended":
                self._channel.send(event_message("gate.resumed", "medium", "Verdicts come again, and are kept to.", details=of))
            case "overflowed":
                self._channel.send(
                    event_message(
                        "gate.overflowed", "medium", "The kernel had more file events than fit; some were not looked at."
                    )
                )


class LineOutlet:
    """Tells whoever started a private gate, in lines of JSON on standard output; the end of standard input ends it."""

    def __init__(self) -> None:
        self._waiting = b""
        # A reader that is away or slow must not keep the warden from its watch.
        os.set_blocking(1, False)

    def fileno(self) -> int:
        """Return the descriptor on which orders come."""
        return 0

    @property
    def is_blocked(self) -> bool:
        """Whether something waits that must be written before more is read; never."""
        return False

    def on_ready(self) -> bool:
        """Return False when standard input has ended."""
        return bool(os.read(0, 4096))

    def is_alive(self) -> None:
        """Say nothing: nobody watches."""

    def flush(self) -> None:
        """Write what waits, as far as the reader takes it."""
        with contextlib.suppress(OSError):
            while self._waiting:
                self._waiting = self._waiting[os.write(1, self._waiting) :]

    def tell(self, what: str, of: dict[str, Any]) -> None:
        """Write a line, now or with a later one; states are left out while too much waits."""
        if what != "state" or len(self._waiting) < MOST_LINE_BYTES:
            self._waiting += json.dumps({"what": what, "of": of}).encode() + b"\n"
        self.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gate until the core says stop or is gone; returns the exit code."""
    parser = argparse.ArgumentParser(prog="keibi-gate", description="Answers the kernel about files that are opened or executed.")
    parser.add_argument("--judges", required=True, metavar="DIRECTORY", help="where judges listen")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="DIRECTORY",
        help="about whose files nobody is asked when they are opened",
    )
    parser.add_argument("--only-below", default="", metavar="DIRECTORY", help="never mark a mount that is not at or beneath it")
    parser.add_argument("--private", default="", metavar="DIRECTORY", help="guard a fresh tmpfs there, in an own mount namespace")
    parser.add_argument("--options", default="size=64m,mode=0755", help="of that tmpfs")
    parser.add_argument(
        "--settled", type=float, default=SETTLED_SECONDS, metavar="SECONDS", help="with --private; see remembering.py"
    )
    parser.add_argument(
        "--guard-scope", default="", metavar="CGROUP", help="with --private: have the kernel guard look at this cgroup alone"
    )
    parser.add_argument("--plain", action="store_true", help="with --private: ask only what the terms say, as on the computer")
    options = parser.parse_args(arguments)
    hardening.die_with_parent()
    hardening.be_called(b"keibi-gate")
    refused = hardening.come_first(nice=NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    excluded = (*(os.path.realpath(path) for path in options.exclude), *JOURNALS)
    if options.private:
        return _run_private(options, excluded)
    channel = CoreChannel(socket.socket(fileno=os.dup(0)))
    test_failure = run_self_test()
    capabilities = [
        ("fanotify_permission_events", not test_failure, test_failure),
        ("gate_priority", not refused, "; ".join(refused)),
    ]
    channel.send(hello_message(capabilities))
    warden_options = WardenOptions(
        judges_directory=options.judges,
        excluded=excluded,
        layers_are_told=layers_are_told(),
        # Where the core is a container's first process, everybody descends from it.
        own_root=os.getppid() if os.getppid() > 1 else 0,
        own_directory=excluded[0] if options.exclude else "",
        only_below=options.only_below,
        last_end=os.environ.get("KEIBI_LAST_END", ""),
    )
    Warden(warden_options, CoreOutlet(channel, capabilities), test_failure=test_failure).run()
    return 0


def _run_private(options: argparse.Namespace, excluded: tuple[str, ...]) -> int:
    point = os.path.realpath(options.private)
    hardening.enter_own_mounts()
    hardening.mount_memory(os.fsencode(point), options.options.encode())
    warden_options = WardenOptions(
        judges_directory=options.judges,
        excluded=excluded,
        layers_are_told=layers_are_told(),
        only_below=point,
        is_proof=not options.plain,
        settled_seconds=options.settled,
        state_seconds=0.2,
        guard_scope=options.guard_scope,
        # Without a scope it would judge the whole computer by the marks of this one mount.
        has_guard=bool(options.guard_scope),
    )
    Warden(warden_options, LineOutlet(), test_failure="").run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
