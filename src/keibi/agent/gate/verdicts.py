"""The gate's memory of verdicts, bounded: the oldest half goes when it is full.

A verdict holds for a file as it was: *identity* (device, inode) finds the record, *stamp* (size, times) must be equal. Bits of a
record stand for a judge and an event (`bit_of`).
"""

from typing import Final

from keibi.agent.gate.judging import EXEC, OPEN, WRITTEN

EVENT_BITS: Final = {EXEC: 0, OPEN: 1, WRITTEN: 2}
MAX_JUDGES: Final = 8
IGNORABLE: Final = 1 << (MAX_JUDGES * 4)
"""Stands among the allowed bits of a file for which a mark in the kernel may stand in."""

Identity = int
Stamp = tuple[int, int, int]


def bit_of(judge: int, event: str) -> int:
    """Return the bit of a judge (0 to 7) and an event."""
    return 1 << (judge * 4 + EVENT_BITS[event])


def identity_of(device: int, inode: int) -> Identity:
    """Return what finds a file's record."""
    return device << 64 | inode


class Verdicts:
    """Which judges allowed or denied which events of which files."""

    def __init__(self, most: int = 24_000) -> None:
        self._half = most // 2
        # Two halves instead of an order of use: a look-up costs no writing, and dropping costs nothing.
        self._young: dict[Identity, tuple[Stamp, int, int]] = {}
        self._old: dict[Identity, tuple[Stamp, int, int]] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def of(self, identity: Identity, stamp: Stamp) -> tuple[int, int]:
        """Return the bits that are allowed and those that are denied."""
        record = self._young.get(identity)
        if record is None:
            record = self._old.get(identity)
            if record is None:
                return 0, 0
            self._put(identity, record)
        if record[0] != stamp:
            return 0, 0
        return record[1], record[2]

    def remember(self, identity: Identity, stamp: Stamp, allowed: int, denied: int) -> None:
        """Add what a judge said about the file as it is now."""
        old_allowed, old_denied = self.of(identity, stamp)
        self._put(identity, (stamp, (old_allowed | allowed) & ~denied, (old_denied | denied) & ~allowed))

    def forget(self, identity: Identity) -> bool:
        """Forget a file; returns whether anything was known of it."""
        known = self._old.pop(identity, None) is not None
        return self._young.pop(identity, None) is not None or known

    def clear(self) -> None:
        """Forget everything."""
        self._young.clear()
        self._old.clear()

    def _put(self, identity: Identity, record: tuple[Stamp, int, int]) -> None:
        if len(self._young) >= self._half and identity not in self._young:
            self._old = self._young
            self._young = {}
        self._young[identity] = record
