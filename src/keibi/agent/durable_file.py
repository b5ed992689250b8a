"""Small files that are there whole or not at all, also after a power cut."""

import contextlib
import os
import secrets

from keibi.errors import TryLaterError


def write_durably(path: str, content: bytes, *, mode: int = 0o600) -> None:
    """Replace the file at `path`: a new file beside it, fsync, rename, fsync of the directory.

    Raises:
        TryLaterError: the disk is full, read-only or broken; the old content is untouched.
    """
    directory = os.path.dirname(path)
    temporary = f"{path}.{secrets.token_hex(4)}.new"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_directory(directory)
    except OSError as error:
        raise TryLaterError(
            "state_not_writable",
            f"the file could not be written: {error.strerror}",
            where=path,
            hint=f"make room on the disk of {directory}, or mount it writable",
        ) from error


def sync_directory(directory: str) -> None:
    """Make a rename or unlink in `directory` last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_if_there(path: str) -> bytes | None:
    """Return the content of `path`, or None when there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
