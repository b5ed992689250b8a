"""A verdict about one process is not given to another that opens the same file at the same time."""

import os
import pathlib
import shutil
import subprocess
import threading
import time

import pytest

from keibi.agent.gate.judging import OPEN, PREVENT, SOFTWARE, Terms
from keibi.agent.gate.private import PrivateGate
from keibi.agent.judge_server import Asked, JudgeServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root")


def test_a_reader_that_may_open_a_file_lets_nobody_else_in(tmp_path: pathlib.Path) -> None:
    asked: list[Asked] = []
    lock = threading.Lock()

    def take(one: Asked) -> None:
        is_about_file = one.question.path.endswith(b"/library.so") and one.question.event == OPEN
        if not is_about_file:
            one.answer(is_allowed=True, remember=False)
            one.close()
            return
        with lock:
            asked.append(one)

    server = JudgeServer(
        str(tmp_path / "judges"), "application_control", on_question=take, on_told=lambda _: None, on_state=lambda _: None
    )
    server.start()
    try:
        terms = Terms(
            module="application_control",
            mode=PREVENT,
            events=(OPEN,),
            files=SOFTWARE,
            deadline_milliseconds=20_000,
            by_asker=True,
        )
        server.set_terms(terms)
        (tmp_path / "mount").mkdir()
        with PrivateGate(str(tmp_path / "mount"), str(tmp_path / "judges")) as gate:
            path = gate.write("library.so", pathlib.Path(os.path.realpath("/bin/true")).read_bytes())
            _answer_all(asked, lock, True)
            inside = ["nsenter", f"--mount=/proc/{gate.pid}/ns/mnt", "--", shutil.which("cat") or "/bin/cat", path]
            both = [subprocess.Popen(inside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
            deadline = time.monotonic() + 10
            while len(asked) < 2:
                assert time.monotonic() < deadline, f"{len(asked)} questions for two processes"
                time.sleep(0.01)
            allowed = asked[0].question.pid
            for one in asked:
                one.answer(is_allowed=one.question.pid == allowed, remember=False)
                one.close()
            codes = {process.pid: process.wait(10) for process in both}
            assert codes.pop(allowed) == 0
            assert list(codes.values()) != [0]
    finally:
        server.close()


def _answer_all(asked: list[Asked], lock: threading.Lock, is_allowed: bool) -> None:
    with lock:
        for one in asked:
            one.answer(is_allowed=is_allowed, remember=False)
            one.close()
        asked.clear()
