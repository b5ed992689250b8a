"""How a permission event is answered: at once from memory, or held until judges have said what they think.

Theory of operation. Memory is void whenever a judge's terms change or it says so; `_epoch` counts these moments, and what was
asked before one is not remembered after it. A file that is asked about again while a question is pending joins it. The first
denial answers; verdicts that come later are remembered all the same.
"""

import contextlib
import os
import stat
import time
from collections import Counter
from typing import Final

from keibi.agent.gate import fanotify, floor, judging
from keibi.agent.gate.answers import Answers
from keibi.agent.gate.code_states import CodeStates
from keibi.agent.gate.coverage import Coverage
from keibi.agent.gate.files import head_of, is_below, path_of, stamp_of
from keibi.agent.gate.held import Asked, Held, Questions
from keibi.agent.gate.judge_link import JudgeLink, Outgoing
from keibi.agent.gate.judges import Judges
from keibi.agent.gate.judging import ALLOW, EXEC, GUARD_OFF, OPEN, FileKey, Question, Told
from keibi.agent.gate.own_processes import OwnProcesses
from keibi.agent.gate.remembering import has_no_writer, is_settled, may_be_ignored
from keibi.agent.gate.verdicts import IGNORABLE, Identity, Verdicts, bit_of, identity_of
from keibi.agent.gate.wishes import Wish, asks_software_only, is_software

MAX_HELD: Final = 4096
"""Files that may be held at once; beyond, the terms' answer is given at once."""
MAX_PINNED: Final = 20_000
"""Ignore marks that hold their inode in memory, on kernels that have no others."""


