"""What happens to files: marks where the roots lie, and events turned into observations."""

import contextlib
import errno
import os
import time
from dataclasses import dataclass, field

from keibi.agent.linux import fanotify
from keibi.agent.linux.fanotify import FileEvent, Group, Handle, HandleOpener, parse_events
from keibi.agent.linux.filesystems import FilesystemKind, MountTable
from keibi.agent.linux.mounts import Mount, below, covering, parse_mounts
from keibi.agent.log import Log
from keibi.agent.ports import Happening
from keibi.agent.sensor.directories import Directories, Directory, Filesystem, filesystem_of
from keibi.agent.sensor.gathering import Gathering
from keibi.agent.sensor.roots import Roots
from keibi.agent.sensor.who import Who
from keibi.contract.events import Actor
from keibi.protection.base import escape_name

MAX_READS = 4
"""Of 64 KiB each, before what they gave is sent."""
IGNORE_AFTER = 64
"""Events of a directory that nobody watches, after which the kernel is told to keep its writes to itself."""
MAX_MOVED_IN = 10_000
"""Entries of a tree that was moved under a root which are told one by one; of a larger one the watchers are told to look."""

_LEADS_ELSEWHERE = "a watched root leads elsewhere now"


@dataclass
class _Mark:
    filesystem: Filesystem
    point: bytes


@dataclass(frozen=True)
class Coverage:
    """How far the watched roots are covered. `refused` gives the kernel's reason for each mount that is not."""

    marked: tuple[bytes, ...] = ()
    refused: dict[bytes, str] = field(default_factory=dict)


