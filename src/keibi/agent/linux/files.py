"""Reads the state of files without ever trusting them.

Only regular files are opened. A path that is absent, a path that cannot be read and a file that changed while it was being
read are three different answers. Paths are bytes, because a file name is any bytes but `/` and NUL.

The *packed* form of a state (`PACKED_STATE`) is what a directory's entries are kept and compared in; `pack_state` and
`unpack_state` turn one into the other.
"""

import ctypes
import errno
import hashlib
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, Flag, StrEnum, auto
from typing import Protocol

import blake3

READ_BYTES = 1024 * 1024
"""Size of the one buffer that file content passes through."""
DIGEST_BYTES = 32

PACKED_STATE = struct.Struct("=IIIIQqqQQQ")
"""mode, uid, gid, link count, size, mtime ns, ctime ns, inode, device, device number: 64 bytes, this machine's byte order."""

_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

# struct statx of linux/stat.h: stx_attributes lies at byte 8, stx_attributes_mask at 56.
_STATX_BYTES = 256
_STATX_ATTRIBUTES = struct.Struct("=Q")
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_NO_AUTOMOUNT = 0x800


class FileType(StrEnum):
    """What kind of thing a path names."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character_device"
    BLOCK_DEVICE = "block_device"
    UNKNOWN = "unknown"


_TYPES = {
    stat.S_IFREG: FileType.REGULAR,
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFLNK: FileType.SYMLINK,
    stat.S_IFIFO: FileType.FIFO,
    stat.S_IFSOCK: FileType.SOCKET,
    stat.S_IFCHR: FileType.CHARACTER_DEVICE,
    stat.S_IFBLK: FileType.BLOCK_DEVICE,
}


class Wish(Flag):
    """What the caller wants to know of an entry. NOTHING: not even that it exists."""

    NOTHING = 0
    STATE = auto()  # what lstat says, and where a symlink points
    CONTENT = auto()  # the hash of a regular file's content
    XATTRS = auto()  # extended attributes: ACLs and capabilities are among them
    FLAGS = auto()  # immutable, append-only, ... as lsattr shows
    ACCESS_TIME = auto()


class ContentOutcome(Enum):
    """What came of reading the content."""

    NOT_ASKED = 0  # or not a regular file
    HASHED = 1
    UNSTABLE = 2  # it changed during each of the bounded number of tries
    UNREADABLE = 3
    VANISHED = 4  # it was there for lstat and gone (or no regular file any more) for open
    TOO_LARGE = 5  # larger than the caller's limit: a sparse file of exabytes must not keep a scan for ever


@dataclass(frozen=True, kw_only=True, slots=True)
class FileState:
    """One path, as it was found. Times are nanoseconds since the epoch; sizes are bytes."""

    path: bytes
    asked: Wish = field(default=Wish.STATE, compare=False)  # what was wanted when it was read
    mode: int  # type and permission bits, as in st_mode
    uid: int
    gid: int
    link_count: int
    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int
    device_number: int = 0  # of a device node
    content: ContentOutcome = ContentOutcome.NOT_ASKED
    content_hash: bytes = b""  # DIGEST_BYTES when content is HASHED, else empty
    problem: str = ""  # why the content or an attribute could not be read
    link_target: bytes | None = None  # of a symlink
    xattrs: dict[bytes, bytes] | None = None  # sorted by name; None: not asked, or there are none
    flags: int | None = None  # STATX_ATTR_* bits; None: not asked
    accessed_ns: int | None = None  # None: not asked

    @property
    def type(self) -> FileType:
        """What kind of thing it is."""
        return _TYPES.get(stat.S_IFMT(self.mode), FileType.UNKNOWN)

    @property
    def permissions(self) -> int:
        """The permission bits with set-uid, set-gid and sticky: 0 to 0o7777."""
        return stat.S_IMODE(self.mode)

    @property
    def is_unstable(self) -> bool:
        """True when the content kept changing while it was being read, so that there is no hash."""
        return self.content is ContentOutcome.UNSTABLE


@dataclass(frozen=True, slots=True)
class Absent:
    """There is nothing under this path."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Unreadable:
    """It could not be found out whether there is something under this path, and what."""

    path: bytes
    problem: str
    errno: int = 0


class Hasher(Protocol):
    """A running hash."""

    def update(self, data: memoryview, /) -> object:
        """Take in more bytes."""

    def digest(self) -> bytes:
        """Return the hash of all bytes so far."""


