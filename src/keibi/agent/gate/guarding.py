"""What the warden does with the kernel guard: loads it when somebody wants it, keeps it alive, and tells what it refused.

The guard refuses only while the gate enforces and its canary is answered; it forgets to when nobody says so for three seconds.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from typing import Final

from keibi.agent.gate.guard import ENFORCE, GATED, MEMORY, REPORT, Guard, Refusal, memory_device
from keibi.agent.gate.judging import GUARD_ENFORCE, GUARD_OFF, GUARD_REPORT

ALIVE_EVERY_SECONDS: Final = 0.5
_MODES: Final = {GUARD_OFF: 0, GUARD_REPORT: REPORT, GUARD_ENFORCE: ENFORCE}


class Guarding:
    """See the module's docstring. Used by one thread; the loading goes on in another."""

    def __init__(self, scope: str, always_gated: Iterable[int] = ()) -> None:
        """Make it; `scope` is the only cgroup directory that is guarded ("" for the whole computer)."""
        self._scope = _scope_of(scope)
        self._always_gated = frozenset(always_gated)
        self._loaded: list[tuple[Guard | None, str]] = []
        self._thread: threading.Thread | None = None
        self.guard: Guard | None = None
        self.reason = ""
        self._is_settled = False
        self._wanted = (GUARD_OFF, False)
        self._given: tuple[int, bool] = (0, False)
        self._devices: frozenset[int] = frozenset()
        self._own: frozenset[int] = frozenset()
        self._alive_at = 0.0

    @property
    def level(self) -> str:
        """Return "A" or "B" once the guard is there, "" without one."""
        return self.guard.level if self.guard is not None else ""

    def want(self, mode: str, *, protects: bool) -> None:
        """Take what the judges want: GUARD_OFF, GUARD_REPORT or GUARD_ENFORCE, and whether the agent is to be protected."""
        self._wanted = (mode, protects)
        if mode != GUARD_OFF and self._thread is None:
            self._thread = threading.Thread(target=self._load, name="guard", daemon=True)
            self._thread.start()

    def look(self, *, is_enforcing: bool) -> bool:
        """Bring the guard in line with what is wanted, and keep it alive; returns whether it has just come."""
        has_come = False
        if self._loaded and not self._is_settled:
            self.guard, self.reason = self._loaded[0]
            self._is_settled = True
            has_come = True
            self._give_devices()
            self._give_own()
        if self.guard is None:
            return has_come
        mode, protects = self._wanted
        given = (_MODES[mode if is_enforcing or mode != GUARD_ENFORCE else GUARD_OFF], protects)
        now = time.monotonic()
        if given != self._given:
            self._given = given
            self._alive_at = now
            self.guard.configure(given[0], judges_maps=True, protects=protects, scope=self._scope)
        elif given[0] and now - self._alive_at >= ALIVE_EVERY_SECONDS:
            self._alive_at = now
            self.guard.keep_alive()
        return has_come

    def set_devices(self, devices: Iterable[int]) -> None:
        """Name the file systems for whose executions the gate answers, or which it watches."""
        wanted = frozenset(devices) | self._always_gated
        if wanted != self._devices:
            gone, self._devices = self._devices - wanted, wanted
            if self.guard is not None:
                for device in gone:
                    self.guard.set_device(device, 0)
                self._give_devices()

    def set_own(self, pids: Iterable[int]) -> None:
        """Name the agent's processes."""
        wanted = frozenset(pids)
        if wanted != self._own:
            gone, self._own = self._own - wanted, wanted
            if self.guard is not None:
                for pid in gone:
                    self.guard.set_own(pid, is_own=False)
                self._give_own()

    def take_refusals(self) -> list[Refusal]:
        """Return what was refused since the last call."""
        return self.guard.take_refusals() if self.guard is not None else []

    def stop(self) -> None:
        """Let everything pass until `look` is called again: the decider is gone."""
        if self.guard is not None and self._given[0]:
            self._given = (0, False)
            self.guard.configure(0, judges_maps=False)

    def _load(self) -> None:
        self._loaded.append(Guard.load())

    def _give_devices(self) -> None:
        if self.guard is not None:
            for device in self._devices:
                self.guard.set_device(device, GATED)
            self.guard.set_device(memory_device(), MEMORY)

    def _give_own(self) -> None:
        if self.guard is not None:
            for pid in self._own:
                self.guard.set_own(pid, is_own=True)


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
