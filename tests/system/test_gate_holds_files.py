"""What the gate lets open and execute, on private mounts."""

import os
from collections.abc import Iterator

import pytest

from keibi.agent.gate.private import PrivateGate
from tests.system.gate_judges import BAD, ContentJudge, content_of

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.timeout(60),
]


@pytest.fixture
def judges(tmp_path) -> str:
    return str(tmp_path / "judges")


@pytest.fixture
def place(tmp_path) -> str:
    (tmp_path / "place").mkdir()
    return str(tmp_path / "place")


@pytest.fixture
def judge(judges) -> Iterator[ContentJudge]:
    with ContentJudge(judges) as judge:
        yield judge


def test_a_bad_file_is_neither_opened_nor_executed_and_a_good_one_is(judge, judges, place):
    with PrivateGate(place, judges) as gate:
        good = gate.write("good.sh", b"#!/bin/sh\necho good\n", mode=0o755)
        bad = gate.write("bad.sh", b"#!/bin/sh\necho " + BAD + b"\n", mode=0o755)

        assert gate.run([good]).stdout == b"good\n"
        assert gate.run([bad]).returncode == 126
        assert gate.run(["cat", bad]).returncode == 1
        assert gate.enter(lambda: content_of(good)).startswith("#!")
        with pytest.raises(PermissionError):
            gate.enter(lambda: content_of(bad))

        assert {asked.question.event for asked in judge.asked} == {"exec", "open"}
        assert all(asked.question.is_held and asked.question.is_proof for asked in judge.asked)
