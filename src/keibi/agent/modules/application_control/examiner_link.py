"""The way to anti-malware, which scans what the inventory is about to trust. Everything goes through the core.

Theory of operation. The director hands in what comes from the core; the builder's thread asks and waits. Nothing waits without an
end: for an examiner that starts, for one answer, and for all answers together there is a limit, and whoever asks may give up.
"""

import threading
import time
from collections.abc import Callable, Sequence

from keibi.agent.ports import Examine, Examined, ExaminerIs, ExaminerState, FileToExamine, FromWorker

AWAY_SECONDS = 30.0
"""How long an examiner that is about to start is waited for."""
ANSWER_SECONDS = 300.0
TRIES = 3
_TICK_SECONDS = 0.5


class ExaminerLink:
    """What is known of the examiner, and questions to it. One thread asks."""

    def __init__(self, send: Callable[[FromWorker], None]) -> None:
        self._send = send
        self._changed = threading.Condition()
        # Until the core says how it is, nobody can be asked.
        self._state = ExaminerIs(ExaminerState.OFF, "anti-malware is not known here")
        self._state_count = 0
        self._number = time.time_ns()
        self._answer: Examined | None = None
        self._trouble = ""

    @property
    def is_ready(self) -> bool:
        """Whether files can be examined now."""
        return self._state.state is ExaminerState.READY

    @property
    def reason(self) -> str:
        """Why files cannot be examined, or were not the last time; "" when nothing stands in the way."""
        return self._state.reason if not self.is_ready else self._trouble

    def take(self, message: ExaminerIs | Examined) -> None:
        """Take what came from the core."""
        with self._changed:
            if isinstance(message, Examined):
                if message.number == self._number:
                    self._answer = message
            else:
                self._state = message
                self._state_count += 1
            self._changed.notify_all()

    def ask(self, files: Sequence[FileToExamine], is_cancelled: Callable[[], bool]) -> Examined | None:
        """Have files examined; None when that cannot be (`reason` says why), or nobody waits for it any more."""
        self._trouble = ""
        for _ in range(TRIES):
            if not self._is_there(is_cancelled):
                return None
            with self._changed:
                self._number += 1
                self._answer, state_count = None, self._state_count
                number = self._number
            self._send(Examine(number, list(files)))
            with self._changed:
                deadline = time.monotonic() + ANSWER_SECONDS
                while self._answer is None and self._state_count == state_count:
                    if is_cancelled():
                        return None
                    if time.monotonic() > deadline:
                        self._trouble = f"anti-malware did not answer within {ANSWER_SECONDS:.0f} s"
                        return None
                    self._changed.wait(_TICK_SECONDS)
                if self._answer is not None:
                    self._trouble = self._answer.trouble
                    return self._answer
            # It was started anew, or has another policy: what was asked of it before is not answered.
        self._trouble = "anti-malware was started anew again and again"
        return None

    def _is_there(self, is_cancelled: Callable[[], bool]) -> bool:
        """Wait for an examiner that starts; False where there is none."""
        with self._changed:
            deadline = time.monotonic() + AWAY_SECONDS
            while self._state.state is ExaminerState.AWAY and time.monotonic() < deadline and not is_cancelled():
                self._changed.wait(_TICK_SECONDS)
            return self._state.state is ExaminerState.READY and not is_cancelled()
