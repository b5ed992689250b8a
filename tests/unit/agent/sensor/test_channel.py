"""Frames to a core that reads late, or not at all."""

import socket

import msgspec
import pytest

from keibi.agent.ports import Happening, Observation, Observed, Stop, ToWorker, WatchRoots
from keibi.agent.sensor.channel import Channel
from keibi.contract.codec import frame
from keibi.errors import RefusedError


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


def batch(number: int) -> Observed:
    return Observed([Observation(Happening.CREATED, b"/%d/%d" % (number, one), float(number)) for one in range(1000)])


def read_all(channel: Channel, theirs: socket.socket) -> list[Observed]:
    data = bytearray()
    while True:
        try:
            data += theirs.recv(1 << 20)
        except BlockingIOError:
            if channel.is_ready:
                break
            channel.flush()
    frames = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        frames.append(msgspec.msgpack.decode(data[4:end], type=Observed))
        del data[:end]
    return frames


def test_frames_wait_in_order_for_a_core_that_reads_late(ends):
    ours, theirs = ends
    channel = Channel(ours)
    for number in range(100):
        channel.send(batch(number), since=float(number))
    assert not channel.is_ready
    assert channel.give_up() is None
    assert read_all(channel, theirs) == [batch(number) for number in range(100)]


def test_too_long_a_backlog_is_given_up_with_the_time_of_its_oldest(ends):
    ours, theirs = ends
    channel = Channel(ours, max_backlog_bytes=10_000)
    sent = 0
    while (since := channel.give_up()) is None:
        sent += 1
        channel.send(batch(sent), since=float(sent))
    assert 1 < since < sent
    kept = read_all(channel, theirs)
    assert kept == [batch(number) for number in range(1, int(since))]


def test_frames_are_put_together_from_any_pieces(ends):
    ours, theirs = ends
    channel = Channel(ours)
    data = frame(WatchRoots([b"/etc"])) + frame(Stop())
    got: list[ToWorker] = []
    for place in range(len(data)):
        theirs.send(data[place : place + 1])
        got += channel.receive()
    assert got == [WatchRoots([b"/etc"]), Stop()]


def test_the_end_of_the_core_reads_as_stop(ends):
    ours, theirs = ends
    channel = Channel(ours)
    assert channel.receive() == []
    theirs.close()
    assert channel.receive() == [Stop()]
    channel.send(batch(1))
    assert channel.is_ready


@pytest.mark.parametrize("data", [b"\0\0\0\3abc", b"\xff\xff\xff\xff", b"\0\0\0\1\xc1"])
def test_what_is_no_frame_is_refused(ends, data):
    ours, theirs = ends
    theirs.send(data)
    with pytest.raises(RefusedError):
        Channel(ours).receive()
