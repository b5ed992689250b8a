"""Held processes go first, but never before what was written to the same file."""

import os
import socket
import threading

from keibi.agent.gate.judging import EXEC, WRITTEN, FileKey, Question
from keibi.agent.judge_server import Asked, _Gate
from keibi.agent.modules.application_control.lanes import MAX_WAITING, Lanes


def asked(event: str, inode: int) -> Asked:
    question = Question(
        id=1, event=event, is_held=event == EXEC, is_proof=False, pid=1, path=b"/x", key=FileKey(1, inode, 1, 1, 1), at=0.0
    )
    ours, theirs = socket.socketpair()
    theirs.close()
    gate = _Gate(ours)
    ours.close()
    return Asked(question, os.open("/dev/null", os.O_RDONLY), gate)


class Considered:
    """Notes in which order questions are considered; the first one waits until all are there."""

    def __init__(self) -> None:
        self.order: list[tuple[str, int]] = []
        self.go = threading.Event()
        self.begun = threading.Event()

    def __call__(self, one: Asked) -> None:
        self.begun.set()
        assert self.go.wait(10)
        self.order.append((one.question.event, one.question.key.inode))
        one.close()


def made(considered: Considered, lost: list[int], *, fine: int = -1) -> Lanes:
    lanes = Lanes(
        considered,
        lambda: lost.append(1),
        remember=lambda _: None,
        is_fine=lambda question: question.key.inode == fine,
        count=1,
    )
    lanes.start()
    return lanes


def test_a_held_process_overtakes_all_but_what_was_written_to_its_file():
    considered, lost = Considered(), []
    lanes = made(considered, lost)
    lanes.put(asked(WRITTEN, 1))
    assert considered.begun.wait(10)
    for event, inode in ((WRITTEN, 2), (WRITTEN, 3), (WRITTEN, 4), (WRITTEN, 3), (EXEC, 3), (EXEC, 9)):
        lanes.put(asked(event, inode))
    considered.go.set()
    lanes.close()
    assert considered.order == [(WRITTEN, 1), (WRITTEN, 3), (WRITTEN, 3), (EXEC, 3), (EXEC, 9), (WRITTEN, 2), (WRITTEN, 4)]
    assert lost == []


def test_too_many_that_hold_nobody_are_given_up_and_held_ones_never():
    considered, lost = Considered(), []
    lanes = made(considered, lost)
    lanes.put(asked(WRITTEN, 1))
    assert considered.begun.wait(10)
    one = asked(WRITTEN, 2)
    for _ in range(MAX_WAITING):
        lanes.put(Asked(one.question, os.dup(one.descriptor), one._gate))
    one.close()
    lanes.put(asked(WRITTEN, 3))
    lanes.put(asked(EXEC, 4))
    considered.go.set()
    lanes.close()
    assert len(lost) == 1
    assert considered.order[1] == (EXEC, 4)
    assert len(considered.order) == MAX_WAITING + 2


def test_what_was_found_fine_is_not_looked_at_again():
    considered, lost = Considered(), []
    considered.go.set()
    lanes = made(considered, lost, fine=7)
    lanes.put(asked(EXEC, 7))
    lanes.put(asked(EXEC, 8))
    lanes.close()
    assert considered.order == [(EXEC, 8)]
