"""Has anti-malware scan what is to be trusted, or is trusted without having been scanned; what holds a threat is distrusted."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from keibi.agent.modules.application_control.examined import Changed, Examinations
from keibi.agent.modules.application_control.examiner_link import ExaminerLink
from keibi.agent.modules.application_control.inventory import Inventory
from keibi.agent.modules.application_control.telling import Teller

BATCH_FILES = 64
BATCH_BYTES = 64 * 1024 * 1024
"""Of one question: it cannot be taken back, so it must not take long."""


@dataclass(frozen=True)
class ExaminationResult:
    """What became of one examination."""

    examined_count: int = 0  # contents
    threat_count: int = 0
    is_whole: bool = False  # everything that was to be scanned was


class Examination:
    """One run through what is to be scanned. Used once, by the builder's thread."""

    def __init__(
        self,
        inventory: Inventory,
        examinations: Examinations,
        link: ExaminerLink,
        teller: Teller,
        *,
        on_changed: Callable[[], None],
        is_cancelled: Callable[[], bool],
        on_progress: Callable[[int, int], None],
    ) -> None:
        """`on_changed` is called when something lost or got trust; `on_progress` with how many contents are done, of how many."""
        self._inventory = inventory
        self._examinations = examinations
        self._link = link
        self._teller = teller
        self._on_changed = on_changed
        self._is_cancelled = is_cancelled
        self._on_progress = on_progress

    def run(self, *, with_threats: bool, within_seconds: float) -> ExaminationResult:
        """Scan until everything is done, the time is over, or the examiner cannot; what was found until then is kept.

        `with_threats`: also contents in which a threat was found, to see whether it still is.
        """
        deadline = time.monotonic() + within_seconds
        total = self._examinations.pending_count()
        after, count, threat_count = "", 0, 0
        are_threats = False
        while not self._is_cancelled():
            self._on_progress(count, total)
            files = self._examinations.pending(after, BATCH_FILES, BATCH_BYTES, are_threats=are_threats)
            if not files and with_threats and not are_threats:
                after, are_threats = "", True
                continue
            if not files:
                return ExaminationResult(count, threat_count, is_whole=True)
            if time.monotonic() > deadline:
                break
            answer = self._link.ask(files, self._is_cancelled)
            if answer is None:
                break
            wanted = {file.sha256 for file in files}
            results = [one for one in answer.files if one.sha256 in wanted]
            with self._inventory.transaction():
                changed = self._examinations.note(results)
                tell_changed(self._teller, changed, source="inventory")
            if changed.distrusted or changed.restored:
                self._on_changed()
            count += sum(not one.is_gone for one in results)
            threat_count += sum(bool(one.threat) for one in results)
            if answer.trouble:
                break
            after = files[-1].sha256
        return ExaminationResult(count, threat_count)


def tell_changed(teller: Teller, changed: Changed, *, source: str) -> None:
    """Tell of files that lost trust or got it back."""
    for software in changed.distrusted:
        teller.distrusted(software, source=source)
    for software in changed.restored:
        teller.trusted_again(software, source=source)
