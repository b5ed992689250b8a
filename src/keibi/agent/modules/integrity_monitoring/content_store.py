"""Copies of small text files: for the difference an event shows, and for restore.

A copy is named by the hash of its content, so that equal files cost once. The store is bounded: the copy that was used
longest ago goes first, and what went is counted.
"""

import contextlib
import os
import stat
from dataclasses import dataclass

import zstandard

_MODE = 0o600


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
            if stat.S_ISREG(status.st_mode) and len(name) == 64:
                self._sizes[bytes.fromhex(name.decode())] = status.st_size
        self._total_bytes = sum(self._sizes.values())

    def put(self, content_hash: bytes, data: bytes) -> bool:
        """Keep a copy; return False when it alone is larger than the store may be."""
        if content_hash in self._sizes:
            self._touch(content_hash)
            return True
        packed = zstandard.ZstdCompressor(level=3).compress(data)
        if len(packed) > self._max_total_bytes:
            return False
        path = self._path(content_hash)
        descriptor = os.open(path + b".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
        try:
            with open(descriptor, "wb") as file:
                file.write(packed)
            os.replace(path + b".new", path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path + b".new")
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
                return zstandard.ZstdDecompressor().decompress(file.read())
        except (OSError, zstandard.ZstdError):
            return None

    def use(self) -> StoreUse:
        """Return how full the store is."""
        return StoreUse(len(self._sizes), self._total_bytes, self._evicted_count)

    def _touch(self, content_hash: bytes) -> None:
        self._sizes[content_hash] = self._sizes.pop(content_hash)

    def _evict(self) -> None:
        while self._total_bytes > self._max_total_bytes:
            oldest = next(iter(self._sizes))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(oldest))
            self._total_bytes -= self._sizes.pop(oldest)
            self._evicted_count += 1

    def _path(self, content_hash: bytes) -> bytes:
        return os.path.join(self._directory, content_hash.hex().encode())


def is_text(data: bytes) -> bool:
    """Return whether a person would call it text: UTF-8 without NUL, or no NUL in its first 8 KiB and few control characters."""
    if b"\0" in data:
        return False
    sample = data[:8192]
    controls = sum(1 for byte in sample if byte < 32 and byte not in b"\t\n\r\f\x1b")
    return controls * 20 <= len(sample)
