"""What the warden does with the kernel guard: loads it when somebody wants it, keeps it alive, and takes what it met.

The guard refuses only while the gate enforces and its canary is answered; it lets everything pass when nobody says so for three
seconds. Only executions are judged: which mapped file is fit for code is not told to it yet.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from keibi.agent.gate.judging import GUARD_ENFORCE, GUARD_MODES, GUARD_OFF

if TYPE_CHECKING:
    from keibi.agent.gate.guard import Guard, Refusal

ALIVE_EVERY_SECONDS: Final = 0.5


class Guarding:
    """See the module's docstring. Used by one thread; the loading goes on in another."""

    def __init__(self, scope: str, always_seen: Iterable[str] = ()) -> None:
        """Make it; `scope` is the only cgroup directory that is guarded ("" for the whole computer)."""
        self._scope = _scope_of(scope)
        self._always_seen = frozenset(always_seen)
        self._loaded: list[tuple[Guard | None, str]] = []
        self._thread: threading.Thread | None = None
        self._guard: Guard | None = None
        self._is_settled = False
        self.reason = ""
        self._wanted = GUARD_OFF
        self._mode = 0
        self._devices: frozenset[str] = frozenset()
        self._alive_at = 0.0

    @property
    def level(self) -> str:
        """Return "A" or "B" once the guard is there, "" without one."""
        return self._guard.level if self._guard is not None else ""

    def want(self, mode: str) -> None:
        """Take what the judges want: GUARD_OFF, GUARD_REPORT or GUARD_ENFORCE."""
        self._wanted = mode
        if mode != GUARD_OFF and self._thread is None:
            self._thread = threading.Thread(target=self._load, name="guard", daemon=True)
            self._thread.start()

    def look(self, *, is_enforcing: bool) -> bool:
        """Bring the guard in line with what is wanted, and keep it alive; returns whether its loading has just ended."""
        has_come = bool(self._loaded) and not self._is_settled
        if has_come:
            self._guard, self.reason = self._loaded[0]
            self._is_settled = True
            self._tell_devices()
        if self._guard is None:
            return has_come
        mode = GUARD_MODES.index(self._wanted)
        if not self._devices or (self._wanted == GUARD_ENFORCE and not is_enforcing):
            mode = 0
        now = time.monotonic()
        if mode != self._mode:
            self._mode, self._alive_at = mode, now
            self._guard.configure(mode, judges_maps=False, scope=self._scope)
        elif mode and now - self._alive_at >= ALIVE_EVERY_SECONDS:
            self._alive_at = now
            self._guard.keep_alive()
        return has_come

    def set_devices(self, devices: Iterable[str]) -> None:
        """Name the file systems of which the gate sees what is executed, as mountinfo names them ("254:0")."""
        wanted = frozenset(devices)
        if wanted:
            wanted |= self._always_seen
        gone, self._devices = self._devices - wanted, wanted
        if self._guard is not None:
            for device in gone:
                self._guard.set_device(_number_of(device), 0)
            self._tell_devices()

    def take_refusals(self) -> "list[Refusal]":
        """Return what the guard met since the last call."""
        return self._guard.take_refusals() if self._guard is not None else []

    def stop(self) -> None:
        """Let everything pass until `look` is called again: the decider is gone."""
        self._devices = frozenset()
        if self._guard is not None and self._mode:
            self._mode = 0
            self._guard.configure(0, judges_maps=False)

    def _load(self) -> None:
        # Not at the top: most gates never need it, and it would be a tenth of this process's memory.
        from keibi.agent.gate.guard import Guard

        try:
            self._loaded.append(Guard.load())
        except (OSError, ValueError) as error:
            self._loaded.append((None, f"the guard cannot be used: {error}"))

    def _tell_devices(self) -> None:
        from keibi.agent.gate.guard import GATED, MEMORY, memory_device

        if self._guard is not None:
            for device in self._devices:
                self._guard.set_device(_number_of(device), GATED)
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
