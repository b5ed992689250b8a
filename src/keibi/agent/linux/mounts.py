"""The mounts that this process sees, with the part of its filesystem that each shows. See proc(5), mountinfo."""

import re
from dataclasses import dataclass

_DEVICE = re.compile(rb"[0-9]{1,9}:[0-9]{1,9}")
_ESCAPED = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One mount: the directory (or file) `root` of a filesystem, shown at `point`."""

    device: str  # "254:0"; mounts with the same one show the same filesystem
    root: bytes
    point: bytes
    type: str

    def shows(self, filesystem_path: bytes) -> bytes | None:
        """Return where this mount shows a path of the filesystem; None when it does not."""
        rest = below(filesystem_path, self.root)
        return None if rest is None else self.point.rstrip(b"/") + rest or b"/"


def parse_mounts(text: bytes) -> list[Mount]:
    """Return the mounts of a mountinfo text, in its order (later ones cover earlier ones). Lines that are none are left out."""
    mounts = []
    for line in text.splitlines():
        left, dash, right = line.partition(b" - ")
        fields = left.split(b" ")
        if dash and len(fields) >= 5 and _DEVICE.fullmatch(fields[2]):
            root, point = _unescape(fields[3]), _unescape(fields[4])
            type_ = right.split(b" ")[0].decode("ascii", "replace")
            mounts.append(Mount(fields[2].decode("ascii", "replace"), root, point, type_))
    return mounts


def covering(mounts: list[Mount], path: bytes) -> Mount | None:
    """Return the mount that a path is looked up in; None without any."""
    found = None
    for mount in mounts:
        if below(path, mount.point) is not None and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def below(path: bytes, directory: bytes) -> bytes | None:
    """Return what follows `directory` in `path`: b"" when they are the same, b"/…" beneath it, None outside."""
    directory = directory.rstrip(b"/")
    if path == directory or (not directory and path == b"/"):
        return b""
    return path[len(directory) :] if path.startswith(directory + b"/") else None


def _unescape(field: bytes) -> bytes:
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
