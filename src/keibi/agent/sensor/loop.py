"""The sensor's one loop: waits for the kernel, the core or the clock, whichever comes first, and never for the socket."""

import ctypes
import os
import select
import time

from keibi.agent.linux.accounts import AccountNames
from keibi.agent.linux.bpf.build import OBJECT
from keibi.agent.linux.containers import ControlGroups
from keibi.agent.linux.exec_map import ExecMap, PortHappening, ProcessHappening
from keibi.agent.log import Log
from keibi.agent.ports import Happening, Hello, Observed, Stop, WatchRoots
from keibi.agent.sensor.channel import Channel
from keibi.agent.sensor.files import FileSensor
from keibi.agent.sensor.gathering import TOO_MUCH, Gathering
from keibi.agent.sensor.who import Who
from keibi.contract.status import Capability
from keibi.errors import KeibiError, TryLaterError

PAUSE_SECONDS = 0.004
"""After events: those that come meanwhile are read in one go, and the kernel brings equal ones together by itself."""
RING_SECONDS = 0.02
"""How long what the ring holds waits for more: reading each start of a program singly would slow them all down."""
MOUNTS_SECONDS = 0.2
"""Mount tables are read this often at most, however fast containers come and go."""
STOP_SECONDS = 1.0
BURST = 5000
"""Events after which memory is given back to the system when it has become quiet."""


