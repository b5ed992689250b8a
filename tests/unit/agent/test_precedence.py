"""Which thread comes first: one that works for a held process, and only that thread."""

import os
import threading

import pytest

from keibi.agent import precedence
from keibi.agent.precedence import HELD_NICE, UNHURRIED_NICE, Precedence


def own_nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may come first")
def test_a_thread_comes_first_only_while_a_process_is_held_for_it():
    seen: list[int] = []

    def work() -> None:
        mine = Precedence()
        for is_held in (True, True, False, True):
            mine.be_for(is_held=is_held)
            seen.append(own_nice())

    before = own_nice()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [HELD_NICE, HELD_NICE, UNHURRIED_NICE, HELD_NICE]
    assert own_nice() == before, "other threads are as they were"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may come first")
def test_what_is_started_first_comes_first_and_its_starter_does_not():
    seen: list[int] = []
    before = own_nice()
    with precedence.starting_first():
        thread = threading.Thread(target=lambda: seen.append(own_nice()))
        thread.start()
    thread.join()
    assert (seen, own_nice()) == ([HELD_NICE], before)
