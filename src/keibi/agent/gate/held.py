"""Questions that wait for verdicts, and when they stop waiting. Pure: the decider acts on what it returns."""

import heapq
from dataclasses import dataclass, field

from keibi.agent.gate.judge_link import Outgoing
from keibi.agent.gate.judging import FileKey
from keibi.agent.gate.verdicts import Identity, Stamp


@dataclass(eq=False, slots=True)
class Held:
    """One file about which judges are being asked, with everybody who waits for the answer.

    `events` are (descriptor, pid) of the kernel's questions: whoever answers them closes the descriptors.
    """

    event: str
    identity: Identity
    stamp: Stamp
    key: FileKey
    path: bytes
    has_no_writer: bool  # when it was asked; else a verdict is not remembered
    may_ignore: bool  # whether a kernel mark may stand for the verdict
    asked_at: float
    epoch: int  # of the gate's memory when it was asked: what was said before a change is not remembered after it
    events: list[tuple[int, int]] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)  # question ids
    allowed: int = 0  # bits to remember once all have answered
    denied: int = 0
    is_denied: bool = False
    codes: set[str] = field(default_factory=set)  # what judges said of it as code
    guard_state: int | None = None  # what the kernel guard held of it when it was asked; None: the guard is told nothing
    is_entered: bool = False  # whether it was entered there as approved because of this question


@dataclass(eq=False, slots=True)
class Asked:
    """What one judge was asked about a held file."""

    id: int
    held: Held
    judge: int
    bit: int
    due_at: float
    outgoing: Outgoing
    is_overdue: bool = False


class Questions:
    """All questions that wait for a verdict, and the late ones whose verdict may still be remembered."""

    def __init__(self, most_late: int = 512) -> None:
        self._most_late = most_late
        self._last_id = 0
        self._open: dict[int, Asked] = {}
        self._late: dict[int, Asked] = {}
        self._due: list[tuple[float, int]] = []
        self._held: dict[tuple[Identity, str], Held] = {}

    @property
    def held_count(self) -> int:
        """How many files are being asked about."""
        return len(self._held)

    def next_id(self) -> int:
        """Return a fresh question id."""
        self._last_id += 1
        return self._last_id

    def about(self, identity: Identity, event: str, stamp: Stamp) -> Held | None:
        """Return the held file that another process may join."""
        held = self._held.get((identity, event))
        return held if held is not None and held.stamp == stamp else None

    def hold(self, held: Held) -> None:
        """Keep a file for others to join."""
        self._held[held.identity, held.event] = held

    def add(self, asked: Asked) -> None:
        """Keep a question until it is answered or due."""
        self._open[asked.id] = asked
        asked.held.waiting.add(asked.id)
        heapq.heappush(self._due, (asked.due_at, asked.id))

    def answered(self, question_id: int) -> Asked | None:
        """Take out the question that a verdict is for; None when it is unknown. Late ones have `is_overdue`."""
        asked = self._open.pop(question_id, None)
        if asked is None:
            return self._late.pop(question_id, None)
        self._settle(asked)
        return asked

    def overdue(self, now: float) -> list[Asked]:
        """Take out what is due; a verdict that comes later is still recognised."""
        due = []
        while self._due and self._due[0][0] <= now:
            asked = self._open.pop(heapq.heappop(self._due)[1], None)
            if asked is not None:
                asked.is_overdue = True
                self._settle(asked)
                self._late[asked.id] = asked
                if len(self._late) > self._most_late:
                    del self._late[next(iter(self._late))]
                due.append(asked)
        return due

    def of_judge(self, judge: int) -> list[Asked]:
        """Take out everything a judge was asked: it is gone."""
        for asked in [asked for asked in self._late.values() if asked.judge == judge]:
            del self._late[asked.id]
        lost = [asked for asked in self._open.values() if asked.judge == judge]
        for asked in lost:
            del self._open[asked.id]
            self._settle(asked)
        return lost

    def open_of(self, held: Held) -> list[Asked]:
        """Return the questions about a file that are not answered."""
        return [self._open[question_id] for question_id in held.waiting if question_id in self._open]

    def next_due(self) -> float | None:
        """Return when the next question is due."""
        while self._due and self._due[0][1] not in self._open:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def _settle(self, asked: Asked) -> None:
        held = asked.held
        held.waiting.discard(asked.id)
        if not held.waiting and self._held.get((held.identity, held.event)) is held:
            del self._held[held.identity, held.event]
