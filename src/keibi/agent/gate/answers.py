"""What the kernel is told without a word of Python: that files may be opened and run whose verdict is remembered.

`keibi.agent.linux._answers` does it; without that part everything is left to Python, which says the same more slowly: a
question takes four microseconds at best on its way through the kernel and back, and Python adds twice as much.
"""

import select
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from keibi.agent.gate.fanotify import Group


class Answers(Protocol):
    """Waits in the loop's place, and keeps a copy of the memory of verdicts. For one thread."""

    @property
    def count(self) -> int:
        """How many events were answered without Python."""

    def wait(self, until: float, /) -> list[tuple[int, int]]:
        """Wait until something is to be done in Python, or the monotonic clock says so; return descriptors and epoll events.

        The group's descriptor is among them when `take` has something. An event is answered here, with yes, only when the file
        is known as it is now with all that its file system needs, nobody denied it, and no mark of the kernel could stand for it.
        """

    def take(self) -> list[tuple[int, int, int]]:
        """Return mask, descriptor and pid of the events that are left to Python.

        Raises:
            OSError: the kernel could not open a descriptor for an event, and has dealt with that one itself.
        """

    def put(self, device: int, inode: int, record: bytes, /) -> None:
        """Keep a file's record of `verdicts.py`; an older one of another file may have to go for it."""

    def forget(self, device: int, inode: int, /) -> None:
        """Forget a file."""

    def clear(self) -> None:
        """Forget all files."""

    def cover(self, devices: Iterable[tuple[int, int, int, bool]], /) -> None:
        """Take which file systems there are: device, bits needed to open, bits needed to execute, and whether it is memory.

        Files of other devices are left to Python.
        """


class PlainAnswers:
    """Leaves everything to Python."""

    def __init__(self, group: "Group", epoll: select.epoll) -> None:
        self._group, self._epoll = group, epoll
        self.count = 0

    def wait(self, until: float, /) -> list[tuple[int, int]]:
        """Wait as the kernel's epoll does."""
        return self._epoll.poll(max(0.0, until - time.monotonic()))

    def take(self) -> list[tuple[int, int, int]]:
        """Return what the group has."""
        return self._group.read()

    def put(self, device: int, inode: int, record: bytes, /) -> None:
        """Do nothing."""

    def forget(self, device: int, inode: int, /) -> None:
        """Do nothing."""

    def clear(self) -> None:
        """Do nothing."""

    def cover(self, devices: Iterable[tuple[int, int, int, bool]], /) -> None:
        """Do nothing."""


def make_answers(group: "Group", epoll: select.epoll) -> Answers:
    """Return the quick one where it was built."""
    try:
        from keibi.agent.linux import _answers
    except ImportError:
        return PlainAnswers(group, epoll)
    return _answers.Answers(group.fd, epoll.fileno())
