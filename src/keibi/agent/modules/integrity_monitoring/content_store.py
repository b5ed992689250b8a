"""Copies of small text files: for the difference an event shows, and for restore.

A copy is named by the hash of its content, so that equal files cost once. The store is bounded: the copy that was used
longest ago goes first, and what went is counted.
"""

import contextlib
import os
import re
import stat
from dataclasses import dataclass

import zstandard

_MODE = 0o600
_COPY_NAME = re.compile(rb"[0-9a-f]{64}")
_UNFINISHED = b".new"
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x1b"))


@dataclass(frozen=True, slots=True)
class StoreUse:
    """How full the store is."""

    copy_count: int
    total_bytes: int
    evicted_count: int  # since the store was opened


class ContentStore:
    """A directory of compressed copies. One process writes to it."""

    def __init__(self, directory: str, *, max_total_bytes: int) -> None:
        self._directory = os.fsencode(directory)
        self._max_total_bytes = max_total_bytes
        self._evicted_count = 0
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        self._sizes: dict[bytes, int] = {}  # oldest use first
        found = [(entry.stat(follow_symlinks=False), entry.name) for entry in os.scandir(self._directory)]
        for status, name in sorted(found, key=lambda item: item[0].st_mtime_ns):
            if stat.S_ISREG(status.st_mode) and _COPY_NAME.fullmatch(name):
                self._sizes[bytes.fromhex(name.decode())] = status.st_size
            elif name.endswith(_UNFINISHED):  # the agent was killed while it wrote
                os.unlink(self._path_of(name))
        self._total_bytes = sum(self._sizes.values())
        self._evict()

    def put(self, content_hash: bytes, data: bytes) -> bool:
        """Keep a copy; return False when it alone is larger than the store may be."""
        if content_hash in self._sizes:
            self._touch(content_hash)
            return True
        # With a checksum, so that a copy torn by a power failure is none.
        packed = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)
        if len(packed) > self._max_total_bytes:
            return False
        path = self._path(content_hash)
        unfinished = path + _UNFINISHED
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
            with open(descriptor, "wb") as file:
                file.write(packed)
            os.replace(unfinished, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise
        self._sizes[content_hash] = len(packed)
        self._total_bytes += len(packed)
        self._evict()
        return True

    def get(self, content_hash: bytes) -> bytes | None:
        """Return the content with that hash, or None when no copy is kept (any more) or it is damaged."""
        if content_hash not in self._sizes:
            return None
        try:
            with open(self._path(content_hash), "rb") as file:
                data = zstandard.ZstdDecompressor().decompress(file.read())
        except (OSError, zstandard.ZstdError):
            self._drop(content_hash)
            return None
        self._touch(content_hash)
        return data

    def holds(self, content_hash: bytes) -> bool:
        """Return whether a copy is kept, without using it."""
        return content_hash in self._sizes

    def resize(self, max_total_bytes: int) -> None:
        """Set another bound, evicting what is over it."""
        self._max_total_bytes = max_total_bytes
        self._evict()

    def use(self) -> StoreUse:
        """Return how full the store is."""
        return StoreUse(len(self._sizes), self._total_bytes, self._evicted_count)

    def _touch(self, content_hash: bytes) -> None:
        self._sizes[content_hash] = self._sizes.pop(content_hash)
        with contextlib.suppress(OSError):  # the order of use outlives the process, as far as it can
            os.utime(self._path(content_hash))

    def _evict(self) -> None:
        while self._total_bytes > self._max_total_bytes:
            self._drop(next(iter(self._sizes)))
            self._evicted_count += 1

    def _drop(self, content_hash: bytes) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path(content_hash))
        self._total_bytes -= self._sizes.pop(content_hash)

    def _path(self, content_hash: bytes) -> bytes:
        return self._path_of(content_hash.hex().encode())

    def _path_of(self, name: bytes) -> bytes:
        return os.path.join(self._directory, name)


def is_text(data: bytes) -> bool:
    """Return whether a person would call it text: no NUL, and few control characters in the first 8 KiB."""
    if b"\0" in data:
        return False
    sample = data[:8192]
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    return controls * 20 <= len(sample)
