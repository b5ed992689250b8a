"""A file whose every opening the decider must answer: what proves, four times a second, that it does.

The file is in memory only and belongs to no mount: nobody else comes to open it, and no other file system is needed for it.
"""

import contextlib
import os
import threading
import time
from typing import Final

INTERVAL_SECONDS: Final = 0.25


class Canary:
    """Opens the file in a thread of its own. `close` must be called by whoever made it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("keibi-gate-canary", os.MFD_CLOEXEC)
        os.write(self.descriptor, b"canary\n")
        self._path = f"/proc/self/fd/{self.descriptor}"
        self._asked_at: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)

    def start(self) -> None:
        """Begin to open it."""
        self._thread.start()

    def close(self) -> None:
        """Stop; an opening that hangs ends with the decider."""
        self._stop.set()

    def unanswered_seconds(self) -> float:
        """Return for how long an opening has waited; 0 when none waits."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._asked_at = time.monotonic()
                # Denied, or no descriptor left: an answer all the same.
                with contextlib.suppress(OSError):
                    os.close(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
                self._asked_at = None
                self._stop.wait(INTERVAL_SECONDS)
        finally:
            os.close(self.descriptor)