def new_hasher(algorithm: str) -> Hasher:
    """Return a hasher for "sha256" or "blake3".

    Raises:
        ValueError: another algorithm.
    """
    if algorithm == "sha256":
        return hashlib.sha256()
    if algorithm == "blake3":
        hasher: Hasher = blake3.blake3()
        return hasher
    raise ValueError(f"{algorithm!r} is no hash algorithm known here; known are sha256 and blake3")


def read_file_state(
    path: bytes, wish: Wish, *, algorithm: str = "sha256", tries: int = 3, max_content_bytes: int = 0
) -> FileState | Absent | Unreadable:
    """Return what is under `path` now. Symlinks are described, not followed.

    A file that changes while it is read is read again, `tries` times in all; then the state has the outcome UNSTABLE.
    `max_content_bytes` bounds what is hashed; 0 is no bound.
    """
    answer = _look(path)
    for attempt in range(tries):
        if not isinstance(answer, FileState) or Wish.CONTENT not in wish or answer.type is not FileType.REGULAR:
            break
        answer = _with_content(answer, algorithm, max_content_bytes)
        if answer.content not in (ContentOutcome.UNSTABLE, ContentOutcome.VANISHED) or attempt == tries - 1:
            break
        answer = _look(path)
    if isinstance(answer, FileState):
        return with_details(answer, wish)
    return answer


def state_of(path: bytes, found: os.stat_result) -> FileState:
    """Return the state that an lstat result describes."""
    return FileState(
        path=path,
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        link_count=found.st_nlink & 0xFFFFFFFF,
        size=found.st_size,
        modified_ns=found.st_mtime_ns,
        changed_ns=found.st_ctime_ns,
        inode=found.st_ino,
        device=found.st_dev,
        device_number=found.st_rdev,
    )


