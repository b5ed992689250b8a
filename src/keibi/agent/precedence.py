"""Who comes first on a busy computer: a thread that works for a process that the kernel holds, before everything ordinary; what
nobody waits for, a little behind it.

The kernel reckons with each thread by itself (setpriority(2) with 0 means the calling thread). Taking precedence needs
CAP_SYS_NICE or a limit that `allow` has raised; where it is refused, things go on in ordinary order.
"""

import contextlib
import os
import resource
from collections.abc import Iterator

HELD_NICE = -10
UNHURRIED_NICE = 5
_HIGHEST = 20


def allow() -> None:
    """Let this process and its children take precedence also without root. To be called while root."""
    with contextlib.suppress(OSError, ValueError):
        most = _HIGHEST - HELD_NICE
        resource.setrlimit(resource.RLIMIT_NICE, (most, max(most, resource.getrlimit(resource.RLIMIT_NICE)[1])))


def take(nice: int, process: int = 0) -> None:
    """Give the calling thread, or the first thread of a process, this niceness."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process, nice)


@contextlib.contextmanager
def starting_first() -> Iterator[None]:
    """Have threads that are started in the body come first."""
    former = os.getpriority(os.PRIO_PROCESS, 0)
    take(HELD_NICE)
    try:
        yield
    finally:
        take(former)


class Precedence:
    """That of one thread, which changes with what it works for."""

    def __init__(self) -> None:
        self._nice: int | None = None

    def be_for(self, *, is_held: bool) -> None:
        """Come first while a process is held for it, and stay behind otherwise."""
        nice = HELD_NICE if is_held else UNHURRIED_NICE
        if nice != self._nice:
            self._nice = nice
            take(nice)
