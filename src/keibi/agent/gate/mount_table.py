"""The file systems that this and other mount namespaces show, as the warden hands them to the decider. See proc(5), mountinfo."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from keibi.agent.gate.wishes import PSEUDO_TYPES

_ESCAPED = re.compile(rb"\\([0-7]{3})")
_MAX_TABLE_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True)
class Mount:
    """One mount of one process's table."""

    id: int
    device: str
    point: bytes
    type: str
    root: str  # "" for this process's own mounts, "/proc/PID/root" to reach another namespace's


def parse_mounts(text: bytes, root: str = "") -> list[Mount]:
    """Return the mounts that could hold programs or other files, in their order; lines that are none are left out."""
    mounts = []
    for line in text.splitlines():
        left, dash, right = line.partition(b" - ")
        fields = left.split(b" ")
        if not dash or len(fields) < 6 or not fields[0].isdigit():
            continue
        type_ = right.split(b" ")[0].decode("ascii", "replace")
        if type_ not in PSEUDO_TYPES:
            point = _ESCAPED.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), fields[4])
            mounts.append(Mount(int(fields[0]), fields[2].decode("ascii", "replace"), point, type_, root))
    return mounts


def foreign_tables(own_namespace: str) -> Iterator[tuple[int, bytes]]:
    """Yield a process and the mount table of each other mount namespace that processes are in."""
    seen = {own_namespace}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
        except OSError:
            continue
        if namespace not in seen:
            with contextlib.suppress(OSError):
                table = read_table(f"/proc/{name}/mountinfo")
                seen.add(namespace)
                yield int(name), table


def read_table(path: str) -> bytes:
    """Return a mount table as it is now.

    Raises:
        OSError: the process is gone.
    """
    with open(path, "rb", buffering=0) as file:
        parts = []
        size = 0
        while (part := file.read(65536)) and size < _MAX_TABLE_BYTES:
            parts.append(part)
            size += len(part)
        return b"".join(parts)


def by_device(mounts: Iterable[Mount]) -> dict[str, list[Mount]]:
    """Return the mounts of each file system."""
    found: dict[str, list[Mount]] = {}
    for mount in mounts:
        found.setdefault(mount.device, []).append(mount)
    return found


def reach(mounts: Iterable[Mount]) -> int | None:
    """Return an O_PATH descriptor of the first of these mounts that can be reached by its path; the caller closes it.

    Opening so raises no events. The mount's own number is compared: another mount may cover it, or a container may have put
    a link in its way.
    """
    for mount in mounts:
        try:
            descriptor = os.open(mount.root.encode() + mount.point, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        if _mount_id(descriptor) == mount.id:
            return descriptor
        os.close(descriptor)
    return None


def _mount_id(descriptor: int) -> int:
    with open(f"/proc/self/fdinfo/{descriptor}", "rb", buffering=0) as file:
        for line in file.read(4096).splitlines():
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return -1