def _look(path: bytes) -> FileState | Absent | Unreadable:
    try:
        return state_of(path, os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return Absent(path)
    except OSError as error:
        return Unreadable(path, f"lstat: {error.strerror}", error.errno or 0)


def with_details(state: FileState, wish: Wish) -> FileState:
    """Return the state with the wished-for details that lstat does not tell: link target, xattrs, flags, access time."""
    problem = state.problem
    target = xattrs = flags = accessed = None
    try:
        if state.type is FileType.SYMLINK:
            target = os.readlink(state.path)
        if Wish.XATTRS in wish:
            xattrs = read_xattrs(state.path)
        if Wish.FLAGS in wish:
            flags = read_flags(state.path)
        if Wish.ACCESS_TIME in wish:
            accessed = os.lstat(state.path).st_atime_ns
    except OSError as error:
        problem = problem or f"attributes: {error.strerror}"
    return replace(state, asked=wish, link_target=target, xattrs=xattrs, flags=flags, accessed_ns=accessed, problem=problem)


def read_xattrs(path: bytes) -> dict[bytes, bytes] | None:
    """Return the extended attributes of a path (never those of a symlink's target); None when there are none."""
    found: dict[bytes, bytes] = {}
    try:
        for name in os.listxattr(path, follow_symlinks=False):
            try:
                found[os.fsencode(name)] = os.getxattr(path, name, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.ENODATA:  # taken away since it was listed
                    raise
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return None
        raise
    return dict(sorted(found.items())) or None


def read_flags(path: bytes) -> int | None:
    """Return the STATX_ATTR_* bits (immutable, append-only, ...) of a path; None when this C library has no statx."""
    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    if statx is None:
        return None
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, ctypes.c_char_p(path), _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT, 0, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    attributes, known = _STATX_ATTRIBUTES.unpack_from(buffer, 8)[0], _STATX_ATTRIBUTES.unpack_from(buffer, 56)[0]
    return int(attributes & known)


def _with_content(state: FileState, algorithm: str, max_content_bytes: int) -> FileState:
    if max_content_bytes and state.size > max_content_bytes:
        return replace(state, content=ContentOutcome.TOO_LARGE, problem=f"its {state.size} bytes are over the limit")
    try:
        descriptor = open_regular(state.path)
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        outcome = ContentOutcome.VANISHED if gone else ContentOutcome.UNREADABLE
        return replace(state, content=outcome, problem=f"open: {error.strerror}")
    try:
        if pack_stat(os.fstat(descriptor)) != pack_state(state):
            return replace(state, content=ContentOutcome.UNSTABLE, problem="it changed between lstat and open")
        # Not one byte more than lstat said is read: a file that grows without end is caught by the second fstat.
        digest, count = hash_descriptor(descriptor, algorithm, state.size)
        if count != state.size or pack_stat(os.fstat(descriptor)) != pack_state(state):
            return replace(state, content=ContentOutcome.UNSTABLE, problem="it changed while it was being read")
        return replace(state, content=ContentOutcome.HASHED, content_hash=digest)
    except OSError as error:
        return replace(state, content=ContentOutcome.UNREADABLE, problem=f"read: {error.strerror}")
    finally:
        os.close(descriptor)


def open_regular(path: bytes, *, directory_descriptor: int | None = None) -> int:
    """Return a descriptor for reading that leaves the access time alone where that is allowed; the caller closes it.

    It follows no symlink and does not wait for a fifo's writer. The caller checks by fstat that it is a regular file.
    """
    try:
        return os.open(path, _OPEN_FLAGS | os.O_NOATIME, dir_fd=directory_descriptor)
    except PermissionError:  # O_NOATIME is for the owner and for CAP_FOWNER
        return os.open(path, _OPEN_FLAGS, dir_fd=directory_descriptor)


def hash_descriptor(
    descriptor: int, algorithm: str, limit: int, *, buffer: memoryview | None = None, pause: Callable[[], None] = lambda: None
) -> tuple[bytes, int]:
    """Return the hash of the next `limit` bytes, or of fewer at the end of the file, and how many they were.

    `buffer` is reused memory; `pause` is called after each bufferful and may raise to give up.
    """
    hasher = new_hasher(algorithm)
    if buffer is None:
        buffer = memoryview(bytearray(min(READ_BYTES, max(limit, 1))))
    count = 0
    while count < limit:
        if count:
            pause()
        got = os.readv(descriptor, [buffer[: limit - count]])
        if not got:
            break
        hasher.update(buffer[:got])
        count += got
    return hasher.digest(), count


def hash_prefix(path: bytes, length: int, *, algorithm: str = "sha256") -> bytes | None:
    """Return the hash of the first `length` bytes of a regular file; None when it is shorter, absent or unreadable.

    For logs that may only grow: the hash of the beginning must stay what it was.
    """
    try:
        descriptor = open_regular(path)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        digest, count = hash_descriptor(descriptor, algorithm, length)
    except OSError:
        return None
    else:
        return digest if count == length else None
    finally:
        os.close(descriptor)


def read_content(path: bytes, max_bytes: int) -> tuple[FileState, bytes] | None:
    """Return a small regular file's state and content; None when it is larger, no regular file, unreadable or changing."""
    answer = _look(path)
    if not isinstance(answer, FileState) or answer.type is not FileType.REGULAR or answer.size > max_bytes:
        return None
    try:
        descriptor = open_regular(path)
    except OSError:
        return None
    try:
        data = os.read(descriptor, max_bytes + 1)
        while len(data) <= max_bytes and (more := os.read(descriptor, max_bytes + 1 - len(data))):
            data += more
        same = pack_stat(os.fstat(descriptor)) == pack_state(answer)
        return (answer, data) if same and len(data) == answer.size else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def pack_stat(found: os.stat_result) -> bytes:
    """Return an lstat result as PACKED_STATE bytes: equal bytes mean that lstat says the same."""
    return PACKED_STATE.pack(
        found.st_mode, found.st_uid, found.st_gid, found.st_nlink & 0xFFFFFFFF, found.st_size, found.st_mtime_ns,
        found.st_ctime_ns, found.st_ino, found.st_dev, found.st_rdev,
    )  # fmt: skip


def pack_state(state: FileState) -> bytes:
    """Return what lstat said as PACKED_STATE bytes."""
    return PACKED_STATE.pack(
        state.mode, state.uid, state.gid, state.link_count, state.size, state.modified_ns, state.changed_ns,
        state.inode, state.device, state.device_number,
    )  # fmt: skip


def unpack_state(path: bytes, packed: bytes | memoryview, offset: int = 0) -> FileState:
    """Return the state that `pack_state` packed."""
    mode, uid, gid, links, size, modified, changed, inode, device, number = PACKED_STATE.unpack_from(packed, offset)
    return FileState(
        path=path, mode=mode, uid=uid, gid=gid, link_count=links, size=size, modified_ns=modified, changed_ns=changed,
        inode=inode, device=device, device_number=number,
    )  # fmt: skip