class Sensor:
    """The whole sensor. `run` is called once."""

    def __init__(
        self,
        channel: Channel,
        log: Log,
        *,
        excluded: tuple[bytes, ...] = (),
        bpf_object: str = OBJECT,
    ) -> None:
        self._channel = channel
        self._log = log
        self._gathering = Gathering()
        self._capabilities: dict[str, Capability] = {}
        self._events_since_trim = 0
        self._map = self._load_map(bpf_object)
        self._who = Who(AccountNames(), ControlGroups(), self._map)
        self._files = self._open_files(excluded)
        self._poll = select.epoll()
        self._mounts_fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._ring_fd: int | None = None
        self._ring_due: float | None = None
        self._ring_lost = 0
        self._ring_read_at = time.time()
        self._mounts_due: float | None = None
        self._mounts_read = 0.0
        self._is_stopping = False
        self._channel_waits = select.EPOLLIN

    def run(self) -> None:
        """Observe until the core says stop or is gone."""
        self._poll.register(self._channel.fileno(), select.EPOLLIN)
        self._poll.register(self._mounts_fd, select.EPOLLPRI)
        if self._files is not None:
            self._poll.register(self._files.fd, select.EPOLLIN)
        self._say_hello()
        try:
            while not self._is_stopping:
                self._turn()
            self._finish()
        finally:
            self._close()

    def _turn(self) -> None:
        for fd, _ in self._poll.poll(self._timeout()):
            if fd == self._channel.fileno():
                self._channel.flush()
                self._hear()
            elif fd == self._mounts_fd:
                self._mounts_due = max(time.monotonic(), self._mounts_read + MOUNTS_SECONDS)
                self._poll.unregister(self._mounts_fd)
            elif fd == self._ring_fd:
                self._ring_due = time.monotonic() + RING_SECONDS
                self._poll.modify(fd, 0)
            elif self._files is not None and (count := self._files.read()):
                self._events_since_trim += count
                if self._map is not None:
                    # Without the map, who did it is only known while it lives: then there is no time to lose.
                    time.sleep(PAUSE_SECONDS)
        now = time.monotonic()
        if self._mounts_due is not None and self._mounts_due <= now:
            self._read_mounts()
        if self._ring_due is not None and self._ring_due <= now:
            self._read_ring()
        self._send()
        if self._events_since_trim > BURST and self._channel.is_ready and not self._gathering.waiting_count():
            self._trim()

    def _timeout(self) -> float:
        dues = [self._mounts_due, self._ring_due]
        if self._channel.is_ready:
            dues.append(self._gathering.due_at())
        due = min((due for due in dues if due is not None), default=None)
        return -1 if due is None else max(0.0, due - time.monotonic())

    def _send(self) -> None:
        gathering, channel = self._gathering, self._channel
        # While the core does not read, only full batches leave: what waits can still be brought together.
        while gathering.is_full() or (channel.is_ready and (due := gathering.due_at()) is not None and due <= time.monotonic()):
            if (overflow := gathering.take_overflow()) is not None:
                self._log.warning("the watchers are told to look again", reason=overflow.reason)
                channel.send(overflow)
            if observations := gathering.take():
                channel.send(Observed(observations), since=observations[0].at)
        if (since := channel.give_up()) is not None:
            gathering.give_up(since, time.time(), TOO_MUCH)
        waits = select.EPOLLIN | (0 if channel.is_ready else select.EPOLLOUT)
        if waits != self._channel_waits:
            self._channel_waits = waits
            self._poll.modify(channel.fileno(), waits)

    def _hear(self) -> None:
        for message in self._channel.receive():
            match message:
                case WatchRoots():
                    self._watch(message)
                case Stop():
                    self._is_stopping = True
                case _:
                    self._log.debug("the sensor has no use for this frame", frame=type(message).__name__)

    def _watch(self, wanted: WatchRoots) -> None:
        if self._files is not None:
            self._files.watch(wanted.roots)
        if self._map is not None:
            try:
                self._use_ring(self._map.want(processes=wanted.wants_processes, ports=wanted.wants_ports))
            except TryLaterError as error:
                self._log.error("starts of programs or ports are not told", error)
                self._capabilities["bpf_socket_events"] = Capability("bpf_socket_events", is_available=False, reason=str(error))
        self._say_hello()

    def _use_ring(self, fd: int | None) -> None:
        if fd == self._ring_fd:
            return
        if self._ring_fd is not None:
            self._poll.unregister(self._ring_fd)
            self._ring_due = None
        self._ring_fd = fd
        if fd is not None:
            self._poll.register(fd, select.EPOLLIN)

    def _read_ring(self) -> None:
        self._ring_due = None
        if self._map is None or self._ring_fd is None:
            return
        self._who.begin()
        at = time.time()
        for told in self._map.take_happenings():
            match told:
                case ProcessHappening():
                    happening = Happening.PROCESS_STARTED if told.is_start else Happening.PROCESS_ENDED
                    actor = self._who.describe(told.process, is_alive=told.is_start)
                    self._gathering.add(happening, actor.process.encode(), at, actor=actor)
                case PortHappening():
                    happening = Happening.PORT_OPENED if told.is_open else Happening.PORT_CLOSED
                    self._gathering.add(happening, told.key.encode(), at, actor=self._who.find(told.pid))
        lost = self._map.lost_count()
        if lost != self._ring_lost:
            self._gathering.overflowed(
                self._ring_read_at, at, f"{lost - self._ring_lost} starts of programs or ports found no room"
            )
            self._ring_lost = lost
        self._ring_read_at = at
        self._poll.modify(self._ring_fd, select.EPOLLIN)

    def _read_mounts(self) -> None:
        self._mounts_due = None
        self._mounts_read = time.monotonic()
        # Reading it anew on a descriptor of its own; this one only tells that something changed, and is armed again first.
        self._poll.register(self._mounts_fd, select.EPOLLPRI)
        if self._files is not None:
            before = self._files.coverage
            self._files.mounts_changed()
            if self._files.coverage != before:
                self._say_hello()

    def _say_hello(self) -> None:
        if self._files is not None:
            refused = self._files.coverage.refused
            reason = "; ".join(f"{os.fsdecode(point)}: {why}" for point, why in sorted(refused.items()))
            is_available = bool(self._files.coverage.marked) or not refused
            self._capabilities["fanotify_filesystem_marks"] = Capability("fanotify_filesystem_marks", is_available, reason)
        self._channel.send(Hello("sensor", os.getpid(), list(self._capabilities.values())))

    def _load_map(self, bpf_object: str) -> ExecMap | None:
        try:
            loaded = ExecMap(bpf_object)
        except KeibiError as error:
            self._log.warning("who changes a file is known from /proc only", error=str(error))
            self._capabilities["bpf_exec_map"] = Capability("bpf_exec_map", is_available=False, reason=str(error))
            self._capabilities["bpf_socket_events"] = Capability("bpf_socket_events", is_available=False, reason=str(error))
            return None
        self._trim()  # libbpf has just read all of the kernel's type information, which is never needed again
        self._capabilities["bpf_exec_map"] = Capability("bpf_exec_map", is_available=True)
        self._capabilities["bpf_socket_events"] = Capability("bpf_socket_events", is_available=True)
        return loaded

    def _open_files(self, excluded: tuple[bytes, ...]) -> FileSensor | None:
        try:
            return FileSensor(self._gathering, self._who, self._log, excluded)
        except OSError as error:
            self._log.error("files are not observed", error)
            self._capabilities["fanotify_filesystem_marks"] = Capability(
                "fanotify_filesystem_marks", is_available=False, reason=str(error)
            )
            return None

    def _finish(self) -> None:
        """Send what waits, as far as the core takes it in time."""
        if self._files is not None:
            self._files.read()
        self._gathering.take_all()
        while (overflow := self._gathering.take_overflow()) is not None:
            self._channel.send(overflow)
        while observations := self._gathering.take():
            self._channel.send(Observed(observations))
        deadline = time.monotonic() + STOP_SECONDS
        while not self._channel.is_ready and time.monotonic() < deadline:
            select.select([], [self._channel.fileno()], [], 0.05)
            self._channel.flush()

    def _trim(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)
        self._events_since_trim = 0

    def _close(self) -> None:
        self._poll.close()
        os.close(self._mounts_fd)
        if self._files is not None:
            self._files.close()
        if self._map is not None:
            self._map.close()
