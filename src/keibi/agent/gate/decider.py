"""The decider: the only holder of the gate's fanotify groups, and the one who answers the kernel.

Theory of operation. One thread, one epoll. An event of the permission group is answered at once when its process is the agent's own,
when memory knows the file, or when no judge wants to be asked about it. Else the file is *held*: every judge concerned gets a
question, and the loop goes on. Verdicts and deadlines end the holding. Nothing on this path logs, opens a file of a marked file
system, reads from a disk, or waits for another process; all queues are bounded.

The warden (`warden.py`) is the parent: it finds file systems and judges, watches that this process answers, and kills it if not; the
kernel then allows whatever waits.
"""

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import stat
import sys
import time
from typing import Any, Final

from keibi.agent.gate import fanotify, hardening, judging
from keibi.agent.gate.held import Asked, Held, Questions
from keibi.agent.gate.judge_link import JudgeLink, Outgoing
from keibi.agent.gate.judging import ALLOW, EXEC, OPEN, WRITTEN, FileKey, Question, Told
from keibi.agent.gate.remembering import has_no_writer, is_settled, may_be_ignored
from keibi.agent.gate.verdicts import MAX_JUDGES, Verdicts, bit_of, identity_of
from keibi.agent.gate.wishes import Place, Wish, asks_software_only, is_software, notification_mask, permission_mask, wish_of

MAX_HELD: Final = 4096
"""Files that may be held at once; beyond, the terms' answer is given at once."""
RECONNECT_SECONDS: Final = 0.2
STATE_SECONDS: Final = 2.0
NICE: Final = -20
_INIT_PID: Final = 1


