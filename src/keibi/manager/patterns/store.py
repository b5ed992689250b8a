"""Contents on the manager's disk, each under its SHA-256: written whole or not at all, never changed, deleted when unused."""

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from keibi.errors import InputError, TryLaterError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1024 * 1024
YOUNG_SECONDS = 3600.0
LEFT_SECONDS = 86400.0
"""A workspace that nobody wrote into for so long was left by a manager that ended in mid-import."""
SPARE_BYTES = 512 * 1024 * 1024
"""Left free on the disk, for database and events."""
_WORKSPACE = ".import-"


class ContentStore:
    """The files in `content/` of the manager's state directory. Thread-safe, since a file never changes under its name."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def path_of(self, sha256: str) -> str:
        """Return where a content lies.

        Raises:
            InputError: there is none of that digest.
        """
        path = os.path.join(self._directory, sha256)
        if not _SHA256.fullmatch(sha256) or not os.path.isfile(path):
            raise InputError("content_not_found", f"there is no content {sha256[:80]!r}")
        return path

    @contextmanager
    def workspace(self) -> Iterator[str]:
        """Give a directory on the same disk for an upload and what is made of it; it goes afterwards.

        Raises:
            TryLaterError: the disk cannot be written.
        """
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            path = tempfile.mkdtemp(prefix=_WORKSPACE, dir=self._directory)
        except OSError as error:
            raise _unwritable(error, self._directory) from error
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def check_room(self, more_bytes: int) -> None:
        """Do nothing while the disk has room for so many bytes more.

        Raises:
            TryLaterError: it is nearly full.
        """
        try:
            free = shutil.disk_usage(self._directory).free
        except OSError as error:
            raise _unwritable(error, self._directory) from error
        if free < SPARE_BYTES + more_bytes:
            raise TryLaterError(
                "content_full", "the manager's disk is nearly full", where=self._directory, hint="make room on that disk"
            )

    def take(self, path: str) -> tuple[str, int]:
        """Move a finished file into the store, and return its SHA-256 and size.

        Raises:
            TryLaterError: the disk cannot be written.
        """
        try:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
                os.fsync(file.fileno())
                size = file.tell()
            os.chmod(path, 0o600)
            os.replace(path, os.path.join(self._directory, digest.hexdigest()))
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unwritable(error, self._directory) from error
        return digest.hexdigest(), size

    def keep_only(self, digests: Collection[str]) -> int:
        """Delete every other content that has lain here for a while, and return how many went.

        What is new stays: an import puts its contents here before its transaction names them.
        """
        gone = 0
        try:
            for entry in list(os.scandir(self._directory)):
                age_seconds = time.time() - entry.stat().st_ctime
                is_content = _SHA256.fullmatch(entry.name) is not None and entry.name not in digests
                if is_content and age_seconds > YOUNG_SECONDS:
                    os.unlink(entry.path)
                    gone += 1
                elif entry.name.startswith(_WORKSPACE) and age_seconds > LEFT_SECONDS:
                    shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:
            # Tried again at the next change; a file too many harms nobody.
            pass
        return gone


def _unwritable(error: OSError, directory: str) -> TryLaterError:
    return TryLaterError(
        "content_unwritable", f"the content cannot be kept: {error.strerror}", where=directory, hint="make room on that disk"
    )
