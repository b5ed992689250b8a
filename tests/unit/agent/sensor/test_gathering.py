"""Observations brought together, held to a rate, bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.ports import Happening
from keibi.agent.sensor.gathering import BATCH_SECONDS, HOLD_SECONDS, MAX_BATCH, Gathering
from keibi.contract.events import Actor

ONE, TWO = Actor(pid=1, process="/bin/one"), Actor(pid=2, process="/bin/two")
CREATED, MODIFIED, ATTRIBUTES, DELETED = Happening.CREATED, Happening.MODIFIED, Happening.ATTRIBUTES, Happening.DELETED


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gathering(clock):
    return Gathering(clock=clock)


def told(gathering) -> list[tuple[Happening, bytes]]:
    return [(one.happening, one.path) for one in gathering.take()]


@pytest.mark.parametrize(
    ("happenings", "expected"),
    [
        ([CREATED, MODIFIED, ATTRIBUTES, MODIFIED], [CREATED]),
        ([MODIFIED, MODIFIED, ATTRIBUTES], [MODIFIED]),
        ([ATTRIBUTES, MODIFIED], [MODIFIED]),
        ([ATTRIBUTES, ATTRIBUTES], [ATTRIBUTES]),
        ([CREATED, DELETED], [CREATED, DELETED]),
        ([DELETED, CREATED, MODIFIED], [DELETED, CREATED]),
        ([MODIFIED, DELETED, CREATED, DELETED], [MODIFIED, DELETED, CREATED, DELETED]),
    ],
)
def test_what_one_process_does_to_one_path_is_brought_together(gathering, happenings, expected):
    for happening in happenings:
        gathering.add(happening, b"/a", 1.0, actor=ONE)
    assert told(gathering) == [(happening, b"/a") for happening in expected]


def test_what_two_processes_do_stays_apart(gathering):
    gathering.add(MODIFIED, b"/a", 1.0, actor=ONE)
    gathering.add(MODIFIED, b"/a", 2.0, actor=TWO)
    assert [one.actor for one in gathering.take()] == [ONE, TWO]


def test_what_follows_a_rename_is_told_after_it(gathering):
    gathering.add(MODIFIED, b"/a", 1.0, actor=ONE)
    gathering.rename(b"/a", b"/b", 2.0, is_directory=False, actor=ONE)
    gathering.add(MODIFIED, b"/a", 3.0, actor=ONE)
    gathering.add(MODIFIED, b"/b", 3.0, actor=ONE)
    expected = [(MODIFIED, b"/a"), (Happening.RENAMED, b"/b"), (MODIFIED, b"/a"), (MODIFIED, b"/b")]
    assert told(gathering) == expected


def test_a_write_to_an_open_file_waits_for_its_second_or_for_the_close(gathering, clock):
    gathering.hold(b"/log", 1.0, actor=ONE)
    assert gathering.due_at() == clock.now + HOLD_SECONDS
    assert told(gathering) == []
    clock.now += HOLD_SECONDS / 2
    gathering.hold(b"/log", 1.5, actor=ONE)
    clock.now += HOLD_SECONDS / 2
    assert told(gathering) == [(MODIFIED, b"/log")]
    gathering.hold(b"/log", 2.5, actor=ONE)
    gathering.add(MODIFIED, b"/log", 2.6, actor=ONE)
    assert gathering.due_at() == clock.now + BATCH_SECONDS
    assert told(gathering) == [(MODIFIED, b"/log")]
    clock.now += 10
    assert told(gathering) == []


@pytest.mark.parametrize(
    ("then", "expected"),
    [(ATTRIBUTES, [MODIFIED]), (CREATED, [MODIFIED, CREATED]), (DELETED, [DELETED]), (MODIFIED, [MODIFIED])],
)
def test_a_held_write_is_not_lost_when_something_else_follows(gathering, then, expected):
    gathering.hold(b"/a", 1.0, actor=ONE)
    gathering.add(then, b"/a", 2.0, actor=ONE)
    assert [one.happening for one in gathering.take()] == expected


def test_a_renamed_directory_does_not_take_held_writes_with_it(gathering):
    gathering.hold(b"/d/log", 1.0, actor=ONE)
    gathering.rename(b"/d", b"/e", 2.0, is_directory=True, actor=ONE)
    assert told(gathering) == [(MODIFIED, b"/d/log"), (Happening.RENAMED, b"/e")]


def test_too_many_are_given_up_and_that_is_told(clock):
    gathering = Gathering(max_waiting=10, clock=clock)
    for number in range(11):
        gathering.add(CREATED, b"/%d" % number, 50.0 + number, actor=ONE)
    assert gathering.waiting_count() == 0
    overflow = gathering.take_overflow()
    assert (overflow.since, overflow.until) == (50.0, 60.0)
    assert gathering.take_overflow() is None
    gathering.add(CREATED, b"/after", 70.0, actor=ONE)
    assert told(gathering) == [(CREATED, b"/after")]


def test_long_names_count_for_more(clock):
    gathering = Gathering(max_waiting_bytes=10_000, clock=clock)
    for number in range(5):
        gathering.hold(b"/%d" % number + b"x" * 4000, 1.0, actor=ONE)
    assert gathering.take_overflow() is not None


def test_two_overflows_are_told_as_one(gathering):
    gathering.overflowed(5.0, 6.0, "first")
    gathering.overflowed(3.0, 9.0, "second")
    gathering.overflowed(4.0, 9.0, "second")
    overflow = gathering.take_overflow()
    assert (overflow.since, overflow.until, overflow.reason) == (3.0, 9.0, "first; second")


def test_batches_are_bounded(gathering):
    for number in range(MAX_BATCH + 1):
        gathering.add(CREATED, b"/%d" % number, 1.0, actor=ONE)
    assert gathering.is_full()
    assert len(gathering.take()) == MAX_BATCH
    assert len(gathering.take()) == 1


PATHS = st.sampled_from([b"/a", b"/b", b"/c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([CREATED, MODIFIED, ATTRIBUTES, DELETED]), PATHS, st.sampled_from([ONE, TWO])),
        st.tuples(st.just("hold"), PATHS, st.sampled_from([ONE, TWO])),
        st.tuples(st.just("rename"), PATHS, PATHS, st.booleans()),
        st.tuples(st.just("wait"), st.floats(0, 2)),
        st.tuples(st.just("take")),
    ),
    max_size=40,
)


@given(STEPS)
def test_in_the_end_every_path_that_changed_has_been_told_after_its_last_change(steps):
    clock = Clock()
    gathering = Gathering(clock=clock)
    changed: dict[bytes, int] = {}
    told_after: dict[bytes, int] = {}

    def take() -> None:
        for one in gathering.take():
            told_after[one.path] = now
            if one.old_path:
                told_after[one.old_path] = now

    now = 0
    for now, (what, *arguments) in enumerate(steps, 1):
        match what:
            case "add":
                happening, path, actor = arguments
                gathering.add(happening, path, float(now), actor=actor)
                changed[path] = now
            case "hold":
                path, actor = arguments
                gathering.hold(path, float(now), actor=actor)
                changed[path] = now
            case "rename":
                old_path, path, is_directory = arguments
                gathering.rename(old_path, path, float(now), is_directory=is_directory, actor=ONE)
                changed[old_path] = changed[path] = now
            case "wait":
                clock.now += arguments[0]
            case "take":
                take()
    clock.now += 10
    while gathering.due_at() is not None:
        take()
    assert gathering.waiting_count() == 0
    assert gathering._bytes == 0
    assert {path for path, at in changed.items() if told_after.get(path, -1) < at} == set()
