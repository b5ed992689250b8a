"""The warden: the decider's parent, which ends a decider that does not answer, and starts another.

Theory of operation. The main thread starts the decider, takes what it and the core say, and looks twenty times a second
whether the canary is answered. It opens no file of a marked file system meanwhile, for it would wait for the very process
that it watches. Holding is allowed in this order: some judge wants it, the self-test on a private mount passed, the canary
was seen by the decider. When the decider ends, for whatever reason, the kernel has allowed everything that waited; another
one starts, later each time.
"""

import contextlib
import os
import select
import signal
import socket
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from keibi.agent.gate import hardening, judging, mount_table
from keibi.agent.gate.canary import Canary
from keibi.agent.gate.decider import serve
from keibi.agent.gate.following import Follower
from keibi.agent.gate.guarding import Agent, Guarding
from keibi.agent.gate.remembering import SETTLED_SECONDS

UNANSWERED_SECONDS: Final = 0.7
"""With the canary's interval this stays below one second."""
SILENT_SECONDS: Final = 10.0
"""The decider says something every few seconds; this ends one that hangs while there is no canary."""
CANARY_SEEN_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.05
IDLE_SECONDS: Final = 1.0
ALIVE_SECONDS: Final = 1.0
LEAST_WAIT_SECONDS: Final = 0.25
MOST_WAIT_SECONDS: Final = 30.0
CALM_SECONDS: Final = 60.0
"""A decider that ran for so long is restarted without waiting long."""


@dataclass(frozen=True, kw_only=True)
class WardenOptions:
    """What a gate is to do."""

    judges_directory: str
    excluded: tuple[str, ...] = ()  # directories about whose files nobody is asked when they are opened
    own_root: int = 0  # the process whose descendants are the agent; 0: none
    own_directory: str = ""  # what only the agent writes to
    only_below: str = ""  # no mount but those at or beneath this directory is ever marked
    is_proof: bool = False  # ask as if policies prevented
    settled_seconds: float = SETTLED_SECONDS  # how old a file's last change must be for a verdict to be remembered
    state_seconds: float = 2.0  # how often the decider says how it is
    guard_scope: str = ""  # the only cgroup directory that the kernel guard looks at
    last_end: str = ""  # how the gate before this one ended, when nobody asked for that
    layers_are_told: bool = False  # whether the kernel tells of a layer's file when that of an overlay is opened
    has_guard: bool = True  # whether the kernel guard may be loaded at all


class Outlet(Protocol):
    """Whom the warden tells what happens, and who may end it."""

    def fileno(self) -> int:
        """Return the descriptor on which orders come."""

    @property
    def is_blocked(self) -> bool:
        """Whether something waits to be written."""

    def on_ready(self) -> bool:
        """Take orders; False: end."""

    def is_alive(self) -> None:
        """Let it be known that the warden does its work; must not wait."""

    def flush(self) -> None:
        """Write what waits."""

    def tell(self, what: str, of: dict[str, Any]) -> None:
        """Tell "state", "closed", "restarted", "overflowed", "suspended", "guard" or "tried" (something against the agent).

        Must not wait.
        """


@dataclass
class _Decider:
    """A running decider."""

    pid: int
    channel: socket.socket
    started_at: float
    heard_at: float
    is_restart: bool
    canary: Canary | None = None
    canary_at: float = 0.0
    may_hold: bool = False
    wants_holding: bool = False
    wants_watching: bool = False
    state: dict[str, Any] = field(default_factory=dict)


