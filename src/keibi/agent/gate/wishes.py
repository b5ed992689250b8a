"""What the judges together want: from which file systems which events, and who is asked about which file."""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from keibi.agent.gate import fanotify
from keibi.agent.gate.files import is_below
from keibi.agent.gate.judging import EXEC, OFF, OPEN, PREVENT, SOFTWARE, WRITTEN, Terms

NETWORK_TYPES: Final = frozenset({
    "9p", "afs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs",
})  # fmt: skip
PSEUDO_TYPES: Final = frozenset({
    "autofs", "binder", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
    "fusectl", "hugetlbfs", "mqueue", "nsfs", "pipefs", "proc", "pstore", "resctrl", "rpc_pipefs", "securityfs", "selinuxfs",
    "smackfs", "sysfs", "tracefs",
})  # fmt: skip
"""Made up by the kernel: no programs and no malware lie there, and opening a device has effects."""


@dataclass(frozen=True)
class Place:
    """One file system and where it is mounted."""

    device: str  # "254:0", as mountinfo names it
    status_device: int  # st_dev of its files; btrfs subvolumes have others
    type: str
    points: tuple[str, ...]
    is_layered: bool = False  # its files are others', and those file systems tell of them

    @property
    def is_network(self) -> bool:
        """Whether something else than this kernel answers for it."""
        return is_network_type(self.type)


@dataclass(frozen=True)
class Wish:
    """Terms with what follows from them."""

    judge: int
    terms: Terms
    held: frozenset[str]  # events for which the kernel holds the process
    watched: frozenset[str]  # events that are only told
    excluded: tuple[bytes, ...]
    wants_holding: bool  # whether something ought to be held up, be it allowed now or not

    def covers(self, place: Place) -> bool:
        """Whether this judge is asked about files of a file system."""
        if place.is_layered or (place.is_network and not self.terms.includes_network):
            return False
        return not self.terms.places or any(point in self.terms.places for point in place.points)

    def excludes(self, path: bytes) -> bool:
        """Whether this judge wants no questions about a path."""
        return is_below(path, self.excluded)


def is_network_type(type_: str) -> bool:
    """Return whether a server, or a process of any user (FUSE), answers for file systems of this type."""
    return type_ in NETWORK_TYPES or type_ == "fuse" or type_.startswith("fuse.")


def wish_of(judge: int, terms: Terms, *, is_proof: bool, may_hold: bool) -> Wish:
    """Return what terms come to. A private gate asks as if the policy prevented; one that may not hold only watches."""
    events = frozenset(terms.events)
    holdable = frozenset((EXEC, OPEN)) if is_proof else events & {EXEC, OPEN}
    wants_holding = terms.mode != OFF and bool(holdable) and (is_proof or terms.mode == PREVENT)
    if terms.mode == OFF:
        held, watched = frozenset[str](), frozenset[str]()
    elif wants_holding and may_hold:
        held, watched = holdable, events & {WRITTEN}
    else:
        # What may not be held up is still told, so that it is at least found; openings are too many for that.
        held, watched = frozenset(), events - {OPEN} if wants_holding else events
    excluded = tuple(directory.encode("utf-8", "surrogateescape") for directory in terms.excluded)
    return Wish(judge, terms, held, watched, excluded, wants_holding)


def permission_mask(wishes: Iterable[Wish], place: Place) -> int:
    """Return the mask of the permission group on a file system."""
    mask = 0
    for wish in wishes:
        if wish.held and wish.covers(place):
            # The end of each writer makes the gate forget the file, also one that wrote through a mapping.
            mask |= fanotify.CLOSE_WRITE
            mask |= fanotify.EXEC_PERMISSION if EXEC in wish.held else 0
            mask |= fanotify.OPEN_PERMISSION if OPEN in wish.held else 0
    return mask


def notification_mask(wishes: Iterable[Wish], place: Place) -> int:
    """Return the mask of the notification group on a file system."""
    mask = 0
    for wish in wishes:
        if wish.watched and wish.covers(place):
            mask |= fanotify.OPEN_EXEC if EXEC in wish.watched else 0
            mask |= fanotify.OPEN | fanotify.CLOSE_WRITE if OPEN in wish.watched else 0
            mask |= fanotify.CLOSE_WRITE if WRITTEN in wish.watched else 0
    return mask


def is_software(wish_suffixes: tuple[str, ...], mode: int, head: bytes | None, path: bytes) -> bool:
    """Return whether a file counts as SOFTWARE; `head` are its first four bytes, None when they are not at hand."""
    if head is None or mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH) or head[:2] == b"#!" or head == b"\x7fELF":
        return True
    name = path.rpartition(b"/")[2]
    return any(name.endswith(suffix.encode("utf-8", "surrogateescape")) for suffix in wish_suffixes)


def asks_software_only(terms: Terms, event: str) -> bool:
    """Return whether these terms ask about this event only where the file is software."""
    return terms.files == SOFTWARE and event != EXEC