class Answering:
    """See the module's docstring. The loop hands events in, and calls `overdue` when `next_due` says."""

    def __init__(
        self,
        group: fanotify.Group,
        coverage: Coverage,
        judges: Judges,
        own: OwnProcesses,
        counts: Counter[str],
        answers: Answers,
        *,
        excluded: tuple[bytes, ...],
        is_proof: bool,
        settled_seconds: float,
    ) -> None:
        self._group = group
        self._coverage = coverage
        self._judges = judges
        self._own = own
        self._counts = counts
        self._excluded = excluded
        self._is_proof = is_proof
        self._settled_seconds = settled_seconds
        self._questions = Questions()
        self._verdicts = Verdicts(answers=answers)
        self.code = CodeStates()
        self._epoch = 0

    @property
    def held_count(self) -> int:
        """How many files are being asked about."""
        return self._questions.held_count

    @property
    def cached_count(self) -> int:
        """How many files memory knows."""
        return len(self._verdicts)

    def next_due(self) -> float | None:
        """Return when the next question is due."""
        return self._questions.next_due()

    def on_event(self, mask: int, descriptor: int, pid: int) -> None:
        """Answer a permission event, or hold it; the descriptor is closed either way in the end."""
        answer = self._decide(EXEC if mask & fanotify.EXEC_PERMISSION else OPEN, descriptor, pid)
        if answer is not None:
            self._group.answer(descriptor, is_allowed=answer)
            os.close(descriptor)

    def on_written(self, descriptor: int, status: os.stat_result) -> None:
        """Forget a file whose writer has closed, also one that wrote through a mapping."""
        self.code.forget(status.st_dev, status.st_ino)
        if self._verdicts.forget(identity_of(status.st_dev, status.st_ino)):
            self._group.heed(descriptor, fanotify.PERMISSIONS)

    def on_verdict(self, link: JudgeLink, question_id: int, *, is_allowed: bool, remember: bool, code: str) -> None:
        """Take a judge's answer."""
        asked = self._questions.answered(question_id)
        if asked is None or asked.judge != link.index:
            return
        held = asked.held
        if remember:
            if is_allowed:
                held.allowed |= asked.bit
            else:
                held.denied |= asked.bit
        held.is_denied |= not is_allowed
        held.codes.add(code)
        if asked.is_overdue:
            self._remember(held, None)
        else:
            self._go_on(held)

    def on_no_verdict(self, link: JudgeLink, question_id: int) -> None:
        """Answer by the terms, as the judge says itself that it cannot in time; it has told of that."""
        asked = self._questions.answered(question_id)
        if asked is not None and asked.judge == link.index and not asked.is_overdue:
            self._answer_by_terms(asked, is_told=False)

    def overdue(self, now: float) -> None:
        """Answer what is due by the terms."""
        for asked in self._questions.overdue(now):
            self._answer_by_terms(asked)

    def lose(self, link: JudgeLink) -> None:
        """Answer by the terms whatever a judge was asked that is gone."""
        for asked in self._questions.of_judge(link.index):
            self._answer_by_terms(asked)

    def forget_all(self) -> None:
        """Forget every verdict, also in the kernel. The mark on the canary goes as well."""
        self._epoch += 1
        self._verdicts.clear()
        self.code.forget_all()
        with contextlib.suppress(OSError):
            self._group.heed_all()

    def forget_files(self, files: list[tuple[int, int]]) -> None:
        """Forget what is known of files, given as (device, inode)."""
        self._epoch += 1
        for device, inode in files:
            self._verdicts.forget(identity_of(device, inode))
            self.code.forget(device, inode)
        # A single mark can only be taken off by a descriptor, and opening files is not for this process. The others come
        # back from memory, each at the next opening of its file.
        with contextlib.suppress(OSError):
            self._group.heed_all()

    # --- deciding

    def _decide(self, event: str, descriptor: int, pid: int) -> bool | None:
        """Return whether it is allowed; None when it is held, and the descriptor kept."""
        if pid in self._own:
            return True
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return True
        needed = self._coverage.needed_bits(status.st_dev, event)
        if not needed:
            return True
        identity = identity_of(status.st_dev, status.st_ino)
        allowed, denied = self._verdicts.of(identity, stamp_of(status))
        if denied & needed:
            if self._own.descends(pid):
                return True
            self._tell_repeated(denied & needed, event, descriptor, pid, status)
            return False
        missing = needed & ~allowed
        if not missing and not (self._coverage.is_memory(status.st_dev) and not has_no_writer(descriptor)):
            if allowed & IGNORABLE:
                # The mark was taken off, or the kernel gave its memory back.
                self._ignore(descriptor, status, allowed)
            return True
        if self._own.descends(pid):
            return True
        held = self._questions.about(identity, event, stamp_of(status))
        # Nobody waits any more where one judge has denied it and another is still to answer.
        is_anothers = held is not None and (not held.events or held.events[0][1] != pid)
        if is_anothers and self._is_by_asker(status.st_dev, event):
            held = None  # what one process may do says nothing of another that opens the same file meanwhile
        if held is None:
            return self._ask(event, descriptor, pid, status, identity, missing or needed)
        if held.is_denied:
            return False
        held.events.append((descriptor, pid))
        return None

    def _is_by_asker(self, device: int, event: str) -> bool:
        return any(wish.terms.by_asker for wish in self._coverage.askers(device, event))

    def _ask(
        self, event: str, descriptor: int, pid: int, status: os.stat_result, identity: Identity, missing: int
    ) -> bool | None:
        """Ask the judges whose verdict is missing; return the answer when none of them needs to be asked."""
        path = path_of(descriptor)
        now = time.time()
        is_lasting = is_settled(status, now, self._settled_seconds) and has_no_writer(descriptor)
        held = Held(
            event=event,
            identity=identity,
            stamp=stamp_of(status),
            key=FileKey.of(status),
            path=path,
            has_no_writer=is_lasting,
            may_ignore=is_lasting and may_be_ignored(status, path),
            asked_at=now,
            epoch=self._epoch,
            events=[(descriptor, pid)],
        )
        wishes = self._to_be_asked(held, descriptor, status, missing)
        if any(wish.terms.guard != GUARD_OFF for wish in wishes):
            self.code.begin(held, descriptor)
        for wish in wishes:
            self._ask_one(wish, held, bit_of(wish.judge, event))
        if held.waiting and not held.is_denied:
            self._questions.hold(held)
            return None
        self._withdraw(held)
        self.code.settle(held)
        self._remember(held, descriptor)
        return not held.is_denied

    def _to_be_asked(self, held: Held, descriptor: int, status: os.stat_result, missing: int) -> list[Wish]:
        """Return who has to be asked; the verdict of those that want no such questions is an allowance."""
        # Only opening: a program beneath the agent's directory is as suspect as elsewhere.
        is_ours = held.event == OPEN and is_below(held.path, self._excluded)
        head: bytes | None = None
        is_read = False
        wishes = []
        for wish in self._coverage.askers(status.st_dev, held.event):
            bit = bit_of(wish.judge, held.event)
            if not bit & missing:
                continue
            if is_ours or wish.excludes(held.path):
                # By another name the same file may be one to ask about. A mark of the kernel's would outlive link() and rename().
                held.allowed |= bit if status.st_nlink == 1 else 0
                held.may_ignore = False
                continue
            if asks_software_only(wish.terms, held.event):
                if not is_read:
                    head, is_read = head_of(descriptor, is_memory=self._coverage.is_memory(status.st_dev)), True
                if not is_software(wish.terms.suffixes, status.st_mode, head, held.path):
                    held.allowed |= bit
                    continue
            wishes.append(wish)
        return wishes

    def _ask_one(self, wish: Wish, held: Held, bit: int) -> None:
        link = self._judges[wish.judge]
        descriptor, pid = held.events[0]
        is_away, is_full = link.connection is None, self._questions.held_count >= MAX_HELD
        # One that gives no verdicts is still asked now and then: so it is noticed when it does again.
        now = time.monotonic()
        is_given_up = link.is_given_up(now) and not link.is_to_be_tried(now)
        if is_away or is_full or is_given_up:
            is_allowed = self._is_allowed_by_terms(link, held)
            held.is_denied |= not is_allowed
            self._count_overdue(link, Told("overdue", 1, 0, is_allowed, pid, held.path, held.key))
            return
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
        self._questions.add(Asked(question.id, held, wish.judge, bit, due_at, outgoing))
        self._counts["questions_count"] += 1
        self._judges.send(link, outgoing)

    # --- answering

    def _go_on(self, held: Held) -> None:
        """Answer everybody who waits for this file, once one judge has denied it or none is missing."""
        if held.waiting and not held.is_denied:
            return
        self._withdraw(held)
        if held.epoch == self._epoch:
            self.code.settle(held)
        self._remember(held, held.events[0][0] if held.events else None)
        for descriptor, _ in held.events:
            self._group.answer(descriptor, is_allowed=not held.is_denied)
            os.close(descriptor)
        held.events.clear()

    def _withdraw(self, held: Held) -> None:
        """Have no question go out any more whose descriptor is about to be closed."""
        for asked in self._questions.open_of(held):
            asked.outgoing.is_withdrawn = True

    def _is_allowed_by_terms(self, link: JudgeLink, held: Held) -> bool:
        """Return the answer for the want of a verdict."""
        if link.terms is None or link.terms.on_timeout == ALLOW or link.is_given_up(time.monotonic()):
            return True
        return bool(held.events) and floor.is_needed(held.event, held.path, os.fstat(held.events[0][0]))

    def _answer_by_terms(self, asked: Asked, *, is_told: bool = True) -> None:
        link = self._judges[asked.judge]
        held = asked.held
        asked.outgoing.is_withdrawn = True
        link.is_without_verdict(time.monotonic())
        if not held.events:
            return
        is_allowed = self._is_allowed_by_terms(link, held)
        held.is_denied |= not is_allowed
        if is_told:
            self._count_overdue(link, Told("overdue", 1, asked.id, is_allowed, held.events[0][1], held.path, held.key))
        self._go_on(held)

    def _count_overdue(self, link: JudgeLink, told: Told) -> None:
        self._counts["overdue_count"] += 1
        link.tell(told)

    def _tell_repeated(self, bits: int, event: str, descriptor: int, pid: int, status: os.stat_result) -> None:
        self._counts["repeated_count"] += 1
        told = Told("repeated", 1, 0, False, pid, path_of(descriptor), FileKey.of(status))
        for wish in self._coverage.wishes:
            if bits & bit_of(wish.judge, event):
                self._judges[wish.judge].tell(told)

    # --- remembering

    def _remember(self, held: Held, descriptor: int | None) -> None:
        if not held.has_no_writer or held.epoch != self._epoch or not (held.allowed or held.denied):
            return
        allowed = held.allowed | (IGNORABLE if held.may_ignore else 0)
        self._verdicts.remember(held.identity, held.stamp, allowed, held.denied)
        if descriptor is not None and held.may_ignore and not held.is_denied:
            status = os.fstat(descriptor)
            if stamp_of(status) == held.stamp:
                self._ignore(descriptor, status, self._verdicts.of(held.identity, held.stamp)[0])

    def _ignore(self, descriptor: int, status: os.stat_result, allowed: int) -> None:
        """Have the kernel let this file pass by itself, for the events that every judge allows."""
        if self._group.pinned_count >= MAX_PINNED or not has_no_writer(descriptor):
            return
        mask = 0
        for event, bit in ((EXEC, fanotify.EXEC_PERMISSION), (OPEN, fanotify.OPEN_PERMISSION)):
            needed = self._coverage.needed_bits(status.st_dev, event)
            mask |= bit if needed and not needed & ~allowed else 0
        with contextlib.suppress(OSError):
            self._group.ignore(descriptor, mask)
            self._counts["ignored_count"] += 1