class FileSensor:
    """The kernel's file events under the roots. `close` must be called by whoever made it."""

    def __init__(self, gathering: Gathering, who: Who, log: Log, excluded: tuple[bytes, ...] = ()) -> None:
        """Make the fanotify group.

        Raises:
            OSError: the kernel or this process cannot have one that tells names.
        """
        self.event_count = 0
        self.coverage = Coverage()
        self._gathering = gathering
        self._who = who
        self._log = log
        self._excluded = excluded
        self._opener = HandleOpener()
        self._group = Group()
        self._directories = Directories(self._opener)
        self._roots = Roots((), excluded)
        self._marks: dict[str, _Mark] = {}
        self._seen: set[tuple[bytes, str]] = set()  # mount points under the roots, to notice new ones
        self._own_pid = os.getpid()
        self._read_through_at = time.time()
        self._can_ignore = True
        self._ignores = False
        self._roots_may_differ = False

    @property
    def fd(self) -> int:
        """What to wait on for events."""
        return self._group.fd

    def close(self) -> None:
        """End all marks."""
        self._directories.release()
        self._group.close()

    def watch(self, roots: list[bytes]) -> None:
        """Tell of these roots from now on."""
        self._roots = Roots(roots, self._excluded, _remote(_read_mounts(), MountTable()))
        self._place_marks(is_new=True)

    def mounts_changed(self) -> None:
        """Follow what was mounted, unmounted or moved."""
        self._place_marks(is_new=False)

    def read(self) -> int:
        """Take the events that wait, up to a limit; returns how many there were."""
        count = 0
        self._who.begin()
        try:
            for _ in range(MAX_READS):
                data = self._group.read()
                if not data:
                    self._read_through_at = time.time()
                    break
                events = parse_events(data)
                at = time.time()
                for event in events:
                    if event.pid != self._own_pid:
                        self._take(event, at)
                count += len(events)
        finally:
            self._directories.release()
        if self._roots_may_differ:
            self._roots_may_differ = False
            if self._roots.refresh():
                self._place_marks(is_new=False)
                self._gathering.overflowed(self._read_through_at, time.time(), _LEADS_ELSEWHERE)
        self.event_count += count
        return count

    def _take(self, event: FileEvent, at: float) -> None:
        mask = event.mask
        if mask & fanotify.OVERFLOW:
            self._directories.forget()
            self._gathering.overflowed(self._read_through_at, at, "the kernel's queue of file events overflowed")
            return
        if not event.directory:
            return
        directory = self._directories.find(event.directory)
        is_directory = bool(mask & fanotify.ONDIR)
        if mask & fanotify.RENAME:
            self._take_rename(event, directory, at, is_directory=is_directory)
            return
        if directory is None or not directory.places:
            if directory is not None:
                self._miss(directory, event.directory, mask)
        else:
            for path, is_root in _shown(directory, event.name):
                self._observe(mask, path, at, self._who.find(event.pid), is_directory=is_directory)
                self._roots_may_differ |= is_root
        if is_directory and mask & (fanotify.MOVED_FROM | fanotify.MOVED_TO):
            # Old kernels tell the two names in two events that cannot be put together safely.
            self._directories.forget()
            self._ignore_nothing()

    def _observe(self, mask: int, path: bytes, at: float, actor: Actor, *, is_directory: bool) -> None:
        gathering = self._gathering
        if mask & (fanotify.CREATE | fanotify.MOVED_TO):
            gathering.add(Happening.CREATED, path, at, is_directory=is_directory, actor=actor)
            if is_directory and mask & fanotify.MOVED_TO:
                self._tell_tree(path, at, actor)
        if mask & fanotify.CLOSE_WRITE:
            gathering.add(Happening.MODIFIED, path, at, is_directory=is_directory, actor=actor)
        elif mask & fanotify.MODIFY:
            gathering.hold(path, at, actor=actor)
        if mask & fanotify.ATTRIB:
            gathering.add(Happening.ATTRIBUTES, path, at, is_directory=is_directory, actor=actor)
        if mask & (fanotify.DELETE | fanotify.MOVED_FROM):
            gathering.add(Happening.DELETED, path, at, is_directory=is_directory, actor=actor)

    def _take_rename(self, event: FileEvent, old: Directory | None, at: float, *, is_directory: bool) -> None:
        new = self._directories.find(event.new_directory) if event.new_directory else None
        old_shown = list(_shown(old, event.name)) if old else []
        new_shown = list(_shown(new, event.new_name)) if new else []
        if old_shown or new_shown:
            actor = self._who.find(event.pid)
            # Bind mounts show one rename under several names: each old name goes with the new one of the same place.
            for (old_path, old_is_root), (path, new_is_root) in zip(old_shown, new_shown, strict=False):
                if old_is_root or new_is_root:
                    self._gathering.add(Happening.DELETED, old_path, at, is_directory=is_directory, actor=actor)
                    self._gathering.add(Happening.CREATED, path, at, is_directory=is_directory, actor=actor)
                else:
                    self._gathering.rename(old_path, path, at, is_directory=is_directory, actor=actor)
                self._roots_may_differ |= old_is_root or new_is_root
            for path, is_root in old_shown[len(new_shown) :]:
                self._gathering.add(Happening.DELETED, path, at, is_directory=is_directory, actor=actor)
                self._roots_may_differ |= is_root
            for path, is_root in new_shown[len(old_shown) :]:
                self._gathering.add(Happening.CREATED, path, at, is_directory=is_directory, actor=actor)
                self._roots_may_differ |= is_root
                if is_directory:
                    self._tell_tree(path, at, actor)
        if is_directory:
            self._directories.moved(old, event.directory[:8], event.name)
            if new_shown:
                # It may have been left out until now, and its writes kept back by the kernel.
                self._ignore_nothing()

    def _tell_tree(self, root: bytes, at: float, actor: Actor) -> None:
        """Tell of everything in a tree that came in by one rename, so that there were no events of its files."""
        count = 0
        waiting = [root]
        while waiting:
            directory = waiting.pop()
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        count += 1
                        if count > MAX_MOVED_IN:
                            self._gathering.overflowed(at, time.time(), "a tree of many files was moved under a watched root")
                            return
                        is_directory = entry.is_dir(follow_symlinks=False)
                        self._gathering.add(Happening.CREATED, entry.path, at, is_directory=is_directory, actor=actor)
                        if is_directory:
                            waiting.append(entry.path)
            except OSError:
                continue  # it has moved on, which is an event of its own

    def _miss(self, directory: Directory, handle: Handle, mask: int) -> None:
        """Count an event that nobody wants; of a busy directory the kernel tells no writes from then on."""
        if not mask & (fanotify.MODIFY | fanotify.CLOSE_WRITE | fanotify.ATTRIB) or not self._can_ignore:
            return
        directory.missed += 1
        if directory.missed % IGNORE_AFTER:
            return
        fd = self._directories.open(handle)
        if fd is None:
            return
        try:
            self._group.ignore_content_in(b"/proc/self/fd/%d" % fd)
            self._ignores = True
        except OSError as error:
            self._can_ignore = error.errno not in (errno.EINVAL, errno.ENOSYS)
        finally:
            os.close(fd)

    def _ignore_nothing(self) -> None:
        if self._ignores:
            self._group.ignore_nothing()
            self._ignores = False

    def _place_marks(self, *, is_new: bool) -> None:
        mounts, kinds = _read_mounts(), MountTable()
        if self._roots.refresh(_remote(mounts, kinds)) and not is_new:
            self._gathering.overflowed(self._read_through_at, time.time(), _LEADS_ELSEWHERE)
        wanted = _wanted(mounts, self._roots.real())
        if self._marks:
            # Unmounting ends a mark. What was mounted again since, under the same number, has to be marked anew.
            alive = self._group.marked_devices()
            self._marks = {device: mark for device, mark in self._marks.items() if device in alive}
        refused: dict[bytes, str] = {}
        fresh: set[bytes] = set()
        filesystems: dict[str, Filesystem] = {}
        for device, mount in wanted.items():
            match _kind_of(mount, kinds):
                case FilesystemKind.PSEUDO:
                    # Beneath a root they are everywhere (/proc) and nobody means them; asked for by name, it is said.
                    if any(covering(mounts, root) is mount for root in self._roots.real()):
                        refused[mount.point] = f"{mount.type} is made up by the kernel, which tells no changes of it"
                case FilesystemKind.REMOTE:
                    # Not even opened: a server that is away would hold the sensor up.
                    refused[mount.point] = f"{mount.type} is a remote filesystem: what other computers change is not told"
                    continue
                case FilesystemKind.ORDINARY:
                    if found := self._mark(device, mount, mounts, refused, fresh):
                        filesystems[device] = found
        for device in self._marks.keys() - filesystems.keys():
            mark = self._marks.pop(device)
            with contextlib.suppress(OSError):  # unmounted, and the mark with it
                if (there := covering(mounts, mark.point)) is not None and there.device == device:
                    self._group.unmark_filesystem(mark.point)
        self._ignore_nothing()
        self._directories.use(self._roots, mounts, filesystems.values())
        self.coverage = Coverage(tuple(sorted(mark.point for mark in self._marks.values())), refused)
        seen = {(mount.point, mount.device) for mount in _under(mounts, self._roots.real())}
        differing = {point for point, _ in seen ^ self._seen} | fresh
        if not is_new and differing:
            reason = f"something was mounted or unmounted at {escape_name(min(differing))}"
            self._gathering.overflowed(self._read_through_at, time.time(), reason)
        self._seen = seen

    def _mark(
        self, device: str, mount: Mount, mounts: list[Mount], refused: dict[bytes, str], fresh: set[bytes]
    ) -> Filesystem | None:
        try:
            filesystem = filesystem_of(device, mounts)
            if filesystem is None:
                return None
            point = filesystem.mounts[0].point
            known = self._marks.get(device)
            if known is None or known.filesystem.fsid != filesystem.fsid:
                fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    self._opener.check(fd)
                finally:
                    os.close(fd)
                self._group.mark_filesystem(point)
                fresh.add(point)
                self._log.info("filesystem is observed", point=point, type=mount.type)
            self._marks[device] = _Mark(filesystem, point)
        except OSError as error:
            refused[mount.point] = f"{mount.type}: {error.strerror or error}"
            self._log.warning("filesystem cannot be observed", point=mount.point, type=mount.type, reason=str(error))
            return None
        return filesystem


