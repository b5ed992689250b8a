"""The container that a process runs in, by the name of its control group."""

import ctypes
import os
import re
import struct

_ID = rb"([0-9a-f]{64})"
_PATTERNS = (
    ("docker", re.compile(rb"(?:^|/)docker[/-]" + _ID)),
    ("podman", re.compile(rb"(?:^|/)libpod-" + _ID)),
    ("kubernetes", re.compile(rb"(?:^|/)kubepods.*/(?:cri-containerd-|crio-|docker-)?" + _ID)),
    ("containerd", re.compile(rb"(?:^|/)(?:cri-containerd-|nerdctl-|[^/]*/)" + _ID)),
    ("lxc", re.compile(rb"(?:^|/)lxc(?:\.payload\.|/)([A-Za-z0-9_.-]{1,64})")),
    ("nspawn", re.compile(rb"(?:^|/)machine\.slice/(?:machine-|systemd-nspawn@)([A-Za-z0-9_.\\-]{1,64})\.(?:scope|service)")),
)
_SHORT_ID_CHARACTERS = 12
_KERNFS_HANDLE = struct.Struct("=IiQ")
_KERNFS = 0xFE  # FILEID_KERNFS of linux/exportfs.h
_MAX_KNOWN = 1024


def container_of(cgroup_path: bytes) -> str:
    """Return the container that a control group belongs to ("docker:0a1b2c3d4e5f", "lxc:web"), or "" for none.

    The patterns are those of Docker, Podman, containerd, CRI-O, Kubernetes, LXC and systemd-nspawn, each with both of the
    cgroupfs and the systemd driver's way of naming.
    """
    for engine, pattern in _PATTERNS:
        if match := pattern.search(cgroup_path):
            name = match[1].decode("ascii", "replace")
            return f"{engine}:{name[:_SHORT_ID_CHARACTERS] if len(name) == 64 else name}"
    return ""


def container_in(cgroup_file: bytes) -> str:
    """Return the container that the text of /proc/PID/cgroup names, or ""."""
    for line in cgroup_file.splitlines():
        if found := container_of(line.split(b":", 2)[-1]):
            return found
    return ""


class ControlGroups:
    """Containers by control group id, as the kernel's process map has it (version 2 hierarchy)."""

    def __init__(self, points: tuple[str, ...] = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) -> None:
        self._point = next((point for point in points if os.path.exists(f"{point}/cgroup.controllers")), "")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._known: dict[int, str] = {}

    def container(self, cgroup_id: int) -> str:
        """Return the container, or "" for none or when it cannot be told."""
        found = self._known.get(cgroup_id)
        if found is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            found = self._known[cgroup_id] = container_of(self._path(cgroup_id))
        return found

    def _path(self, cgroup_id: int) -> bytes:
        if not self._point:
            return b""
        try:
            mount_fd = os.open(self._point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            handle = _KERNFS_HANDLE.pack(8, _KERNFS, cgroup_id)
            fd = int(self._libc.open_by_handle_at(mount_fd, handle, os.O_PATH | os.O_CLOEXEC))
            if fd < 0:
                return b""
            try:
                return os.readlink(f"/proc/self/fd/{fd}".encode())
            finally:
                os.close(fd)
        except OSError:
            return b""
        finally:
            os.close(mount_fd)
