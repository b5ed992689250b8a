"""The gate's memory of verdicts, bounded: the oldest half goes when it is full.

A verdict holds for a file as it was: *identity* (device, inode) finds the record, *stamp* (size, times) must be equal. Bits of a
record stand for a judge and an event (`bit_of`).
"""

import struct
from typing import Final

from keibi.agent.gate.answers import Answers
from keibi.agent.gate.judging import EXEC, OPEN, WRITTEN

EVENT_BITS: Final = {EXEC: 0, OPEN: 1, WRITTEN: 2}
MAX_JUDGES: Final = 8
IGNORABLE: Final = 1 << (MAX_JUDGES * 4)
"""Stands among the allowed bits of a file for which a mark in the kernel may stand in."""

STAMP_BYTES: Final = 24
_BITS = struct.Struct("QQ")
_INODE = (1 << 64) - 1

Identity = int
Stamp = bytes  # size and times of a file; packed, so that tens of thousands cost little


def bit_of(judge: int, event: str) -> int:
    """Return the bit of a judge (0 to 7) and an event."""
    return 1 << (judge * 4 + EVENT_BITS[event])


def identity_of(device: int, inode: int) -> Identity:
    """Return what finds a file's record."""
    return device << 64 | inode


class Verdicts:
    """Which judges allowed or denied which events of which files."""

    def __init__(self, most: int = 24_000, answers: Answers | None = None) -> None:
        """Remember at most so many files; `answers` is told of each, to answer by itself."""
        self._answers = answers
        self._half = most // 2
        # Two halves instead of an order of use: a look-up costs no writing, and dropping costs nothing.
        self._young: dict[Identity, bytes] = {}
        self._old: dict[Identity, bytes] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def of(self, identity: Identity, stamp: Stamp) -> tuple[int, int]:
        """Return the bits that are allowed and those that are denied."""
        record = self._young.get(identity)
        if record is None:
            record = self._old.pop(identity, None)
            if record is None:
                return 0, 0
            self._put(identity, record)
        if record[:STAMP_BYTES] != stamp:
            return 0, 0
        allowed, denied = _BITS.unpack_from(record, STAMP_BYTES)
        return allowed, denied

    def remember(self, identity: Identity, stamp: Stamp, allowed: int, denied: int) -> None:
        """Add what a judge said about the file as it is now."""
        old_allowed, old_denied = self.of(identity, stamp)
        bits = _BITS.pack((old_allowed | allowed) & ~denied, (old_denied | denied) & ~allowed)
        self._put(identity, stamp + bits)

    def forget(self, identity: Identity) -> bool:
        """Forget a file; returns whether anything was known of it."""
        if self._answers is not None:
            self._answers.forget(identity >> 64, identity & _INODE)
        known = self._old.pop(identity, None) is not None
        return self._young.pop(identity, None) is not None or known

    def clear(self) -> None:
        """Forget everything."""
        self._young.clear()
        self._old.clear()
        if self._answers is not None:
            self._answers.clear()

    def _put(self, identity: Identity, record: bytes) -> None:
        if len(self._young) >= self._half and identity not in self._young:
            self._old = self._young
            self._young = {}
        self._young[identity] = record
        if self._answers is not None:
            self._answers.put(identity >> 64, identity & _INODE, record)
