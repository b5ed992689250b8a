"""What the director does about anti-malware: heeds its threats, and sees that what was trusted unscanned is scanned later."""

import time
from collections.abc import Callable

from keibi.agent.modules.application_control.building import Outcome
from keibi.agent.modules.application_control.examination import tell_changed
from keibi.agent.modules.application_control.examined import Counts, Examinations
from keibi.agent.modules.application_control.examiner_link import ExaminerLink
from keibi.agent.modules.application_control.inventory import Inventory
from keibi.agent.modules.application_control.telling import Teller
from keibi.agent.ports import ExaminerIs, ExaminerState, FollowThreats, FromWorker, ThreatsNoted

AGAIN_SECONDS = 600.0
"""After this time, what could not be scanned is tried again."""
_FOLLOWED_SETTING = "threats_followed"


class Vetting:
    """Used by the director's thread alone."""

    def __init__(
        self,
        inventory: Inventory,
        teller: Teller,
        link: ExaminerLink,
        send: Callable[[FromWorker], None],
        *,
        forget_verdicts: Callable[[], None],
    ) -> None:
        self.examinations = Examinations(inventory)
        self._inventory = inventory
        self._teller = teller
        self._link = link
        self._send = send
        self._forget_verdicts = forget_verdicts
        self._next_at = 0.0

    def take_examiner(self, examiner: ExaminerIs) -> None:
        """Take note of how anti-malware is."""
        self._link.take(examiner)
        self._next_at = 0.0
        if examiner.state is not ExaminerState.AWAY:
            # Also from one that is off: what it found before is a threat still.
            self._send(FollowThreats(int(self._inventory.setting(_FOLLOWED_SETTING) or b"0")))

    def take_threats(self, noted: ThreatsNoted, *, is_told: bool) -> None:
        """Distrust at once what anti-malware found, and trust again what somebody allowed."""
        with self._inventory.transaction():
            changed = self.examinations.take(noted.notes)
            self._inventory.put_setting(_FOLLOWED_SETTING, str(noted.through).encode())
            if is_told:
                tell_changed(self._teller, changed, source="anti-malware")
        self._forget_verdicts()
        self._send(FollowThreats(noted.through))

    def wants_examination(self) -> bool:
        """Whether there is something to be scanned, and somebody who can; or what a killed worker held back is to be let go."""
        if time.monotonic() < self._next_at:
            return False
        self._next_at = time.monotonic() + AGAIN_SECONDS
        counts = self.examinations.counts(is_exact=True)
        return bool(counts.held_back or (counts.unexamined and self._link.is_ready))

    def pass_ended(self, outcome: Outcome) -> None:
        """Go on at once with what there was no time for."""
        if outcome.unexamined and not self._link.reason:
            self._next_at = 0.0

    def counts(self) -> Counts:
        """Return how many files were scanned, and how."""
        return self.examinations.counts()

    @property
    def reason(self) -> str:
        """Why files are not scanned; "" when nothing stands in the way."""
        return self._link.reason
