"""Judges and files for the tests of the gate."""

import os
import threading
import time
from collections.abc import Callable
from typing import Self

from keibi.agent.gate.judging import EXEC, OPEN, PREVENT, WRITTEN, GateState, Terms, Told
from keibi.agent.gate.private import PrivateGate
from keibi.agent.judge_server import Asked, JudgeServer

BAD = b"this is bad"
SETTLED_SECONDS = 0.15
"""Instead of two seconds, so that tests need not wait so long; tmpfs here tells changes in quick succession apart."""


def wait_until(condition: Callable[[], bool], within_seconds: float = 10.0, what: str = "condition") -> None:
    """Return once the condition holds."""
    until = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {within_seconds} s"
        threading.Event().wait(0.01)


def content_of(path: str) -> str:
    """Return what a file holds."""
    with open(path, encoding="latin-1") as file:
        return file.read()


def settled(gate: PrivateGate, path: str) -> str:
    """Return the path once its file's last change is old enough for a verdict to be remembered."""
    wait_until(lambda: os.stat(gate.outside(path)).st_ctime < time.time() - SETTLED_SECONDS - 0.02, 5, "settled")
    return path


class ContentJudge:
    """A judge that denies files which contain BAD; `hold` makes it answer nothing until `release`."""

    def __init__(self, directory: str, module: str = "anti_malware", **terms: object) -> None:
        self.asked: list[Asked] = []
        self.told: list[Told] = []
        self.states: list[GateState] = []
        self.remember = True
        self.deny_all = False
        self.also: Callable[[Asked], object] = lambda asked: None
        self._go = threading.Event()
        self._go.set()
        self.generation = 0
        self.caught_up: list[tuple[int, float]] = []
        self.server = JudgeServer(
            directory,
            module,
            on_question=self._judge,
            on_told=self.told.append,
            on_state=self._on_state,
            on_caught_up=lambda gate, at: self.caught_up.append((gate, at)),
        )
        self.module = module
        self.wish(**terms)
        self.server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.server.close()

    def wish(self, **terms: object) -> None:
        """Tell other terms, of a new generation."""
        self.generation += 1
        values: dict[str, object] = {"mode": PREVENT, "events": (EXEC, OPEN, WRITTEN), "deadline_milliseconds": 3000, **terms}
        self.server.set_terms(Terms(module=self.module, generation=self.generation, **values))  # type: ignore[arg-type]

    def hold(self) -> None:
        """Leave questions unanswered."""
        self._go.clear()

    def release(self) -> None:
        """Answer again."""
        self._go.set()

    def count(self, path: str, event: str = "") -> int:
        """Return how often it was asked about a path."""
        return sum(1 for asked in self.asked if asked.question.path == os.fsencode(path) and event in ("", asked.question.event))

    def told_count(self, what: str) -> int:
        """Return how much it was told of one kind."""
        return sum(told.count for told in self.told if told.what == what)

    def _on_state(self, states: list[GateState]) -> None:
        self.states = states

    def _judge(self, asked: Asked) -> None:
        self.asked.append(asked)
        self._go.wait(30)
        self.also(asked)
        is_allowed = not self.deny_all and BAD not in os.pread(asked.descriptor, 65536, 0)
        # First: whoever is answered may unmount at once what this descriptor would keep busy.
        asked.close()
        if asked.question.is_held:
            asked.answer(is_allowed=is_allowed, remember=self.remember)
