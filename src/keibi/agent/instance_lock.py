"""One agent for one state directory."""

import contextlib
import fcntl
import os

from keibi.errors import TryLaterError


class InstanceLock:
    """Held from `take` until `release` or the end of the process, however that comes."""

    def __init__(self, state_directory: str) -> None:
        self._path = os.path.join(state_directory, "agent.lock")
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock and write the process id into it.

        Raises:
            TryLaterError: another agent has it, or the directory is not writable.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise TryLaterError(
                "state_not_writable",
                f"the lock cannot be made: {error.strerror}",
                where=self._path,
                hint="run as root, on a disk that can be written",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise TryLaterError(
                "agent_running",
                f"another agent (process {holder or 'unknown'}) runs with this state directory",
                where=self._path,
                hint="stop that one first, or set another state_directory",
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the number too
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
