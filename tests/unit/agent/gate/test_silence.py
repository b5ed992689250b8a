"""For how long a judge gave no verdict: away or asked in vain counts, idle does not."""

import socket
import time

import pytest

from keibi.agent.gate.judge_link import JudgeLink
from keibi.agent.gate.judging import DENY, PREVENT, Terms


@pytest.fixture
def link(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as judge:
        judge.bind(str(tmp_path / "m.sock"))
        judge.listen(8)
        link = JudgeLink(0, "m", str(tmp_path / "m.sock"))
        link.terms = Terms(module="m", mode=PREVENT, on_timeout=DENY, closed_at_most_seconds=60)
        assert link.connect()
        yield link
        link.disconnect()


def test_a_judge_that_is_away_is_given_up_after_the_time(link):
    link.disconnect()
    now = time.monotonic()
    assert not link.is_given_up(now + 59)
    assert link.is_given_up(now + 61)


def test_one_late_verdict_after_hours_of_quiet_is_not_hours_of_silence(link):
    link.disconnect()
    assert link.connect()
    hours_later = time.monotonic() + 7200
    assert not link.is_given_up(hours_later)
    link.is_without_verdict(hours_later)
    assert not link.is_given_up(hours_later + 7200), "nobody asked it since"
    link.is_without_verdict(hours_later + 59)
    assert not link.is_given_up(hours_later + 59)
    link.is_without_verdict(hours_later + 61)
    assert link.is_given_up(hours_later + 61)


def test_a_judge_that_comes_and_goes_and_never_answers_is_given_up_as_well(link):
    link.is_without_verdict(time.monotonic() - 50)
    link.disconnect()
    assert link.connect()
    now = time.monotonic()
    link.is_without_verdict(now + 5)
    link.is_without_verdict(now + 10)
    assert not link.is_given_up(now + 10)
    link.is_without_verdict(now + 20)
    assert link.is_given_up(now + 20)


def test_a_verdict_ends_the_silence(link):
    link.is_without_verdict(time.monotonic() - 100)
    link.is_without_verdict(time.monotonic())
    assert link.is_given_up(time.monotonic())
    link.gives_verdicts()
    link.is_without_verdict(time.monotonic())
    assert not link.is_given_up(time.monotonic() + 59)
