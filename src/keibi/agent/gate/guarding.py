"""What the warden does with the kernel guard: loads it when somebody wants it, keeps it alive, and takes what it met.

The guard refuses only while the gate enforces and its canary is answered; it lets everything pass when nobody says so for three
seconds. At level A the decider tells it of single files (`code_states.py`), and it keeps the agent's own processes and what they
keep from others: from all but PID 1, and but for the one way to stop the agent, a SIGTERM to its core, which is told of.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keibi.agent.gate import mount_table
from keibi.agent.gate.judging import GUARD_ENFORCE, GUARD_MODES, GUARD_OFF
from keibi.agent.gate.own_processes import descendants_of
from keibi.agent.gate.wishes import NETWORK_TYPES

if TYPE_CHECKING:
    from keibi.agent.gate.guard import Guard, Refusal

ALIVE_EVERY_SECONDS: Final = 0.5
SAME_SECONDS: Final = 60.0
"""For so long the same attempt of the same process is told of once."""
_INITIAL_PIDS: Final = 0xEFFFFFFC
"""The inode of the computer's own process id namespace: in another, numbers mean other processes than the kernel's."""
_CGROUPS: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_MOST_TRIED: Final = 1000


@dataclass(frozen=True)
class Agent:
    """What of the agent the guard keeps from others."""

    core_pid: int = 0  # 0: nothing is kept from anybody
    directory: str = ""  # what only the agent writes to


class Guarding:
    """See the module's docstring. Used by one thread; the loading goes on in another."""

    def __init__(self, scope: str, always_seen: Iterable[str] = (), agent: Agent | None = None) -> None:
        """Make it; `scope` is the only cgroup directory that is guarded ("" for the whole computer)."""
        self._scope = _scope_of(scope)
        self._agent = agent or Agent()
        self._always_seen = frozenset(always_seen)
        self._loaded: list[tuple[Guard | None, str]] = []
        self._thread: threading.Thread | None = None
        self._guard: Guard | None = None
        self._is_settled = False
        self.reason = ""
        self._wanted = (GUARD_OFF, False, False)
        self._in_force = (0, False, False)
        self._devices: frozenset[str] = frozenset()
        self._left: frozenset[str] = frozenset()
        self._alive_at = 0.0
        self._tried: dict[tuple[object, ...], float] = {}

    @property
    def level(self) -> str:
        """Return "A" or "B" once the guard is there, "" without one."""
        return self._guard.level if self._guard is not None else ""

    @property
    def file_descriptors(self) -> tuple[int, ...]:
        """What the decider needs to tell the guard of single files; empty where the guard has no use for it."""
        return self._guard.file_descriptors if self._guard is not None and self._guard.level == "A" else ()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the guard met something, -1 without a guard."""
        return self._guard.fileno() if self._guard is not None else -1

    def want(self, mode: str, *, judges_maps: bool, protects: bool) -> None:
        """Take what the judges want: GUARD_OFF, GUARD_REPORT or GUARD_ENFORCE, and what of level A."""
        self._wanted = (mode, judges_maps, protects)
        if mode != GUARD_OFF and self._thread is None:
            self._thread = threading.Thread(target=self._load, name="guard", daemon=True)
            self._thread.start()

    def look(self, *, is_enforcing: bool) -> bool:
        """Bring the guard in line with what is wanted, and keep it alive; returns whether its loading has just ended."""
        has_come = bool(self._loaded) and not self._is_settled
        if has_come:
            self._guard, self.reason = self._loaded[0]
            self._is_settled = True
            self._know_agent()
            self._tell_devices()
        if self._guard is None:
            return has_come
        word, judges_maps, protects = self._wanted
        mode = GUARD_MODES.index(word)
        if not self._devices or (word == GUARD_ENFORCE and not is_enforcing):
            mode = 0
        now = time.monotonic()
        if (mode, judges_maps, protects) != self._in_force:
            self._in_force, self._alive_at = (mode, judges_maps, protects), now
            protects = protects and bool(self._agent.core_pid)
            self._guard.configure(mode, judges_maps=judges_maps, protects=protects, scope=self._scope)
        elif mode and now - self._alive_at >= ALIVE_EVERY_SECONDS:
            self._alive_at = now
            self._guard.keep_alive()
        return has_come

    def set_devices(self, devices: Iterable[str], left: Iterable[str] = ()) -> None:
        """Name the file systems of which the gate sees what is executed, as mountinfo names them ("254:0").

        `left` are those that it knows and does not watch. So are servers' file systems that this computer has mounted: what a
        policy leaves out is not the guard's to refuse.
        """
        wanted = frozenset(devices)
        if wanted:
            wanted |= self._always_seen
        known_before = self._devices | self._left
        self._devices, self._left = wanted, (frozenset(left) | _servers()) - wanted
        if self._guard is not None:
            for device in known_before - self._devices - self._left:
                self._guard.set_device(_number_of(device), 0)
            self._tell_devices()

    def take_refusals(self) -> "list[Refusal]":
        """Return what the guard met since the last call."""
        return self._guard.take_refusals() if self._guard is not None else []

    def stop(self) -> None:
        """Let everything pass until `look` is called again: the decider is gone."""
        self._devices = frozenset()
        if self._guard is not None and self._in_force[0]:
            self._in_force = (0, False, False)
            self._guard.configure(0, judges_maps=False)

    def is_news(self, refusal: "Refusal") -> bool:
        """Return whether something tried against the agent has not just been told."""
        now = time.monotonic()
        same = (refusal.kind, refusal.pid, refusal.name, refusal.flags, refusal.was_refused)
        if now - self._tried.get(same, -SAME_SECONDS) < SAME_SECONDS:
            return False
        if len(self._tried) >= _MOST_TRIED:
            self._tried.clear()
        self._tried[same] = now
        return True

    def _know_agent(self) -> None:
        """Tell the guard what is the agent's; children that processes of the agent have from here on it knows by itself."""
        if self._guard is None or self._guard.level != "A" or not self._agent.core_pid:
            return
        if os.stat("/proc/self/ns/pid").st_ino != _INITIAL_PIDS:
            self._agent = Agent()
            return
        self._guard.own(self._agent.core_pid, may_be_stopped=True)
        for pid in descendants_of(self._agent.core_pid):
            # Before its children are looked up: what it forks in between is either among them or known already.
            self._guard.own(pid)
        for path in (self._agent.directory, *_cgroup_switches()):
            with contextlib.suppress(OSError):
                self._guard.guard_path(path)
        self._guard.guard_itself()

    def _load(self) -> None:
        # Not at the top: most gates never need it, and it would be a tenth of this process's memory.
        from keibi.agent.gate.guard import Guard

        try:
            self._loaded.append(Guard.load())
        except (OSError, ValueError) as error:
            self._loaded.append((None, f"the guard cannot be used: {error}"))

    def _tell_devices(self) -> None:
        from keibi.agent.gate.guard import GATED, LEFT, MEMORY, memory_device

        if self._guard is not None:
            for device in self._devices:
                self._guard.set_device(_number_of(device), GATED)
            for device in self._left:
                self._guard.set_device(_number_of(device), LEFT)
            self._guard.set_device(memory_device(), MEMORY)