class Decider:
    """See the module's docstring."""

    def __init__(self, warden: socket.socket) -> None:
        self._warden = warden
        self._epoll = select.epoll()
        self._permission = fanotify.Group(asks_permission=True)
        self._notification = fanotify.Group(asks_permission=False)
        self._questions = Questions()
        self._verdicts = Verdicts()
        self._judges: dict[str, JudgeLink] = {}
        self._by_descriptor: dict[int, JudgeLink] = {}
        self._wishes: tuple[Wish, ...] = ()
        self._places: dict[str, Place] = {}
        self._seen_devices: set[str] = set()
        self._masks: dict[str, tuple[int, int]] = {}
        self._refused: dict[str, str] = {}
        self._askers: dict[tuple[int, str], tuple[Wish, ...]] = {}
        self._needed: dict[tuple[int, str], int] = {}
        self._own: frozenset[int] = frozenset((os.getpid(), os.getppid()))
        self._own_root = 0  # the core, whose descendants are the agent; 0: none
        self._declared: frozenset[int] = frozenset()
        self._excluded: tuple[bytes, ...] = ()
        self._directory = ""
        self._is_proof = False
        self._may_hold = False
        self._reason = ""
        self._reconnect_at = 0.0
        self._state_at = 0.0
        self._last_state: dict[str, Any] = {}
        self._refused_hardening: list[str] = []
        self.counts = dict.fromkeys(
            (
                "questions_count",
                "events_count",
                "overdue_count",
                "overflows_count",
                "repeated_count",
                "ignored_count",
                "unanswered_count",
            ),
            0,
        )

    def run(self) -> None:
        """Serve until the warden is gone."""
        self._epoll.register(self._warden.fileno(), select.EPOLLIN)
        self._epoll.register(self._permission.fd, select.EPOLLIN)
        self._epoll.register(self._notification.fd, select.EPOLLIN)
        while True:
            now = time.monotonic()
            self._overdue(now)
            if now >= self._reconnect_at:
                self._reconnect(now)
            if now >= self._state_at:
                self._tell_state(now)
            until = min(self._reconnect_at, self._state_at, self._questions.next_due() or self._state_at)
            for descriptor, events in self._epoll.poll(max(0.0, until - time.monotonic())):
                if descriptor == self._permission.fd:
                    self._on_permission_events()
                elif descriptor == self._notification.fd:
                    self._on_notification_events()
                elif descriptor == self._warden.fileno():
                    if not self._on_warden():
                        return
                elif descriptor in self._by_descriptor:
                    self._on_judge(self._by_descriptor[descriptor], events)

    # --- the kernel's questions

    def _on_permission_events(self) -> None:
        try:
            for mask, descriptor, pid in self._permission.read():
                self.counts["events_count"] += 1
                if mask & fanotify.OVERFLOW:
                    self._overflowed()
                elif mask & fanotify.PERMISSIONS:
                    event = EXEC if mask & fanotify.EXEC_PERMISSION else OPEN
                    answer = self._decide(event, descriptor, pid)
                    if answer is not None:
                        self._permission.answer(descriptor, is_allowed=answer)
                        os.close(descriptor)
                else:
                    self._written(descriptor, pid)
        except OSError as error:
            # The kernel could not open the file for us (ENXIO, ESTALE, EWOULDBLOCK); it has dealt with that event itself.
            if error.errno in (errno.EBADF, errno.EPROTO, errno.EMFILE, errno.ENFILE):
                raise
            self.counts["unanswered_count"] += 1

    def _decide(self, event: str, descriptor: int, pid: int) -> bool | None:
        """Return whether it is allowed; None when it is held, and the descriptor kept."""
        if pid in self._own or pid in self._declared or pid == _INIT_PID:
            return True
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            return True
        needed = self._needed_bits(status.st_dev, event)
        if not needed:
            return True
        identity = identity_of(status.st_dev, status.st_ino)
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        allowed, denied = self._verdicts.of(identity, stamp)
        if denied & needed:
            if self._is_own(pid):
                return True
            self._tell_repeated(denied & needed, event, descriptor, pid, status)
            return False
        if not needed & ~allowed:
            return True
        if self._is_own(pid):
            return True
        held = self._questions.about(identity, event, stamp)
        if held is not None:
            held.events.append((descriptor, pid))
            return None
        return self._ask(event, descriptor, pid, status, needed & ~allowed)

    def _ask(self, event: str, descriptor: int, pid: int, status: os.stat_result, missing: int) -> bool | None:
        """Ask the judges whose verdict is missing; return the answer when none of them need be asked."""
        path = _path_of(descriptor)
        writerless = has_no_writer(descriptor)
        now = time.time()
        key = FileKey.of(status)
        held = Held(
            event=event,
            identity=identity_of(status.st_dev, status.st_ino),
            stamp=(status.st_size, status.st_mtime_ns, status.st_ctime_ns),
            key=key,
            path=path,
            has_no_writer=writerless and is_settled(status, now),
            may_ignore=writerless and may_be_ignored(status, path, now),
            asked_at=now,
            events=[(descriptor, pid)],
        )
        is_own_place = event == OPEN and _is_below(path, self._excluded)
        head: bytes | None = b""
        for wish in self._askers.get((status.st_dev, event), ()) or self._all_askers(event):
            bit = bit_of(wish.judge, event)
            if not bit & missing:
                continue
            if is_own_place or wish.excludes(path):
                if status.st_nlink == 1:
                    held.allowed |= bit
                continue
            if asks_software_only(wish.terms, event):
                if head == b"":
                    head = _head_of(descriptor)
                if not is_software(wish.terms.suffixes, status.st_mode, head, path):
                    held.allowed |= bit
                    continue
            self._ask_one(wish, held, bit)
        if held.waiting:
            self._questions.hold(held)
            return None
        self._remember(held, descriptor)
        return not held.is_denied

    def _ask_one(self, wish: Wish, held: Held, bit: int) -> None:
        link = self._link(wish.judge)
        if link.connection is None or self._questions.held_count >= MAX_HELD:
            held.is_denied |= wish.terms.on_timeout != ALLOW
            self._count_overdue(
                link, Told("overdue", 1, 0, wish.terms.on_timeout == ALLOW, held.events[0][1], held.path, held.key)
            )
            return
        descriptor, pid = held.events[0]
        question = Question(
            id=self._questions.next_id(),
            event=held.event,
            is_held=True,
            is_proof=self._is_proof,
            pid=pid,
            path=held.path,
            key=held.key,
            at=held.asked_at,
        )
        outgoing = Outgoing(judging.question_message(question), descriptor)
        due_at = time.monotonic() + wish.terms.deadline_milliseconds / 1000
        self._questions.add(Asked(question.id, held, wish.judge, link.epoch, bit, due_at, outgoing))
        self.counts["questions_count"] += 1
        link.send(outgoing)
        self._listen_to(link)

    def _finish(self, held: Held) -> None:
        """Answer everybody who waits for this file, once no judge is missing."""
        if held.waiting:
            return
        self._remember(held, held.events[0][0] if held.events else None)
        for descriptor, _ in held.events:
            self._permission.answer(descriptor, is_allowed=not held.is_denied)
            os.close(descriptor)
        held.events.clear()

    def _remember(self, held: Held, descriptor: int | None) -> None:
        if not held.has_no_writer or not (held.allowed or held.denied):
            return
        self._verdicts.remember(held.identity, held.stamp, held.allowed, held.denied)
        if held.may_ignore and not held.is_denied and descriptor is not None:
            self._ignore(held, descriptor)

    def _ignore(self, held: Held, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns, status.st_ctime_ns) != held.stamp or not has_no_writer(descriptor):
            return
        allowed, _ = self._verdicts.of(held.identity, held.stamp)
        mask = 0
        for event, bit in ((EXEC, fanotify.EXEC_PERMISSION), (OPEN, fanotify.OPEN_PERMISSION)):
            needed = self._needed_bits(status.st_dev, event)
            if needed and not needed & ~allowed:
                mask |= bit
        if mask:
            with contextlib.suppress(OSError):
                self._permission.ignore(descriptor, mask)
                self.counts["ignored_count"] += 1

    # --- verdicts and deadlines

    def _on_verdict(self, link: JudgeLink, message: dict[str, Any]) -> None:
        asked = self._questions.answered(int(message["id"]))
        if asked is None or asked.judge != link.index:
            return
        held = asked.held
        is_allowed = bool(message["allow"])
        if message.get("remember") and asked.epoch == link.epoch:
            if is_allowed:
                held.allowed |= asked.bit
            else:
                held.denied |= asked.bit
        held.is_denied |= not is_allowed
        if asked.is_overdue:
            self._remember(held, None)
        else:
            self._finish(held)

    def _overdue(self, now: float) -> None:
        for asked in self._questions.overdue(now):
            self._answer_by_terms(asked)

    def _answer_by_terms(self, asked: Asked) -> None:
        link = self._link(asked.judge)
        is_allowed = link.terms is None or link.terms.on_timeout == ALLOW
        held = asked.held
        asked.outgoing.is_withdrawn = True
        pid = held.events[0][1] if held.events else 0
        held.is_denied |= not is_allowed
        self._count_overdue(link, Told("overdue", 1, asked.id, is_allowed, pid, held.path, held.key))
        self._finish(held)

    def _count_overdue(self, link: JudgeLink, told: Told) -> None:
        self.counts["overdue_count"] += 1
        link.tell(told)

    def _tell_repeated(self, bits: int, event: str, descriptor: int, pid: int, status: os.stat_result) -> None:
        self.counts["repeated_count"] += 1
        path = _path_of(descriptor)
        for link in self._judges.values():
            if bits & bit_of(link.index, event):
                link.tell(Told("repeated", 1, 0, False, pid, path, FileKey.of(status)))

    # --- notifications

    def _on_notification_events(self) -> None:
        try:
            for mask, descriptor, pid in self._notification.read():
                self.counts["events_count"] += 1
                if mask & fanotify.OVERFLOW:
                    self._overflowed()
                elif pid in self._own or pid in self._declared or self._is_own(pid):
                    os.close(descriptor)
                else:
                    if mask & fanotify.OPEN_EXEC:
                        self._notify(EXEC, descriptor, pid)
                    if mask & fanotify.CLOSE_WRITE:
                        self._notify(WRITTEN, descriptor, pid)
                    os.close(descriptor)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EPROTO, errno.EMFILE, errno.ENFILE):
                raise
            self.counts["unanswered_count"] += 1

    def _written(self, descriptor: int, pid: int) -> None:
        """A writer has closed: forget what was known, also in the kernel, and tell who wants to know."""
        status = os.fstat(descriptor)
        if self._verdicts.forget(identity_of(status.st_dev, status.st_ino)):
            self._permission.heed(descriptor, fanotify.PERMISSIONS)
        if not (pid in self._own or pid in self._declared or self._is_own(pid)):
            self._notify(WRITTEN, descriptor, pid)
        os.close(descriptor)

    def _notify(self, event: str, descriptor: int, pid: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return
        path = _path_of(descriptor)
        if _is_below(path, self._excluded):
            return
        for wish in self._wishes:
            if event not in wish.watched or wish.excludes(path) or not self._covers(wish, status.st_dev):
                continue
            if asks_software_only(wish.terms, event) and not is_software(
                wish.terms.suffixes, status.st_mode, _head_of(descriptor), path
            ):
                continue
            link = self._link(wish.judge)
            question = Question(
                id=0,
                event=event,
                is_held=False,
                is_proof=self._is_proof,
                pid=pid,
                path=path,
                key=FileKey.of(status),
                at=time.time(),
            )
            self.counts["questions_count"] += 1
            if not link.send(Outgoing(judging.question_message(question), os.dup(descriptor), is_owned=True, is_lossy=True)):
                link.untold["overflow"] = link.untold.get("overflow", 0) + 1
            self._listen_to(link)

    def _overflowed(self) -> None:
        self.counts["overflows_count"] += 1
        self._forget_all()
        for link in self._judges.values():
            link.tell(Told("overflow"))
        self._say({"type": "overflow"})

    # --- judges

    def _link(self, index: int) -> JudgeLink:
        return next(link for link in self._judges.values() if link.index == index)

    def _reconnect(self, now: float) -> None:
        self._reconnect_at = now + RECONNECT_SECONDS
        for link in self._judges.values():
            if link.connection is None and link.connect() and link.connection is not None:
                self._by_descriptor[link.connection.fileno()] = link
                self._epoll.register(link.connection.fileno(), select.EPOLLIN)
                self._gather_own()
                link.send(Outgoing(self._state_message()))
            elif link.untold:
                link.flush()

    def _listen_to(self, link: JudgeLink) -> None:
        if link.connection is not None:
            self._epoll.modify(link.connection.fileno(), select.EPOLLIN | (select.EPOLLOUT if link.is_blocked else 0))

    def _on_judge(self, link: JudgeLink, events: int) -> None:
        if events & select.EPOLLOUT:
            link.flush()
            self._listen_to(link)
        if not events & ~select.EPOLLOUT:
            return
        try:
            for _ in range(64):
                message = link.receive()
                if message is not None:
                    self._on_message(link, message)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            self._lose(link)

    def _on_message(self, link: JudgeLink, message: dict[str, Any]) -> None:
        match message["type"]:
            case "verdict":
                self._on_verdict(link, message)
            case "terms":
                terms = judging.terms_of(message)
                if terms != link.terms:
                    link.terms = terms
                    link.epoch += 1
                    self._forget_all()
                    self._wish()
                self._last_state = {}
                self._state_at = 0.0
            case "forget":
                link.epoch += 1
                if message.get("files") is None:
                    self._forget_all()
                else:
                    self._forget_files([(int(device), int(inode)) for device, inode in message["files"]])
            case "own":
                link.own = frozenset(int(pid) for pid in message["pids"])
                self._gather_own()
            case _:
                raise ValueError(f"a message that no judge sends: {message['type']}")

    def _lose(self, link: JudgeLink) -> None:
        if link.connection is not None:
            del self._by_descriptor[link.connection.fileno()]
            self._epoll.unregister(link.connection.fileno())
        link.disconnect()
        link.own = frozenset()
        self._gather_own()
        for asked in self._questions.of_judge(link.index):
            self._answer_by_terms(asked)

    def _gather_own(self) -> None:
        self._declared = frozenset(pid for link in self._judges.values() for pid in link.own)

    def _forget_all(self) -> None:
        self._verdicts.clear()
        with contextlib.suppress(OSError):
            self._permission.heed_all()

    def _forget_files(self, files: list[tuple[int, int]]) -> None:
        known = [self._verdicts.forget(identity_of(device, inode)) for device, inode in files]
        if any(known) and self.counts["ignored_count"]:
            # A mark can only be taken off by a descriptor, and opening one is not for this process.
            self._permission.heed_all()

    # --- what is wanted, and where

    def _wish(self) -> None:
        """Work out anew who wants what, and have the warden hand over the file systems to be marked."""
        self._wishes = tuple(
            wish_of(link.index, link.terms, is_proof=self._is_proof, may_hold=self._may_hold)
            for link in self._judges.values()
            if link.terms is not None
        )
        self._work_out()
        self._say({"type": "mounts_wanted"})

    def _work_out(self) -> None:
        self._askers = {}
        self._needed = {}
        for place in self._places.values():
            for event in (EXEC, OPEN):
                askers = tuple(wish for wish in self._wishes if event in wish.held and wish.covers(place))
                self._askers[place.status_device, event] = askers
                self._needed[place.status_device, event] = sum(bit_of(wish.judge, event) for wish in askers)

    def _all_askers(self, event: str) -> tuple[Wish, ...]:
        return tuple(wish for wish in self._wishes if event in wish.held)

    def _needed_bits(self, device: int, event: str) -> int:
        needed = self._needed.get((device, event))
        if needed is None:
            # A btrfs subvolume: its files bear a device number that no mount shows.
            needed = sum(bit_of(wish.judge, event) for wish in self._all_askers(event))
        return needed

    def _covers(self, wish: Wish, device: int) -> bool:
        places = [place for place in self._places.values() if place.status_device == device]
        return not places or any(wish.covers(place) for place in places)

    def _mark(self, place: Place, descriptor: int) -> None:
        wanted = (permission_mask(self._wishes, place), notification_mask(self._wishes, place))
        if wanted[0] & fanotify.CLOSE_WRITE:
            wanted = (wanted[0], wanted[1] & ~fanotify.CLOSE_WRITE)
        has = self._masks.get(place.device, (0, 0))
        self._refused.pop(place.device, None)
        try:
            for group, now, before in zip((self._permission, self._notification), wanted, has, strict=True):
                if now:
                    group.mark_filesystem(descriptor, now)
                if before & ~now:
                    with contextlib.suppress(FileNotFoundError):
                        group.mark_filesystem(descriptor, before & ~now, is_added=False)
        except OSError as error:
            self._refused[place.device] = error.strerror or str(error)
        else:
            self._masks[place.device] = wanted

    # --- the warden

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
            case "begin":
                self._directory = message["judges"]
                self._excluded = tuple(judging.path_bytes(path) for path in message["excluded"])
                self._is_proof = bool(message["is_proof"])
                self._own_root = int(message["own_root"])
                self._own |= frozenset(int(pid) for pid in message["own"])
            case "judges":
                for name in message["names"][:MAX_JUDGES]:
                    if name not in self._judges and len(self._judges) < MAX_JUDGES:
                        path = os.path.join(self._directory, f"{name}.sock")
                        self._judges[name] = JudgeLink(len(self._judges), name, path)
                self._reconnect_at = 0.0
            case "mount" if descriptor is not None:
                place = Place(message["device"], os.fstat(descriptor).st_dev, message["fstype"], tuple(message["points"]))
                self._places[place.device] = place
                self._seen_devices.add(place.device)
                self._work_out()
                self._mark(place, descriptor)
            case "mounts_end":
                for device in set(self._places) - self._seen_devices:
                    del self._places[device]
                    self._masks.pop(device, None)
                    self._refused.pop(device, None)
                self._seen_devices = set()
                self._work_out()
                self._state_at = 0.0
            case "canary" if descriptor is not None:
                self._permission.mark_file(descriptor, fanotify.OPEN_PERMISSION)
            case "may_hold":
                self._may_hold, self._reason = bool(message["is_allowed"]), str(message["reason"])
                self._wish()

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            judging.send(self._warden, message, flags=socket.MSG_DONTWAIT)

    def _tell_state(self, now: float) -> None:
        self._state_at = now + STATE_SECONDS
        message = self._state_message()
        if message == self._last_state:
            return
        self._last_state = message
        for link in self._judges.values():
            if link.connection is not None:
                link.send(Outgoing(message, is_lossy=True))
        self._say(
            {
                **message,
                "judges": {name: link.terms.generation if link.terms else -1 for name, link in self._judges.items()},
                "wants_holding": any(wish.held for wish in self._wishes),
            }
        )

    def _state_message(self) -> dict[str, Any]:
        mounts = []
        for place in self._places.values():
            permission, notification = self._masks.get(place.device, (0, 0))
            kind = "permission" if permission else "notification" if notification else "none"
            mounts.append((place.points[0], place.type, kind, self._refused.get(place.device, "")))
        metrics = {**self.counts, "held_count": self._questions.held_count, "cached_count": len(self._verdicts)}
        return judging.state_message(
            judging.GateState(
                is_proof=self._is_proof,
                pid=os.getpid(),
                is_enforcing=self._may_hold and any(mount[2] == "permission" for mount in mounts),
                reason=self._reason,
                mounts=tuple(mounts),
                metrics=tuple((name, float(value)) for name, value in metrics.items()),
            )
        )

    def _is_own(self, pid: int) -> bool:
        """Return whether a process descends from the core; looked up only where the answer matters."""
        if not self._own_root:
            return False
        for _ in range(16):
            if pid == self._own_root:
                return True
            if pid <= 1:
                return False
            pid = _parent_of(pid)
        return False


def _parent_of(pid: int) -> int:
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(descriptor, 512).rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    finally:
        os.close(descriptor)


def _path_of(descriptor: int) -> bytes:
    try:
        return os.readlink(b"/proc/self/fd/%d" % descriptor)
    except OSError:
        return b""


def _is_below(path: bytes, directories: tuple[bytes, ...]) -> bool:
    return any(
        path.startswith(directory) and path[len(directory) : len(directory) + 1] in (b"/", b"") for directory in directories
    )


def _head_of(descriptor: int) -> bytes | None:
    """Return the first four bytes if they are in memory; None when a disk would have to be read."""
    buffer = bytearray(4)
    try:
        count = os.preadv(descriptor, [buffer], 0, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            return None
        count = os.preadv(descriptor, [buffer], 0)
    return bytes(buffer[:count])


def main() -> None:
    """Run the decider; its socket to the warden is standard input."""
    hardening.die_with_parent()
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # a broken lease (`has_no_writer`) says so by this signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    refused = hardening.come_first(nice=NICE)
    warden = socket.socket(fileno=os.dup(0))
    warden.setblocking(False)
    decider = Decider(warden)
    decider._refused_hardening = [reason for reason in (*refused, hardening.stay_in_memory()) if reason]
    gc.collect()
    gc.freeze()
    decider.run()
    sys.exit(0)


if __name__ == "__main__":
    main()