def _read_mounts() -> list[Mount]:
    with open("/proc/self/mountinfo", "rb") as file:
        return parse_mounts(file.read())


def _kind_of(mount: Mount, kinds: MountTable) -> FilesystemKind:
    major, _, minor = mount.device.partition(":")
    return kinds.kind_of(os.makedev(int(major), int(minor)))


def _remote(mounts: list[Mount], kinds: MountTable) -> list[bytes]:
    return [mount.point for mount in mounts if _kind_of(mount, kinds) is FilesystemKind.REMOTE]


def _shown(directory: Directory, name: bytes) -> list[tuple[bytes, bool]]:
    """Return the paths under which a name in a directory is told, and whether that is a root itself or lies above one."""
    shown = []
    for place in directory.places:
        if place.names is None:
            shown.append((place.prefix + name if name else place.prefix[:-1] or b"/", False))
        else:
            shown += [(path, True) for path in place.names.get(name, ())]
    return shown


def _wanted(mounts: list[Mount], roots: list[bytes]) -> dict[str, Mount]:
    """Return the devices that hold a root or lie beneath one, each with the mount that makes it wanted."""
    wanted: dict[str, Mount] = {}
    for root in roots:
        if (mount := covering(mounts, root)) is not None:
            wanted.setdefault(mount.device, mount)
    for mount in _under(mounts, roots):
        wanted.setdefault(mount.device, mount)
    return wanted


def _under(mounts: list[Mount], roots: list[bytes]) -> list[Mount]:
    return [
        mount
        for mount in mounts
        if any(below(mount.point, root) is not None for root in roots) and covering(mounts, mount.point) is mount
    ]
