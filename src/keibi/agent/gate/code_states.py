"""What the kernel guard is told of single files (level A): approved ones, whose approval a writer ends, and refused ones.

Theory of operation. A file is entered as approved before it is known whether it has a writer, and that before a judge looks at
it: so whoever opens it for writing at any moment after the look leaves the mark of that in the kernel, and no read of the
judge's can be outdated unseen. A verdict that is no approval takes the entry back. The end of each writer comes in the same
queue as the openings after it, and takes everything back, so that the next one asks anew.
"""

import contextlib

from keibi.agent.gate.guard_maps import APPROVED, REFUSED, TAINTED, FileStates
from keibi.agent.gate.held import Held
from keibi.agent.gate.judging import CODE_APPROVED, CODE_FREE, CODE_REFUSED
from keibi.agent.gate.remembering import has_no_writer


class CodeStates:
    """See the module's docstring. Does nothing until `use` was called. Without memory a file is fanotify's alone."""

    def __init__(self) -> None:
        self._states: FileStates | None = None

    def use(self, states: FileStates) -> None:
        """Tell the guard from now on; what an earlier decider told is void."""
        self._states = states
        states.forget_all()

    @property
    def are_used(self) -> bool:
        """Whether there is a guard to tell."""
        return self._states is not None

    def begin(self, held: Held, descriptor: int) -> None:
        """Enter a file that is about to be judged."""
        if self._states is None:
            return
        device, inode = held.key.device, held.key.inode
        with contextlib.suppress(OSError):
            known = held.guard_state = self._states.of(device, inode)
            if known & REFUSED or known == APPROVED or (known & TAINTED and not has_no_writer(descriptor)):
                return
            self._states.set(device, inode, APPROVED)
            held.is_entered = has_no_writer(descriptor)
            if not held.is_entered:
                self._states.set(device, inode, known)

    def settle(self, held: Held) -> None:
        """Take what the judges said of a file that was begun."""
        if self._states is None or held.guard_state is None:
            return
        device, inode = held.key.device, held.key.inode
        # Whatever the guard says to this, whoever waits for an answer gets it.
        with contextlib.suppress(OSError):
            if held.is_denied and CODE_REFUSED in held.codes:
                self._states.set(device, inode, REFUSED)
            elif not held.is_denied and (CODE_FREE in held.codes or (CODE_APPROVED in held.codes and held.guard_state & REFUSED)):
                # Approved now, but nobody has noted whether it had a writer since the look: it is fanotify's alone.
                self._states.set(device, inode, 0)
            elif held.is_entered and (held.is_denied or CODE_APPROVED not in held.codes):
                self._states.set(device, inode, 0)

    def forget(self, device: int, inode: int) -> None:
        """Forget a file."""
        if self._states is not None:
            with contextlib.suppress(OSError):
                self._states.set(device, inode, 0)

    def forget_all(self) -> None:
        """Forget every file."""
        if self._states is not None:
            with contextlib.suppress(OSError):
                self._states.forget_all()
