"""What is told to judges without anybody waiting: programs that were started, files that were written or opened."""

import os
import stat
import time
from collections import Counter

from keibi.agent.gate import fanotify, judging
from keibi.agent.gate.coverage import Coverage
from keibi.agent.gate.files import head_of, is_below, path_of, stamp_of
from keibi.agent.gate.judge_link import Outgoing
from keibi.agent.gate.judges import Judges
from keibi.agent.gate.judging import EXEC, OPEN, WRITTEN, FileKey, Question
from keibi.agent.gate.own_processes import OwnProcesses
from keibi.agent.gate.remembering import has_no_writer, is_settled, may_be_ignored
from keibi.agent.gate.verdicts import Verdicts, bit_of, identity_of
from keibi.agent.gate.wishes import Wish, asks_software_only, is_software


class Telling:
    """Sends questions that await no verdict. A judge that does not keep up is told that it missed some."""

    def __init__(
        self,
        group: fanotify.Group,
        coverage: Coverage,
        judges: Judges,
        own: OwnProcesses,
        counts: Counter[str],
        *,
        excluded: tuple[bytes, ...],
        is_proof: bool,
    ) -> None:
        self._group = group
        self._coverage = coverage
        self._judges = judges
        self._own = own
        self._counts = counts
        self._excluded = excluded
        self._is_proof = is_proof
        # An unchanged file is told of once however often it is opened.
        self._told = Verdicts(most=8_000)

    def on_event(self, mask: int, descriptor: int, pid: int) -> None:
        """Tell of an event of the notification group."""
        if pid in self._own:
            return
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return
        if mask & fanotify.CLOSE_WRITE:
            self.on_written(descriptor, status, pid)
        if mask & fanotify.OPEN_EXEC:
            self._tell(EXEC, self._coverage.watchers(status.st_dev, EXEC), descriptor, status, pid)
        if mask & fanotify.OPEN and status.st_size:
            self._on_opened(descriptor, status, pid)

    def on_written(self, descriptor: int, status: os.stat_result, pid: int) -> None:
        """Tell of a file whose writer has closed."""
        if pid in self._own:
            return
        self._told.forget(identity_of(status.st_dev, status.st_ino))
        self._tell(WRITTEN, self._coverage.watchers(status.st_dev, WRITTEN), descriptor, status, pid)

    def forget_all(self) -> None:
        """Tell of every file again."""
        self._told.clear()
        self._group.heed_all()

    def _on_opened(self, descriptor: int, status: os.stat_result, pid: int) -> None:
        identity = identity_of(status.st_dev, status.st_ino)
        known, _ = self._told.of(identity, stamp_of(status))
        wishes = [wish for wish in self._coverage.watchers(status.st_dev, OPEN) if not known & bit_of(wish.judge, OPEN)]
        if not wishes:
            return
        path = self._tell(OPEN, wishes, descriptor, status, pid)
        if not is_settled(status, time.time()) or not has_no_writer(descriptor):
            return
        self._told.remember(identity, stamp_of(status), sum(bit_of(wish.judge, OPEN) for wish in wishes), 0)
        if may_be_ignored(status, path):
            self._group.ignore(descriptor, fanotify.OPEN)
            self._counts["ignored_count"] += 1

    def _tell(self, event: str, wishes: list[Wish], descriptor: int, status: os.stat_result, pid: int) -> bytes:
        if not wishes or self._own.descends(pid):
            return b""
        path = path_of(descriptor)
        if event != EXEC and is_below(path, self._excluded):
            return path
        head: bytes | None = None
        is_read = False
        for wish in wishes:
            if wish.excludes(path):
                continue
            if asks_software_only(wish.terms, event):
                if not is_read:
                    head, is_read = head_of(descriptor, is_memory=self._coverage.is_memory(status.st_dev)), True
                if not is_software(wish.terms.suffixes, status.st_mode, head, path):
                    continue
            link = self._judges[wish.judge]
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
            self._counts["questions_count"] += 1
            outgoing = Outgoing(judging.question_message(question), os.dup(descriptor), is_owned=True, is_lossy=True)
            if not self._judges.send(link, outgoing):
                link.miss()
                self._counts["dropped_count"] += 1
        return path