def _number_of(device: str) -> int:
    major, _, minor = device.partition(":")
    return os.makedev(int(major), int(minor))


def _scope_of(directory: str) -> tuple[int, int]:
    """Return the id of a cgroup and how deep it lies below the root; (0, 0) for none."""
    if not directory:
        return 0, 0
    depth, parent = 0, directory
    with contextlib.suppress(OSError):
        while os.path.exists(os.path.join(parent, "cgroup.type")):  # the root has none
            depth += 1
            parent = os.path.dirname(parent)
    return os.stat(directory).st_ino, depth


def _servers() -> frozenset[str]:
    """Return the file systems of servers that this process's own mounts show; not FUSE, for which any user's process answers."""
    mounts = mount_table.parse_mounts(mount_table.read_table("/proc/self/mountinfo"))
    return frozenset(mount.device for mount in mounts if mount.type in NETWORK_TYPES)


def _cgroup_switches() -> list[str]:
    """Return the files that end or freeze everything in this process's cgroup, or in one above: no hook of signals sees that."""
    with open("/proc/self/cgroup") as file:
        place = next((line.split("::", 1)[1].strip() for line in file if line.startswith("0::")), "/")
    switches = []
    while place != "/":
        switches += [f"{root}{place}/{name}" for root in _CGROUPS for name in ("cgroup.kill", "cgroup.freeze")]
        place = os.path.dirname(place)
    return switches
