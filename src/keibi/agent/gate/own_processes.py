"""The agent's own processes, about which nobody is asked: a judge that waited for itself would wait for ever."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from typing import Final

_INIT_PID: Final = 1
_MOST_STEPS: Final = 32
_MOST_KNOWN: Final = 2000


class OwnProcesses:
    """Tells the agent's processes from others: those named, what judges declared, and what descends from the core."""

    def __init__(self, named: Iterable[int] = ()) -> None:
        self._named = frozenset((_INIT_PID, *named))
        self._declared: dict[str, frozenset[int]] = {}
        self._all = self._named
        self._root = 0
        self._known: dict[int, bool] = {}
        self._known_until = 0.0

    def name(self, pids: Iterable[int], root: int) -> None:
        """Add processes of the agent; descendants of `root` (0: none) are its too."""
        self._named |= frozenset(pids) | (frozenset((root,)) if root else frozenset())
        self._root = root
        self._gather()

    def declare(self, judge: str, pids: Iterable[int]) -> None:
        """Take what a judge says its processes are, in place of what it said before."""
        self._declared[judge] = frozenset(pids)
        self._gather()

    def __contains__(self, pid: int) -> bool:
        return pid in self._all

    def descends(self, pid: int) -> bool:
        """Return whether a process descends from the core; reads /proc, so it is asked only where the answer matters."""
        if not self._root:
            return False
        now = time.monotonic()
        # For a second, in which no process id comes round again.
        if now > self._known_until or len(self._known) > _MOST_KNOWN:
            self._known.clear()
            self._known_until = now + 1.0
        known = self._known.get(pid)
        if known is None:
            known = self._known[pid] = self._has_root_above(pid)
        return known

    def _has_root_above(self, pid: int) -> bool:
        for _ in range(_MOST_STEPS):
            if pid == self._root:
                return True
            if pid <= 1:
                return False
            pid = parent_of(pid)
        return False

    def _gather(self) -> None:
        self._all = self._named.union(*self._declared.values())


def parent_of(pid: int) -> int:
    """Return the parent's process id; 0 when it has none or the process is gone."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        # The name in parentheses may hold anything, so what follows the last one counts.
        return int(os.read(descriptor, 1024).rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    finally:
        os.close(descriptor)


def descendants_of(pid: int) -> Iterator[int]:
    """Yield the processes below one, each before its own children are looked up."""
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for child in _children_of(parent):
            yield child
            waiting.append(child)


def _children_of(pid: int) -> list[int]:
    children = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                children += [int(word) for word in file.read().split()]
    return children
