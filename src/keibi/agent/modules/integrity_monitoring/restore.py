"""Putting a file back as it was: content, owner, group and permissions. Runs in the core, which is root; nothing else here does.

A path is walked from `/` one part at a time without following a link, so that nobody can steer the write elsewhere by swapping a
directory for a link. The new file is complete before it gets the name, and the name is given only while what is there is still
what the person saw in the preview.
"""

import contextlib
import os
import secrets
import stat

from keibi.agent.linux.files import new_hasher
from keibi.errors import InputError, RefusedError, TryLaterError

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def restore_file(
    path: bytes,
    *,
    content: bytes | None,
    mode: int,
    uid: int,
    gid: int,
    expected_hash: str | None,
    algorithm: str = "sha256",
) -> None:
    """Make the regular file at `path` have this content, mode (0 to 0o7777), owner and group.

    `content` None leaves the content and sets owner and mode only. `expected_hash` is that of the content which is there now
    (hexadecimal), "" when nothing may be there, None when it does not matter.

    Raises:
        InputError: `restore_no_file`: what is there is no regular file, or a directory on the way is missing.
        RefusedError: `restore_changed`: what is there is not what was expected, so somebody should look again.
        TryLaterError: the disk is full or read-only.
    """
    where = os.fsdecode(path)
    directory, name = _open_parent(path)
    try:
        _check_present(directory, name, expected_hash, algorithm, where)
        if content is None:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
            return
        temporary = b".keibi-restore-" + secrets.token_hex(8).encode()
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchown(file.fileno(), uid, gid)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            _check_present(directory, name, expected_hash, algorithm, where)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        os.fsync(directory)
    except OSError as error:
        raise TryLaterError("restore_failed", f"the file cannot be restored: {error.strerror}", where=where) from error
    finally:
        os.close(directory)


def _open_parent(path: bytes) -> tuple[int, bytes]:
    if not path.startswith(b"/") or path.endswith(b"/") or b"\0" in path:
        raise InputError("path_not_absolute", f"{path!r} is no absolute path of a file")
    *parts, name = path.split(b"/")[1:]
    descriptor = os.open("/", _DIRECTORY_FLAGS)
    for part in parts:
        if part in (b"", b".", b".."):
            os.close(descriptor)
            raise InputError("path_not_plain", f"{path!r} is not written plainly")
        try:
            below = os.open(part, _DIRECTORY_FLAGS, dir_fd=descriptor)
        except OSError as error:
            raise InputError(
                "restore_no_file",
                f"{part!r} on the way is no directory that can be entered: {error.strerror}",
                where=os.fsdecode(path),
                hint="a link on the way is not followed",
            ) from error
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor, name


def _check_present(directory: int, name: bytes, expected_hash: str | None, algorithm: str, where: str) -> None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        if expected_hash:
            raise RefusedError("restore_changed", "the file is gone meanwhile", where=where, hint="look at it again") from None
        return
    except OSError as error:
        raise InputError("restore_no_file", f"what is there is no regular file: {error.strerror}", where=where) from error
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputError("restore_no_file", "what is there is no regular file", where=where)
        if expected_hash is None:
            return
        hasher = new_hasher(algorithm)
        while block := file.read(1 << 20):
            hasher.update(memoryview(block))
    if hasher.digest().hex() != expected_hash:
        raise RefusedError(
            "restore_changed", "the file is not what it was when this was asked for", where=where, hint="look at it again"
        )
