"""What application control asks of anti-malware: passed on by the core, since workers talk to nobody else.

Nothing waits here and nothing is kept but how the examiner was last. Each side has one question on the way at a time, so what the
core holds for a slow one is bounded; a question to a worker that ends is not answered, and whoever asked learns that by
`ExaminerIs`.
"""

from collections.abc import Callable
from typing import assert_never

from keibi.agent.ports import (
    Examine,
    Examined,
    ExaminerIs,
    ExaminerState,
    FollowThreats,
    FromExaminer,
    ThreatsNoted,
    ToExaminer,
)
from keibi.agent.worker_link import WorkerLink
from keibi.contract.names import ModuleId

ASKER = ModuleId.APPLICATION_CONTROL
EXAMINER = ModuleId.ANTI_MALWARE
_STARTS = ExaminerIs(ExaminerState.AWAY, "anti-malware has not started yet")


class Peers:
    """Passes frames between the two modules."""

    def __init__(self, link_of: Callable[[ModuleId], WorkerLink | None]) -> None:
        self._link_of = link_of
        self._examiner = _STARTS

    def module_is_up(self, module: ModuleId, link: WorkerLink) -> None:
        """Tell a worker that may ask how the examiner is, before it gets its policy."""
        if module is ASKER:
            link.send(self._examiner)

    def module_is_down(self, module: ModuleId, how: str) -> None:
        """Tell whoever waits for the examiner that it will not answer."""
        if module is EXAMINER:
            self._take_state(ExaminerIs(ExaminerState.AWAY, f"the worker of anti-malware ended by {how}"))

    def pass_on(self, sender: ModuleId | None, message: ToExaminer | FromExaminer) -> None:
        """Pass a frame on; one from a worker that has no part in this is left out."""
        match message:
            case Examine() | FollowThreats():
                receiver = EXAMINER if sender is ASKER else None
            case ExaminerIs():
                if sender is EXAMINER:
                    self._take_state(message)
                return
            case Examined() | ThreatsNoted():
                receiver = ASKER if sender is EXAMINER else None
            case _:
                assert_never(message)
        link = self._link_of(receiver) if receiver is not None else None
        if link is not None:
            link.send(message)

    def _take_state(self, state: ExaminerIs) -> None:
        self._examiner = state
        if (link := self._link_of(ASKER)) is not None:
            link.send(state)
