"""Which file systems the gate's groups watch for what, worked out from the judges' wishes and kept so in the kernel."""

import contextlib
import os
from typing import Final

from keibi.agent.gate import fanotify, judging
from keibi.agent.gate.answers import Answers
from keibi.agent.gate.judging import EXEC, OPEN
from keibi.agent.gate.verdicts import bit_of
from keibi.agent.gate.wishes import Place, Wish, notification_mask, permission_mask

MOST_POINTS_BYTES: Final = 32 * 1024
_MEMORY_TYPES: Final = frozenset({"tmpfs", "ramfs"})


class Coverage:
    """The file systems that the warden handed over, their marks, and who is asked about their files."""

    def __init__(self, permission: fanotify.Group, notification: fanotify.Group, answers: Answers) -> None:
        self._groups = (permission, notification)
        self._answers = answers
        self.wishes: tuple[Wish, ...] = ()
        self._places: dict[str, Place] = {}
        self._round: set[str] = set()
        self._masks: dict[str, tuple[int, int]] = {}
        self._refused: dict[str, str] = {}
        self._askers: dict[tuple[int, str], tuple[Wish, ...]] = {}
        self._needed: dict[tuple[int, str], int] = {}
        self._memory: set[int] = set()

    def wish(self, wishes: tuple[Wish, ...]) -> None:
        """Take other wishes; marks follow when the warden hands the file systems over again."""
        self.wishes = wishes
        self._work_out()

    def mark(self, place: Place, descriptor: int) -> None:
        """Mark a file system as wished; `descriptor` is an O_PATH one on it. Does no harm when it is marked already."""
        self._round.add(place.device)
        if self._places.get(place.device) != place:
            self._places[place.device] = place
            self._work_out()
        permission, notification = self._masks_for(place)
        self._refused.pop(place.device, None)
        before = self._masks.get(place.device, (0, 0))
        try:
            for group, now, was in zip(self._groups, (permission, notification), before, strict=True):
                if now:
                    group.mark_filesystem(descriptor, now)
                if was & ~now:
                    with contextlib.suppress(FileNotFoundError):
                        group.mark_filesystem(descriptor, was & ~now, is_added=False)
        except OSError as error:
            self._refused[place.device] = os.strerror(error.errno or 0)
        else:
            self._masks[place.device] = (permission, notification)

    @property
    def is_complete(self) -> bool:
        """Whether every file system is marked as wished now, but for those where the kernel refuses."""
        places = self._places.items()
        return bool(places) and all(
            device in self._refused or self._masks.get(device) == self._masks_for(place) for device, place in places
        )

    def _masks_for(self, place: Place) -> tuple[int, int]:
        permission, notification = permission_mask(self.wishes, place), notification_mask(self.wishes, place)
        if permission & fanotify.CLOSE_WRITE:
            # The permission group tells of writers anyway, in order with the openings that come after them.
            notification &= ~fanotify.CLOSE_WRITE
        return permission, notification

    def end_round(self) -> None:
        """Forget the file systems that were not handed over since the last call: they are unmounted, and their marks ended."""
        for device in set(self._places) - self._round:
            del self._places[device]
            self._masks.pop(device, None)
            self._refused.pop(device, None)
        self._round = set()
        self._work_out()

    def needed_bits(self, device: int, event: str) -> int:
        """Return the verdicts that a file on a file system needs before the event may go on."""
        needed = self._needed.get((device, event))
        if needed is None:
            # A btrfs subvolume: its files bear a device number that no mount shows.
            needed = sum(bit_of(wish.judge, event) for wish in self.wishes if event in wish.held)
            self._needed[device, event] = needed
        return needed

    def askers(self, device: int, event: str) -> tuple[Wish, ...]:
        """Return who is asked about such a file."""
        askers = self._askers.get((device, event))
        return askers if askers is not None else tuple(wish for wish in self.wishes if event in wish.held)

    def watchers(self, device: int, event: str) -> list[Wish]:
        """Return who is told of such a file without anybody waiting."""
        wishes = [wish for wish in self.wishes if event in wish.watched]
        places = [place for place in self._places.values() if place.status_device == device]
        return [wish for wish in wishes if not places or any(wish.covers(place) for place in places)]

    def is_memory(self, device: int) -> bool:
        """Return whether a file system is one that does not note the time of stores through a mapping."""
        return device in self._memory

    def executions_seen(self) -> list[str]:
        """Return the file systems of which the kernel tells what is executed, as mountinfo names them."""
        masks = self._masks.items()
        told = (fanotify.EXEC_PERMISSION, fanotify.OPEN_EXEC)
        return [device for device, both in masks if any(mask & event for mask, event in zip(both, told, strict=True))]

    def left_out(self, seen: list[str]) -> list[str]:
        """Return the file systems that are there and of which nothing is told: nobody wants it, or the kernel refuses."""
        return [device for device in self._places if device not in seen]

    @property
    def count(self) -> int:
        """How many file systems there are."""
        return len(self._places)

    def mounts(self) -> tuple[tuple[str, str, str, str], ...]:
        """Return mount point, type, what is watched there, and why the kernel refused; as many as a message holds."""
        mounts = []
        told = set(judging.fitting((place.points[0] for place in self._places.values()), MOST_POINTS_BYTES))
        for place in self._places.values():
            if place.points[0] not in told or place.is_layered:
                continue
            permission, notification = self._masks.get(place.device, (0, 0))
            kind = "permission" if permission else "notification" if notification else "none"
            mounts.append((place.points[0], place.type, kind, self._refused.get(place.device, "")))
        return tuple(mounts)

    def _work_out(self) -> None:
        self._askers = {}
        self._needed = {}
        self._memory = {place.status_device for place in self._places.values() if place.type in _MEMORY_TYPES}
        for place in self._places.values():
            for event in (EXEC, OPEN):
                askers = tuple(wish for wish in self.wishes if event in wish.held and wish.covers(place))
                self._askers[place.status_device, event] = askers
                self._needed[place.status_device, event] = sum(bit_of(wish.judge, event) for wish in askers)
        devices = {place.status_device for place in self._places.values()}
        self._answers.cover(
            [(device, self._needed[device, OPEN], self._needed[device, EXEC], device in self._memory) for device in devices]
        )