class Warden:
    """See the module's docstring. `run` returns when the outlet says so."""

    def __init__(self, options: WardenOptions, outlet: Outlet, *, test_failure: str) -> None:
        """Make it; `test_failure` is why permission events cannot be used here, or ""."""
        self._options = options
        self._outlet = outlet
        self._test_failure = test_failure
        self._follower = Follower(options.judges_directory, options.only_below, layers_are_told=options.layers_are_told)
        agent = Agent(options.own_root, options.own_directory)
        self._guarding = Guarding(options.guard_scope, _mounted_devices() if options.guard_scope else (), agent)
        self._is_stopping = False
        self._restarts = 0
        self._last_end = ""
        self._alive_at = 0.0

    def run(self) -> None:
        """Keep a decider running."""
        self._follower.start()
        if self._options.last_end:
            self._restarts, self._last_end = 1, f"the gate was closed: its warden ended by {self._options.last_end}"
            reason = f"its warden ended by {self._options.last_end}"
            self._outlet.tell("closed", {"reason": reason, "was_enforcing": True, "again_in_seconds": 0.0})
        wait = LEAST_WAIT_SECONDS
        while not self._is_stopping:
            decider = self._start()
            try:
                reason = self._watch(decider)
            finally:
                self._end(decider)
            if self._is_stopping:
                return
            wait = LEAST_WAIT_SECONDS if time.monotonic() - decider.started_at > CALM_SECONDS else wait
            self._restarts += 1
            last_end, self._last_end = self._last_end, f"the gate was closed: {reason}"
            # One that never comes up, such as for want of root, is told of once and not for every attempt.
            if decider.state or self._last_end != last_end:
                self._outlet.tell("closed", {"reason": reason, "was_enforcing": decider.may_hold, "again_in_seconds": wait})
            self._pause(wait)
            wait = min(MOST_WAIT_SECONDS, wait * 2)

    def _start(self) -> _Decider:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A fork shares the memory of everything that is loaded. The threads of this process are not in the child, and none of
        # them holds a lock that the decider takes.
        pid = os.fork()
        if pid == 0:
            os._exit(_be_decider(theirs))
        theirs.close()
        ours.settimeout(SILENT_SECONDS / 2)
        now = time.monotonic()
        decider = _Decider(pid, ours, now, now, is_restart=self._restarts > 0)
        self._order(
            decider,
            {
                "type": "begin",
                "judges": self._options.judges_directory,
                "excluded": list(self._options.excluded),
                "own": [os.getpid()],
                "own_root": self._options.own_root,
                "is_proof": self._options.is_proof,
                "can_hold": not self._test_failure,
                "settled_seconds": self._options.settled_seconds,
                "state_seconds": self._options.state_seconds,
                "restarts": self._restarts,
                "reason": self._last_end,
            },
        )
        self._hand_over_guard(decider)
        self._follower.serve(ours.dup())
        return decider

    def _watch(self, decider: _Decider) -> str:
        """Serve the decider until it has to end; returns why."""
        while not self._is_stopping:
            look_seconds = LOOK_SECONDS if decider.canary is not None else IDLE_SECONDS
            for descriptor in self._ready(decider.channel.fileno(), look_seconds):
                if descriptor == self._outlet.fileno():
                    self._serve_outlet()
                elif descriptor == self._guarding.fileno():
                    continue  # taken below
                elif (message := _received(decider)) is None:
                    return _how_ended(decider.pid)
                else:
                    self._on_message(decider, message)
            now = time.monotonic()
            if decider.canary is not None:
                if decider.canary.unanswered_seconds() > UNANSWERED_SECONDS:
                    return f"it did not answer within {UNANSWERED_SECONDS} s"
                if not decider.may_hold and now - decider.canary_at > CANARY_SEEN_SECONDS:
                    self._refuse(decider, "the kernel tells nothing of a marked file in memory")
            self._look_after_guard(decider)
            if now - decider.heard_at > SILENT_SECONDS:
                return f"it said nothing for {SILENT_SECONDS:.0f} s"
        return "stopped"

    def _on_message(self, decider: _Decider, message: dict[str, Any]) -> None:
        decider.heard_at = time.monotonic()
        match message["type"]:
            case "wants":
                decider.wants_holding = bool(message["holding"])
                decider.wants_watching = bool(message["watching"])
                self._follower.look_again(wants_network=bool(message["network"]))
                if self._options.has_guard:
                    self._guarding.want(message["guard"], judges_maps=message["maps"], protects=message["protects"])
                self._settle(decider)
            case "canary_seen":
                if decider.canary is not None and not decider.may_hold:
                    decider.may_hold = True
                    self._order(decider, {"type": "may_hold", "is_allowed": True, "reason": ""})
            case "overflow":
                self._outlet.tell("overflowed", {})
            case "suspended":
                self._outlet.tell("suspended", {"judges": message["judges"]})
            case "state":
                is_ready = message["is_enforcing"] if decider.wants_holding else bool(message["mounts"])
                if decider.is_restart and is_ready:
                    decider.is_restart = False
                    self._outlet.tell("restarted", {"restarts": self._restarts, "is_enforcing": message["is_enforcing"]})
                decider.state = message
                self._guarding.set_devices(message["devices"], message["left"])
                wants = {"wants_holding": decider.wants_holding, "wants_watching": decider.wants_watching}
                self._outlet.tell("state", {**message, **wants})

    def _look_after_guard(self, decider: _Decider) -> None:
        if self._guarding.look(is_enforcing=decider.may_hold):
            self._outlet.tell("guard", {"level": self._guarding.level, "reason": self._guarding.reason})
            self._hand_over_guard(decider)
        for refusal in self._guarding.take_refusals():
            name = judging.path_text(refusal.name)
            told = {"what": refusal.kind, "pid": refusal.pid, "name": name, "was_refused": refusal.was_refused}
            if refusal.is_against_agent:
                if self._guarding.is_news(refusal):
                    self._outlet.tell("tried", {**told, "program": _program_of(refusal.pid), "signal": refusal.flags})
            else:
                about = {"device": refusal.device, "inode": refusal.inode, "is_tainted": refusal.is_tainted}
                self._order(decider, {"type": "guarded", **told, **about})

    def _hand_over_guard(self, decider: _Decider) -> None:
        for descriptor in self._guarding.file_descriptors:
            self._order(decider, {"type": "guard_map"}, descriptor)

    def _settle(self, decider: _Decider) -> None:
        """Take the next step towards holding, or away from it."""
        if decider.wants_holding and decider.canary is None and not self._test_failure:
            decider.canary = Canary()
            decider.canary_at = time.monotonic()
            self._order(decider, {"type": "canary"}, decider.canary.descriptor)
            decider.canary.start()
        elif decider.wants_holding and self._test_failure:
            self._refuse(decider, self._test_failure)
        elif not decider.wants_holding and decider.may_hold:
            self._refuse(decider, "")

    def _refuse(self, decider: _Decider, reason: str) -> None:
        self._order(decider, {"type": "may_hold", "is_allowed": False, "reason": reason})
        self._test_failure = reason
        decider.may_hold = False
        self._drop_canary(decider)

    def _order(self, decider: _Decider, message: dict[str, Any], descriptor: int | None = None) -> None:
        # One that does not take its orders does not answer the canary either.
        with contextlib.suppress(OSError):
            judging.send(decider.channel, message, descriptor, flags=socket.MSG_DONTWAIT)

    def _end(self, decider: _Decider) -> None:
        # Killing comes first: from that moment the kernel allows everything that waits.
        os.kill(decider.pid, signal.SIGKILL)
        os.waitpid(decider.pid, 0)
        self._guarding.stop()
        self._follower.serve(None)
        # Also what the follower may be sending at this moment.
        with contextlib.suppress(OSError):
            decider.channel.shutdown(socket.SHUT_RDWR)
        decider.channel.close()
        self._drop_canary(decider)

    def _drop_canary(self, decider: _Decider) -> None:
        if decider.canary is not None:
            decider.canary.close()
            decider.canary = None

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_stopping and (left := until - time.monotonic()) > 0:
            if self._ready(None, min(left, ALIVE_SECONDS)):
                self._serve_outlet()

    def _ready(self, channel: int | None, seconds: float) -> list[int]:
        if time.monotonic() >= self._alive_at:
            self._alive_at = time.monotonic() + ALIVE_SECONDS
            self._outlet.is_alive()
        poll = select.poll()
        poll.register(self._outlet.fileno(), select.POLLIN | (select.POLLOUT if self._outlet.is_blocked else 0))
        if channel is not None:
            poll.register(channel, select.POLLIN)
        if channel is not None and self._guarding.fileno() >= 0:
            poll.register(self._guarding.fileno(), select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]

    def _serve_outlet(self) -> None:
        self._outlet.flush()
        if not self._outlet.on_ready():
            self._is_stopping = True


