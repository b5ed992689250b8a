"""The warden: the decider's parent, which finds what is to be guarded and ends a decider that does not answer.

Theory of operation. The main thread starts the decider, waits for what it says, and looks ten times a second whether the canary is
answered; it never opens a file of a marked file system itself while the gate enforces, since it would wait for the very process that it
watches. A second thread opens the canary; a third follows mounts and judges and hands them to the decider by descriptor.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from keibi.agent.gate import judging, mount_table
from keibi.agent.gate.canary import Canary

UNANSWERED_SECONDS: Final = 0.7
"""With the canary's interval this is below one second."""
LOOK_SECONDS: Final = 0.05
FOLLOW_SECONDS: Final = 0.2
FOREIGN_SECONDS: Final = 1.0
MOST_WAIT_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True)
class WardenOptions:
    """What a gate is to do."""

    judges_directory: str
    excluded: tuple[str, ...] = ()
    own_root: int = 0  # the process whose descendants are the agent; 0: none
    private_point: str = ""  # guard this mount alone, asking as if policies prevented


@dataclass
class DeciderProcess:
    """A running decider."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    canary: Canary | None = None
    may_hold: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        """Send it an order; one that has ended is noticed elsewhere."""
        with self.lock, contextlib.suppress(OSError):
            judging.send(self.channel, message, descriptor)


class Warden:
    """See the module's docstring. `run` returns when `stop` was called or the core is gone."""

    def __init__(self, options: WardenOptions, tell: Callable[[str, dict[str, Any]], None]) -> None:
        """Make it; `tell` is called with "state", "closed", "restarted" or "overflowed" and what is to be said of it."""
        self._options = options
        self._tell = tell
        self._decider: DeciderProcess | None = None
        self._wake_end, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._follow_again = threading.Event()
        self._is_stopping = False
        self.is_tested = bool(options.private_point)
        self.test_failure = ""

    def stop(self) -> None:
        """Have `run` return; may be called from any thread or signal handler."""
        self._is_stopping = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"s")

    def run(self) -> None:
        """Keep a decider running."""
        follower = threading.Thread(target=self._follow, name="mounts", daemon=True)
        follower.start()
        wait = 0.25
        while not self._is_stopping:
            started_at = time.monotonic()
            self._decider = self._start_decider()
            self._follow_again.set()
            reason = self._watch(self._decider)
            self._end(self._decider)
            self._decider = None
            if self._is_stopping:
                return
            self._tell("closed", {"reason": reason})
            if time.monotonic() - started_at > MOST_WAIT_SECONDS * 2:
                wait = 0.25
            self._pause(wait)
            wait = min(MOST_WAIT_SECONDS, wait * 2)

    def _start_decider(self) -> DeciderProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "keibi.agent.gate.decider"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                process_group=0,
            )
        decider = DeciderProcess(process, ours)
        decider.send(
            {
                "type": "begin",
                "judges": self._options.judges_directory,
                "excluded": list(self._options.excluded),
                "own": [os.getpid()],
                "own_root": self._options.own_root,
                "is_proof": bool(self._options.private_point),
            }
        )
        if self._options.private_point:
            self._allow_holding(decider)
        return decider

    def _allow_holding(self, decider: DeciderProcess) -> None:
        decider.canary = Canary()
        decider.send({"type": "canary"}, decider.canary.descriptor)
        decider.canary.start()
        decider.may_hold = True
        decider.send({"type": "may_hold", "is_allowed": True, "reason": ""})

    def _watch(self, decider: DeciderProcess) -> str:
        """Serve the decider until it has to end; returns why."""
        poll = select.poll()
        poll.register(decider.channel.fileno(), select.POLLIN)
        poll.register(self._wake_end, select.POLLIN)
        while not self._is_stopping:
            for descriptor, _ in poll.poll(LOOK_SECONDS * 1000):
                if descriptor == self._wake_end:
                    os.read(self._wake_end, 64)
                elif (message := self._received(decider)) is None:
                    return _how_ended(decider.process)
                else:
                    self._on_message(decider, message)
            canary = decider.canary
            if canary is not None and canary.unanswered_seconds() > UNANSWERED_SECONDS:
                return f"it did not answer within {UNANSWERED_SECONDS} s"
        return "stopped"

    def _received(self, decider: DeciderProcess) -> dict[str, Any] | None:
        try:
            received = judging.receive(decider.channel)
        except (OSError, ValueError):
            return None
        return None if received is None else received[0]

    def _on_message(self, decider: DeciderProcess, message: dict[str, Any]) -> None:
        match message["type"]:
            case "mounts_wanted":
                self._follow_again.set()
            case "overflow":
                self._tell("overflowed", {})
            case "state":
                decider.state = message
                self._tell("state", message)

    def _end(self, decider: DeciderProcess) -> None:
        # Killing comes first: from that moment the kernel allows everything that waits.
        with contextlib.suppress(ProcessLookupError):
            decider.process.send_signal(signal.SIGKILL)
        decider.process.wait()
        decider.channel.close()
        if decider.canary is not None:
            decider.canary.close()
            os.close(decider.canary.descriptor)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_stopping and (left := until - time.monotonic()) > 0:
            select.select([self._wake_end], [], [], left)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_end, 64)

    # --- what is to be guarded

    def _follow(self) -> None:
        own_table = open("/proc/self/mountinfo", "rb", buffering=0)  # noqa: SIM115 -- open as long as the process lives
        own_namespace = os.readlink("/proc/self/ns/mnt")
        poll = select.poll()
        poll.register(own_table.fileno(), select.POLLERR | select.POLLPRI)
        names: list[str] = []
        told: list[mount_table.Mount] = []
        foreign: list[mount_table.Mount] = []
        foreign_at = 0.0
        while not self._is_stopping:
            is_new = self._follow_again.is_set()
            self._follow_again.clear()
            found = _judge_names(self._options.judges_directory)
            decider = self._decider
            if decider is not None:
                if is_new or found != names:
                    names = found
                    decider.send({"type": "judges", "names": names})
                is_changed = bool(poll.poll(0))
                now = time.monotonic()
                if not self._options.private_point and (is_new or now >= foreign_at):
                    foreign = [
                        mount
                        for pid, table in mount_table.foreign_tables(own_namespace)
                        for mount in mount_table.parse_mounts(table, f"/proc/{pid}/root")
                    ]
                    # However many namespaces there are, looking takes at most one fiftieth of a processor.
                    foreign_at = now + max(FOREIGN_SECONDS, 50 * (time.monotonic() - now))
                mounts = mount_table.parse_mounts(mount_table.read_table("/proc/self/mountinfo")) + foreign
                if is_new or is_changed or _without_process(mounts) != _without_process(told):
                    told = mounts
                    self._hand_over(decider, mounts)
            self._follow_again.wait(FOLLOW_SECONDS)

    def _hand_over(self, decider: DeciderProcess, mounts: list[mount_table.Mount]) -> None:
        for device, group in mount_table.by_device(mounts).items():
            if self._options.private_point and not any(
                os.fsdecode(mount.point) == self._options.private_point for mount in group
            ):
                continue
            descriptor = mount_table.reach(group)
            if descriptor is None:
                continue
            points = list(dict.fromkeys(judging.path_text(mount.point) for mount in group))[: mount_table.MAX_POINTS]
            try:
                decider.send({"type": "mount", "device": device, "fstype": group[0].type, "points": points}, descriptor)
            finally:
                os.close(descriptor)
        decider.send({"type": "mounts_end"})


def _without_process(mounts: list[mount_table.Mount]) -> list[tuple[int, str, bytes, str]]:
    return [(mount.id, mount.device, mount.point, mount.type) for mount in mounts]


def _judge_names(directory: str) -> list[str]:
    try:
        return sorted(name[:-5] for name in os.listdir(directory) if name.endswith(".sock"))
    except OSError:
        return []


def _how_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "it closed its channel"
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
