"""Which kind of filesystem a device number stands for, read from the mount table (which never waits for a server)."""

import os
from enum import StrEnum

_PSEUDO = frozenset({
    "autofs", "binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs", "fusectl",
    "hugetlbfs", "mqueue", "nsfs", "pipefs", "proc", "pstore", "resctrl", "rpc_pipefs", "securityfs", "selinuxfs", "smackfs",
    "sysfs", "tracefs",
})  # fmt: skip
_REMOTE = frozenset({
    "9p", "afs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs",
})  # fmt: skip


class FilesystemKind(StrEnum):
    """What to expect of a filesystem."""

    ORDINARY = "ordinary"
    PSEUDO = "pseudo"  # made up by the kernel: sizes lie, and reading may have effects
    REMOTE = "remote"  # answers when a server or a user's process does, or never


class MountTable:
    """The filesystems that are mounted where this process can see them."""

    def __init__(self, source: str = "/proc/self/mountinfo") -> None:
        self._source = source
        self._types: dict[int, str] = {}
        self.read_again()

    def read_again(self) -> None:
        """Read the table anew."""
        with open(self._source, "rb") as file:
            self._types = dict(entry for line in file if (entry := _entry(line)))

    def type_of(self, device: int) -> str:
        """Return the filesystem's name ("ext4"), or "" when the device is in no mount (a btrfs subvolume)."""
        if device not in self._types:
            self.read_again()
        return self._types.get(device, "")

    def kind_of(self, device: int) -> FilesystemKind:
        """Return the kind for an `st_dev`."""
        name = self.type_of(device)
        if name in _PSEUDO:
            return FilesystemKind.PSEUDO
        # FUSE: the answers come from a process that any user may have started. Its block device variant is a local disk.
        if name in _REMOTE or name == "fuse" or name.startswith("fuse."):
            return FilesystemKind.REMOTE
        return FilesystemKind.ORDINARY


def _entry(line: bytes) -> tuple[int, str] | None:
    """Return device number and type of a mountinfo line (proc(5)), or None when it is not one."""
    left, dash, right = line.partition(b" - ")
    fields = left.split(b" ")
    major, colon, minor = fields[2].partition(b":") if len(fields) > 2 else (b"", b"", b"")
    if not dash or not colon or not major.isdigit() or not minor.isdigit():
        return None
    return os.makedev(int(major), int(minor)), right.split(b" ")[0].decode("ascii", "replace")