def _mounted_devices() -> list[str]:
    """Return the file systems that are mounted now, which a guard of a single cgroup shall not meddle with."""
    return [mount.device for mount in mount_table.parse_mounts(mount_table.read_table("/proc/self/mountinfo"))]


def _program_of(pid: int) -> str:
    """Return the program that a process runs, as far as it is still there."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _received(decider: _Decider) -> dict[str, Any] | None:
    try:
        received = judging.receive(decider.channel)
    except (OSError, ValueError):
        return None
    return None if received is None else received[0]


def _be_decider(channel: socket.socket) -> int:
    """Go on as the decider, in the forked child; whatever else the warden has open is closed first."""
    try:
        os.dup2(channel.fileno(), 3, inheritable=False)
        os.closerange(4, hardening.MOST_DESCRIPTORS)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        serve(socket.socket(fileno=3))
    except BaseException:  # noqa: BLE001 -- nothing may return into the warden's own work
        traceback.print_exc()
        return 1
    return 0


def _how_ended(pid: int) -> str:
    """Return how a child ended that has closed its channel; it is left to be waited for."""
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            is_killed = ended.si_code != os.CLD_EXITED
            return f"it was ended by signal {ended.si_status}" if is_killed else f"it ended with exit code {ended.si_status}"
        select.select([], [], [], 0.01)
    return "it closed its channel"
