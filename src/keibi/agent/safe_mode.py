"""What is left off because it kept crashing, on disk, so that a restart of the agent does not begin the crashing anew.

A worker enters safe mode after three crashes within ten minutes. When it is the core itself that does not survive, all workers
are left off: the agent then still talks to the manager, and can be mended by a new policy or version.
"""

import os
import time

import msgspec

from keibi.agent.durable_file import read_if_there, write_durably
from keibi.errors import TryLaterError

MAX_CORE_CRASHES = 3
WITHIN_SECONDS = 600.0
ALL_WORKERS = "*"


class LeftOff(msgspec.Struct, frozen=True):
    """Why a worker is off, and since when."""

    reason: str
    since: float


class SafeMode:
    """The workers in safe mode, by name. `ALL_WORKERS` stands for every one."""

    def __init__(self, state_directory: str) -> None:
        self._path = os.path.join(state_directory, "safe-mode.json")
        self._left_off: dict[str, LeftOff] = {}
        content = read_if_there(self._path)
        if content is not None:
            try:
                self._left_off = msgspec.json.decode(content, type=dict[str, LeftOff])
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._left_off = {}  # a damaged note must not keep protection off

    def reason(self, worker: str) -> str:
        """Return why this worker is off, "" when it is not."""
        found = self._left_off.get(worker) or self._left_off.get(ALL_WORKERS)
        return found.reason if found else ""

    def reasons(self) -> dict[str, str]:
        """Return all workers in safe mode with their reasons."""
        return {worker: left_off.reason for worker, left_off in self._left_off.items()}

    def enter(self, worker: str, reason: str) -> None:
        """Leave a worker off from now on; where the disk refuses, only until the agent ends."""
        self._left_off[worker] = LeftOff(reason, time.time())
        self._save()

    def leave(self, worker: str = ALL_WORKERS) -> list[str]:
        """Let a worker (or all) run again; returns the names that were in safe mode."""
        left = [name for name in self._left_off if worker in (name, ALL_WORKERS) or name == ALL_WORKERS]
        for name in left:
            del self._left_off[name]
        if left:
            self._save()
        return left

    def _save(self) -> None:
        try:
            write_durably(self._path, msgspec.json.encode(self._left_off))
        except TryLaterError:
            return


class StartRecord:
    """The starts of the core that were not followed by an orderly end."""

    def __init__(self, state_directory: str) -> None:
        self._path = os.path.join(state_directory, "starts.json")

    def begin(self) -> int:
        """Note a start, and return how many earlier ones within ten minutes had no orderly end."""
        now = time.time()
        recent = [at for at in self._read() if 0 <= now - at < WITHIN_SECONDS]
        self._write([*recent, now])
        return len(recent)

    def end(self) -> None:
        """Note that the core ends as it should."""
        self._write([])

    def _read(self) -> list[float]:
        content = read_if_there(self._path)
        try:
            return msgspec.json.decode(content, type=list[float]) if content is not None else []
        except (msgspec.DecodeError, UnicodeDecodeError):
            return []

    def _write(self, starts: list[float]) -> None:
        try:
            write_durably(self._path, msgspec.json.encode(starts))
        except TryLaterError:
            return  # counted again from nothing; better than not starting
