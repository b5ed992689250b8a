"""From the handles in the kernel's events to the places that directories have under the watched roots.

Theory of operation. A handle is opened once and its path is kept; most events are of directories that nobody watches, and cost
one look into a dictionary. A path stops being true when a directory above it is renamed: the rename is an event too, in order,
so it is noted, and an entry is compared with the renames since its last use before it is used again.
"""

import contextlib
import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from keibi.agent.linux.fanotify import Handle, HandleOpener
from keibi.agent.linux.mounts import Mount, below, covering
from keibi.agent.sensor.roots import Place, Roots

MAX_KNOWN = 16_384
MAX_MOVES = 64
_GONE = frozenset({errno.ESTALE, errno.ENOENT})
_FSID = struct.Struct("=Q")


@dataclass(slots=True)
class Directory:
    """One directory that was in an event."""

    path: bytes  # in its filesystem, from the filesystem's own root
    places: tuple[Place, ...]
    moves: int  # how many renames it has been compared with
    missed: int = 0  # events that nobody wanted


@dataclass(frozen=True)
class Filesystem:
    """A marked filesystem and its mounts that can be reached, the one that shows most of it first."""

    device: str
    fsid: bytes
    mounts: tuple[Mount, ...]


def filesystem_of(device: str, mounts: list[Mount]) -> Filesystem | None:
    """Return a filesystem by its mounts; None when none of them can be reached.

    Raises:
        OSError: it cannot be asked for its id.
    """
    reached = [mount for mount in mounts if mount.device == device and covering(mounts, mount.point) is mount]
    if not reached:
        return None
    reached.sort(key=lambda mount: len(mount.root))
    return Filesystem(device, _FSID.pack(os.statvfs(reached[0].point).f_fsid & 0xFFFFFFFFFFFFFFFF), tuple(reached))


class Directories:
    """Knows directories by their handles. `release` must be called when the events at hand are through."""

    def __init__(self, opener: HandleOpener) -> None:
        self.unresolved_count = 0
        self._opener = opener
        self._roots = Roots(())
        self._mounts: list[Mount] = []
        self._filesystems: dict[bytes, list[Filesystem]] = {}
        self._known: dict[Handle, Directory] = {}
        self._moves: list[tuple[bytes, bytes]] = []
        self._mount_fds: dict[str, int] = {}

    def use(self, roots: Roots, mounts: list[Mount], filesystems: Iterable[Filesystem]) -> None:
        """Take it from here that these are wanted, mounted and marked."""
        self._roots, self._mounts = roots, mounts
        self._filesystems = {}
        for filesystem in filesystems:
            # A snapshot and its origin may have the same id; both are then asked.
            self._filesystems.setdefault(filesystem.fsid, []).append(filesystem)
        self.forget()

    def forget(self) -> None:
        """Forget all paths: they may not be true any more."""
        self._known.clear()
        self._moves.clear()

    def release(self) -> None:
        """Close what is open of the filesystems: it would keep them from being unmounted."""
        for fd in self._mount_fds.values():
            os.close(fd)
        self._mount_fds.clear()

    def find(self, handle: Handle) -> Directory | None:
        """Return the directory, or None when it is no more and was not known before."""
        known = self._known.get(handle)
        if known is not None:
            if known.moves == len(self._moves):
                return known
            if not self._has_moved(handle[:8], known):
                known.moves = len(self._moves)
                return known
        return self._resolve(handle)

    def moved(self, directory: Directory | None, fsid: bytes, name: bytes) -> None:
        """Note that a directory was renamed, which was `name` in `directory` (None: not known where)."""
        if directory is None or len(self._moves) >= MAX_MOVES:
            self.forget()
        else:
            self._moves.append((fsid, directory.path.rstrip(b"/") + b"/" + name))

    def open(self, handle: Handle) -> int | None:
        """Return an O_PATH descriptor of the directory, which the caller closes; None when that is not possible."""
        for filesystem in self._filesystems.get(handle[:8], ()):
            with contextlib.suppress(OSError):
                return self._opener.open(self._mount_fd(filesystem), handle)
        return None

    def _has_moved(self, fsid: bytes, known: Directory) -> bool:
        return any(moved_fsid == fsid and below(known.path, path) is not None for moved_fsid, path in self._moves[known.moves :])

    def _resolve(self, handle: Handle) -> Directory | None:
        for filesystem in self._filesystems.get(handle[:8], ()):
            try:
                fd = self._opener.open(self._mount_fd(filesystem), handle)
            except OSError as error:
                if error.errno not in _GONE:
                    self.unresolved_count += 1
                continue
            try:
                path = self._path_of(fd, filesystem.mounts[0])
            except OSError:
                continue
            finally:
                os.close(fd)
            found = Directory(path, self._places(path, filesystem), len(self._moves))
            if len(self._known) >= MAX_KNOWN:
                for old in list(self._known)[: MAX_KNOWN // 4]:
                    del self._known[old]
            self._known[handle] = found
            return found
        self._known.pop(handle, None)
        return None

    def _path_of(self, fd: int, mount: Mount) -> bytes:
        path = os.readlink(b"/proc/self/fd/%d" % fd)
        status = os.fstat(fd)
        if status.st_nlink == 0:
            path = path.removesuffix(b" (deleted)")
        rest = below(path, mount.point)
        if rest is not None and mount.root != b"/" and status.st_nlink:
            # Outside what the mount shows, the kernel gives the path from the filesystem's root, which may look the same.
            try:
                there = os.lstat(path)
            except OSError:
                rest = None
            else:
                rest = rest if (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino) else None
        return path if rest is None else mount.root.rstrip(b"/") + rest or b"/"

    def _places(self, path: bytes, filesystem: Filesystem) -> tuple[Place, ...]:
        places: list[Place] = []
        for mount in filesystem.mounts:
            shown = mount.shows(path)
            if shown is not None and covering(self._mounts, shown) is mount:
                places += self._roots.places(shown)
        return tuple(places)

    def _mount_fd(self, filesystem: Filesystem) -> int:
        fd = self._mount_fds.get(filesystem.device)
        if fd is None:
            fd = os.open(filesystem.mounts[0].point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._mount_fds[filesystem.device] = fd
        return fd
