"""Conditions with an end that survive a restart of the worker: maintenance, and being unlocked by hand."""

import time
from dataclasses import dataclass

import msgspec

from keibi.agent.modules.application_control.inventory import Inventory

MAX_MINUTES = 7 * 24 * 60


class _Kept(msgspec.Struct, frozen=True):
    until: float
    by: str


@dataclass
class Lasting:
    """One such condition. Any thread may ask; one thread begins and ends it."""

    inventory: Inventory
    name: str  # of the setting that keeps it
    until: float = 0.0
    by: str = ""

    def __post_init__(self) -> None:
        stored = self.inventory.setting(self.name)
        if stored is not None:
            kept = msgspec.json.decode(stored, type=_Kept)
            # A clock that was set back must not make it last longer than anybody could have asked for.
            self.until, self.by = min(kept.until, time.time() + MAX_MINUTES * 60), kept.by

    @property
    def is_on(self) -> bool:
        """Whether it holds now."""
        return time.time() < self.until

    @property
    def minutes_left(self) -> float:
        """How long it still holds."""
        return max(0.0, (self.until - time.time()) / 60)

    def begin(self, minutes: float, by: str) -> None:
        """Let it hold from now on; the caller's transaction makes it lasting."""
        self._keep(time.time() + minutes * 60, by)

    def end(self) -> None:
        """Let it hold no longer."""
        self._keep(0.0, "")

    def _keep(self, until: float, by: str) -> None:
        self.inventory.put_setting(self.name, msgspec.json.encode(_Kept(until, by)))
        self.until, self.by = until, by
