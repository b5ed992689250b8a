"""Follows mounts, mount namespaces and judges as they come and go, and hands them to the decider by descriptor.

In a thread of the warden's own: looking up a path can take long where a server or a user's process answers for it, and the
warden's main thread has something to watch.
"""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

from keibi.agent.gate import judging, mount_table
from keibi.agent.gate.files import is_below
from keibi.agent.gate.mount_table import Mount
from keibi.agent.gate.wishes import is_network_type

LOOK_SECONDS: Final = 0.2
FOREIGN_SECONDS: Final = 1.0
MOST_POINTS_BYTES: Final = 16 * 1024
"""Of one file system's mount points in one message. A container may make as many, with names as long, as it likes."""
_LAYERED: Final = frozenset({"overlay"})
_SHARE: Final = 50
"""Looking at other mount namespaces takes at most one in so many parts of a processor, however many there are."""


class Follower:
    """See the module's docstring. `start` once; `serve` names the decider's socket, None while none runs."""

    def __init__(self, judges_directory: str, only_below: str, *, layers_are_told: bool) -> None:
        self._layers_are_told = layers_are_told
        self._judges_directory = judges_directory
        self._only_below = (os.fsencode(only_below),) if only_below else ()
        self._channel: socket.socket | None = None  # the thread's own
        self._next: list[socket.socket | None] = []  # what the thread is to use from now on
        self._wants_network = False
        self._is_due = False
        self._wake_end, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._names: list[str] = []
        self._told: list[tuple[int, str, bytes, str]] = []
        self._own: list[Mount] = []
        self._foreign: list[Mount] = []
        self._foreign_at = 0.0

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="mounts", daemon=True).start()

    def serve(self, channel: socket.socket | None) -> None:
        """Hand everything to this decider from now on; the socket becomes this object's. Never waits."""
        self._next.append(channel)
        self.look_again(wants_network=False)

    def look_again(self, *, wants_network: bool) -> None:
        """Hand over every file system again, since other marks are wanted on them."""
        self._wants_network = wants_network
        self._is_due = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"l")

    def _run(self) -> None:
        own_namespace = os.readlink("/proc/self/ns/mnt")
        with open("/proc/self/mountinfo", "rb", buffering=0) as table:
            poll = select.poll()
            poll.register(table.fileno(), select.POLLERR | select.POLLPRI)
            poll.register(self._wake_end, select.POLLIN)
            while True:
                ready = [descriptor for descriptor, _ in poll.poll(LOOK_SECONDS * 1000)]
                if self._wake_end in ready:
                    os.read(self._wake_end, 64)
                while self._next:
                    if self._channel is not None:
                        self._channel.close()
                    self._channel = self._next.pop(0)
                if self._channel is not None:
                    is_due, self._is_due = self._is_due or table.fileno() in ready, False
                    try:
                        self._look(self._channel, own_namespace, is_due=is_due)
                    except OSError:
                        # The decider is busy or gone: whoever is there at the next turn gets everything.
                        self._is_due = True

    def _look(self, channel: socket.socket, own_namespace: str, *, is_due: bool) -> None:
        names = _judge_names(self._judges_directory)
        if is_due or names != self._names:
            self._names = names
            judging.send(channel, {"type": "judges", "names": names})
        now = time.monotonic()
        if is_due or now >= self._foreign_at:
            self._foreign = [
                mount
                for pid, table in mount_table.foreign_tables(own_namespace)
                for mount in mount_table.parse_mounts(table, f"/proc/{pid}/root")
            ]
            self._foreign_at = now + max(FOREIGN_SECONDS, _SHARE * (time.monotonic() - now))
        if is_due:
            self._own = mount_table.parse_mounts(mount_table.read_table("/proc/self/mountinfo"))
        mounts = [mount for mount in (*self._own, *self._foreign) if self._is_wanted(mount)]
        seen = [(mount.id, mount.device, mount.point, mount.type) for mount in mounts]
        if is_due or seen != self._told:
            self._told = seen
            self._hand_over(channel, mounts)

    def _is_wanted(self, mount: Mount) -> bool:
        if self._only_below and not is_below(mount.point, self._only_below):
            return False
        return self._wants_network or not is_network_type(mount.type)

    def _hand_over(self, channel: socket.socket, mounts: Iterable[Mount]) -> None:
        for device, group in mount_table.by_device(mounts).items():
            descriptor = mount_table.reach(group)
            if descriptor is None:
                continue
            points = judging.fitting([judging.path_text(mount.point) for mount in group], MOST_POINTS_BYTES)
            type_ = group[0].type
            is_layered = self._layers_are_told and type_ in _LAYERED
            message: dict[str, Any] = {
                "type": "mount",
                "device": device,
                "fstype": type_,
                "points": points,
                "layered": is_layered,
            }
            try:
                judging.send(channel, message, descriptor)
            finally:
                os.close(descriptor)
        judging.send(channel, {"type": "mounts_end"})


def _judge_names(directory: str) -> list[str]:
    try:
        return sorted(name[:-5] for name in os.listdir(directory) if name.endswith(".sock"))
    except OSError:
        return []
