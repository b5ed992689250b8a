"""The decider: the only holder of the gate's fanotify groups, and the one who answers the kernel.

Theory of operation. One thread, one epoll. An event of the permission group is answered at once, or held while judges are
asked (`answering.py`), and the loop goes on. Nothing on this path logs, opens a file of a marked file system, reads from a
disk, or waits for another process; all queues are bounded.

The warden (`warden.py`) is the parent: it finds file systems and judges, watches that this process answers, and kills it if
not; the kernel then allows whatever waits. Until the warden says that holding is allowed, nothing is marked for permission.
"""

import contextlib
import errno
import gc
import os
import resource
import select
import signal
import socket
import time
from collections import Counter
from typing import Any, Final

from keibi.agent.gate import fanotify, hardening, judging
from keibi.agent.gate.answering import Answering
from keibi.agent.gate.answers import make_answers
from keibi.agent.gate.coverage import Coverage
from keibi.agent.gate.guard_maps import FileStates
from keibi.agent.gate.judge_link import JudgeLink, Outgoing
from keibi.agent.gate.judges import RECONNECT_SECONDS, Judges
from keibi.agent.gate.judging import OPEN, GateState, Told
from keibi.agent.gate.own_processes import OwnProcesses
from keibi.agent.gate.telling import Telling
from keibi.agent.gate.wishes import Place, wish_of

METRICS_SECONDS: Final = 10.0
"""How often judges are told figures when nothing else changed."""
NICE: Final = -20
_FATAL: Final = frozenset({errno.EBADF, errno.EINVAL, errno.EFAULT})
_WANT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""With these the kernel takes an event out of its queue and cannot hand over the file."""
_METRICS: Final = (
    "events_count", "questions_count", "overdue_count", "repeated_count", "overflows_count", "dropped_count", "ignored_count",
    "unanswered_count",
)  # fmt: skip


class Decider:
    """See the module's docstring."""

    def __init__(self, warden: socket.socket, begin: dict[str, Any]) -> None:
        self._warden = warden
        self._epoll = select.epoll()
        # Where the kernel has no permission events, the first group exists but is never given a mark.
        self._permission = fanotify.Group(asks_permission=bool(begin["can_hold"]))
        self._notification = fanotify.Group(asks_permission=False)
        self._own = OwnProcesses((os.getpid(), os.getppid()))
        self._own.name(begin["own"], int(begin["own_root"]))
        self._directory = str(begin["judges"])
        self._is_proof = bool(begin["is_proof"])
        self._restarts = int(begin["restarts"])
        self._backlog = select.poll()
        for group in (self._permission, self._notification):
            self._backlog.register(group.fd, select.POLLIN)
        self._answers = make_answers(self._permission, self._epoll)
        self._coverage = Coverage(self._permission, self._notification, self._answers)
        self._judges = Judges(self._epoll, self, self._own)
        self._counts: Counter[str] = Counter()
        excluded = tuple(judging.path_bytes(path) for path in begin["excluded"])
        self._answering = Answering(
            self._permission,
            self._coverage,
            self._judges,
            self._own,
            self._counts,
            self._answers,
            excluded=excluded,
            is_proof=self._is_proof,
            settled_seconds=float(begin["settled_seconds"]),
        )
        self._telling = Telling(
            self._notification,
            self._coverage,
            self._judges,
            self._own,
            self._counts,
            excluded=excluded,
            is_proof=self._is_proof,
        )
        self._state_seconds = float(begin["state_seconds"])
        self._may_hold = False
        self._reason = str(begin["reason"])
        self._suspended: tuple[str, ...] = ()
        self._guard_maps: list[int] = []
        self._canary: int | None = None
        self._is_canary_awaited = False
        self._is_held_back = False
        self._reconnect_at = 0.0
        self._state_at = 0.0
        self._metrics_at = 0.0
        self._last_told: GateState | None = None

    def run(self) -> None:
        """Serve until the warden is gone."""
        for descriptor in (self._warden.fileno(), self._permission.fd, self._notification.fd):
            self._epoll.register(descriptor, select.EPOLLIN)
        while True:
            now = time.monotonic()
            self._answering.overdue(now)
            if now >= self._reconnect_at:
                self._reconnect_at = now + RECONNECT_SECONDS
                self._judges.reconnect()
            if now >= self._state_at:
                self._tell_state(now)
            self._hold_back()
            until = min(self._state_at, self._answering.next_due() or self._state_at)
            if not self._judges.are_served:
                until = min(until, self._reconnect_at)
            for descriptor, events in self._answers.wait(until):
                if descriptor == self._permission.fd:
                    self._read(self._permission)
                elif descriptor == self._notification.fd:
                    self._read(self._notification)
                elif descriptor == self._warden.fileno():
                    if not self._on_warden():
                        return
                elif self._judges.serves(descriptor):
                    self._judges.on_ready(descriptor, events)

    def _hold_back(self) -> None:
        """Leave notifications in the kernel's queue while a judge is behind: they wait there at no cost of descriptors."""
        is_held_back = any(link.is_behind for link in self._judges)
        if is_held_back != self._is_held_back:
            self._is_held_back = is_held_back
            self._epoll.modify(self._notification.fd, 0 if is_held_back else select.EPOLLIN)

    def _read(self, group: fanotify.Group) -> None:
        try:
            events = self._answers.take() if group is self._permission else group.read()
        except OSError as error:
            # The kernel could not open the file for us (ENXIO, ESTALE, EWOULDBLOCK).
            if error.errno in _FATAL:
                raise
            self._counts["unanswered_count"] += 1
            if error.errno in _WANT:
                self._missed()
            return
        self._counts["events_count"] += len(events)
        for mask, descriptor, pid in events:
            try:
                self._on_event(group, mask, descriptor, pid)
            except OSError:
                # Such as a file system that went away under the event. Nobody may be left waiting for it.
                self._counts["unanswered_count"] += 1
                self._missed()
                self._let_go(group, mask, descriptor)

    def _missed(self) -> None:
        """Have every judge told, when that can be, that it was not told of something."""
        for link in self._judges:
            link.miss()

    def _on_event(self, group: fanotify.Group, mask: int, descriptor: int, pid: int) -> None:
        if mask & fanotify.OVERFLOW:
            self._overflowed()
        elif mask & fanotify.PERMISSIONS:
            if self._is_canary_awaited:
                self._look_for_canary(descriptor)
            self._answering.on_event(mask, descriptor, pid)
        elif group is self._permission:
            self._on_written(descriptor, pid)
        else:
            self._telling.on_event(mask, descriptor, pid)
            os.close(descriptor)

    def _let_go(self, group: fanotify.Group, mask: int, descriptor: int) -> None:
        with contextlib.suppress(OSError):
            if mask & fanotify.PERMISSIONS:
                group.answer(descriptor, is_allowed=True)
            os.close(descriptor)

    def _on_written(self, descriptor: int, pid: int) -> None:
        status = os.fstat(descriptor)
        self._answering.on_written(descriptor, status)
        self._telling.on_written(descriptor, status, pid)
        os.close(descriptor)

    def _overflowed(self) -> None:
        self._counts["overflows_count"] += 1
        self._forget_all()
        self._judges.tell_all(Told("overflow"))
        self._say({"type": "overflow"})

    # --- what judges say

    def on_verdict(self, link: JudgeLink, question_id: int, *, is_allowed: bool, remember: bool, code: str) -> None:
        """Take an answer."""
        self._answering.on_verdict(link, question_id, is_allowed=is_allowed, remember=remember, code=code)

    def on_no_verdict(self, link: JudgeLink, question_id: int) -> None:
        """Answer by the terms."""
        self._answering.on_no_verdict(link, question_id)

    def on_terms(self, link: JudgeLink) -> None:
        """Forget all verdicts and take the terms."""
        del link
        self._forget_all()
        self._wish()

    def on_forget(self, files: list[tuple[int, int]] | None) -> None:
        """Forget verdicts."""
        if files is None:
            self._forget_all()
        else:
            self._answering.forget_files(files)
            self._mark_canary()

    def on_lost(self, link: JudgeLink) -> None:
        """Answer by the terms whatever this judge was asked."""
        self._answering.lose(link)

    def greeting(self) -> dict[str, Any]:
        """Return the state, which a judge is told first."""
        return judging.state_message(self._state())

    def _forget_all(self) -> None:
        self._answering.forget_all()
        self._telling.forget_all()
        self._mark_canary()

    def _wish(self) -> None:
        """Work out anew who wants what, and have the warden hand over the file systems to be marked."""
        wishes = tuple(
            wish_of(link.index, link.terms, is_proof=self._is_proof, may_hold=self._may_hold)
            for link in self._judges
            if link.terms is not None
        )
        self._coverage.wish(wishes)
        self._say(
            {
                "type": "wants",
                "holding": any(wish.wants_holding for wish in wishes),
                "guard": max((wish.terms.guard for wish in wishes), key=judging.GUARD_MODES.index, default=judging.GUARD_OFF),
                # A mapping is judged where the opening before it was answered, so that what was forgotten has been asked about.
                "maps": any(OPEN in wish.held and wish.terms.guard != judging.GUARD_OFF for wish in wishes),
                "protects": any(wish.terms.protects_agent for wish in wishes),
                "watching": any(wish.watched for wish in wishes),
                "network": any(wish.terms.includes_network for wish in wishes),
            }
        )
        self._state_at = 0.0

    # --- what the warden says

    def _on_warden(self) -> bool:
        try:
            received = judging.receive(self._warden)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if received is None:
            return False
        message, descriptor = received
        try:
            self._on_order(message, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        return True

    def _on_order(self, message: dict[str, Any], descriptor: int | None) -> None:
        match message["type"]:
            case "judges":
                self._judges.know(self._directory, message["names"])
                self._reconnect_at = 0.0
            case "mount" if descriptor is not None:
                device, points = os.fstat(descriptor).st_dev, tuple(message["points"])
                place = Place(message["device"], device, message["fstype"], points, bool(message["layered"]))
                self._coverage.mark(place, descriptor)
            case "mounts_end":
                self._coverage.end_round()
                self._state_at = 0.0
            case "canary" if descriptor is not None:
                self._canary = os.dup(descriptor)
                self._is_canary_awaited = True
                self._mark_canary()
            case "guard_map" if descriptor is not None:
                self._guard_maps.append(os.dup(descriptor))
                if len(self._guard_maps) == 2:
                    self._answering.code.use(FileStates(*self._guard_maps))
                    self._forget_all()  # what is remembered was not told to the guard
            case "guarded":
                if message["is_tainted"]:
                    # Whoever opened it for writing may have failed, and no end of a writer will come: so ask anew.
                    self._answering.forget_files([(message["device"], message["inode"])])
                    self._mark_canary()
                told = Told("guarded", 1, 0, not message["was_refused"], message["pid"], judging.path_bytes(message["name"]))
                for link in self._judges:
                    if link.terms is not None and link.terms.guard != judging.GUARD_OFF:
                        link.tell(told)
            case "may_hold":
                self._may_hold, self._reason = bool(message["is_allowed"]), str(message["reason"])
                if not self._may_hold and self._canary is not None:
                    os.close(self._canary)
                    self._canary = None
                self._forget_all()
                self._wish()

    def _mark_canary(self) -> None:
        if self._canary is not None:
            self._permission.mark_file(self._canary, fanotify.OPEN_PERMISSION)

    def _look_for_canary(self, descriptor: int) -> None:
        if self._canary is not None and os.path.sameopenfile(descriptor, self._canary):
            self._is_canary_awaited = False
            self._say({"type": "canary_seen"})

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            judging.send(self._warden, message, flags=socket.MSG_DONTWAIT)

    # --- how it is

    def _tell_caught_up(self) -> None:
        """Tell judges that they have heard of everything, when that is so."""
        at = time.time()
        if self._coverage.is_complete and not self._backlog.poll(0):
            self._judges.tell_caught_up(at, self._counts["events_count"])

    def _tell_state(self, now: float) -> None:
        self._state_at = now + self._state_seconds
        self._tell_caught_up()
        holding = {wish.judge for wish in self._coverage.wishes if wish.held}
        suspended = tuple(link.name for link in self._judges if link.index in holding and link.is_given_up(now))
        if suspended != self._suspended:
            self._suspended = suspended
            self._say({"type": "suspended", "judges": suspended})
        state = self._state()
        message = judging.state_message(state)
        is_changed = self._last_told is None or _without_metrics(state) != _without_metrics(self._last_told)
        if is_changed or (now >= self._metrics_at and state != self._last_told):
            self._last_told = state
            self._metrics_at = now + METRICS_SECONDS
            for link in self._judges:
                self._judges.send(link, Outgoing(message, is_lossy=True))
        # To the warden always: that is how it knows that this process is alive while there is no canary.
        terms = {link.name: link.terms.generation if link.terms is not None else -1 for link in self._judges}
        seen = self._coverage.executions_seen()
        self._say({**message, "judges": terms, "devices": seen, "left": self._coverage.left_out(seen)})

    def _state(self) -> GateState:
        mounts = self._coverage.mounts()
        metrics = {name: self._counts[name] for name in _METRICS}
        metrics["events_count"] += self._answers.count
        metrics["held_count"] = self._answering.held_count
        metrics["cached_count"] = self._answering.cached_count
        metrics["mounts_count"] = self._coverage.count
        metrics["restarts_count"] = self._restarts
        metrics["memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return GateState(
            is_proof=self._is_proof,
            pid=os.getpid(),
            is_enforcing=self._may_hold and any(mount[2] == "permission" for mount in mounts),
            reason=self._reason,
            suspended=self._suspended,
            mounts=mounts,
            metrics=tuple((name, float(value)) for name, value in metrics.items()),
        )


def _without_metrics(state: GateState) -> tuple[object, ...]:
    return state.is_enforcing, state.reason, state.suspended, state.mounts


def serve(warden: socket.socket) -> None:
    """Be the decider of the warden at the other end; returns when it is gone. This process must have one thread."""
    hardening.die_with_parent()
    hardening.be_called(b"keibi-decider")
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # a broken lease (`has_no_writer`) says so by this signal
    hardening.come_first(nice=NICE)
    # Nothing here makes cycles as it goes, so the collector would only cost time on somebody's open().
    gc.disable()
    received = judging.receive(warden)
    if received is None:
        return
    warden.setblocking(False)
    decider = Decider(warden, received[0])
    hardening.stay_in_memory()
    decider.run()
