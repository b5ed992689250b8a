"""What gate, judges, warden and core write to each other, and the mount tables they read."""

import json
import os
import socket
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.gate import judging
from keibi.agent.gate.core_channel import MAX_WAITING, CoreChannel, event_message, hello_message
from keibi.agent.gate.judging import FileKey, GateState, Question, Terms, Told
from keibi.agent.gate.mount_table import parse_mounts, reach, read_table
from keibi.agent.ports import Emit, FromWorker, Hello, Stop
from keibi.agent.worker_link import _json_frame

numbers = st.integers(0, 2**63 - 1)
keys = st.builds(FileKey, numbers, numbers, numbers, numbers, numbers)
paths = st.binary(max_size=300).filter(lambda path: b"\0" not in path)


def through_json(message):
    return json.loads(json.dumps(message))


@given(paths, keys, st.sampled_from(["exec", "open", "written"]))
def test_a_question_arrives_as_it_was_sent_whatever_bytes_the_path_has(path, key, event):
    question = Question(id=7, event=event, is_held=True, is_proof=False, pid=8, path=path, key=key, at=1.5)
    assert judging.question_of(through_json(judging.question_message(question))) == question


@given(paths, st.none() | keys)
def test_what_is_told_arrives_as_it_was_sent(path, key):
    told = Told("repeated", 3, 4, False, 5, path, key)
    assert judging.told_of(through_json(judging.told_message(told))) == told


def test_terms_and_state_arrive_as_they_were_sent():
    terms = Terms(module="m", generation=3, mode="prevent", events=("exec",), suffixes=(".py",), places=("/",), excluded=("/x",))
    assert judging.terms_of(through_json(judging.terms_message(terms))) == terms
    state = GateState(pid=3, is_enforcing=True, mounts=(("/", "ext4", "permission", ""),), metrics=(("held_count", 2.0),))
    assert judging.state_of(through_json(judging.state_message(state))) == state


@pytest.mark.parametrize(
    "message",
    [
        {"type": "terms"},
        {"type": "terms", "module": "m", "mode": "sometimes"},
        {"type": "terms", "module": "m", "on_timeout": "ask"},
        {"type": "terms", "module": "m", "surprise": 1},
        {"type": "terms", "module": "m", "deadline_milliseconds": "3000"},
        {"type": "terms", "module": "m", "closed_at_most_seconds": -1},
        {"type": "terms", "module": "m", "excluded": [7]},
        {"type": "terms", "module": "m", "events": 7},
    ],
)
def test_terms_that_are_none_are_refused(message):
    with pytest.raises(ValueError, match="terms"):
        judging.terms_of(message)


@pytest.mark.parametrize("packet", [b"[]", b"{}", b'{"type": 3}', b"\xff", b"{", b'"x"'])
def test_a_packet_that_is_no_message_is_refused(packet):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(packet)
        with pytest.raises(ValueError):  # noqa: PT011 -- which of them does not matter
            judging.receive(ours)


def test_descriptors_of_a_refused_packet_are_closed():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull, "rb") as null:
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(theirs, [b'{"type":"told"}'], [null.fileno(), null.fileno()])
        with pytest.raises(ValueError, match="2 descriptors"):
            judging.receive(ours)
        assert len(os.listdir("/proc/self/fd")) == before


@given(st.binary(max_size=400))
def test_any_bytes_as_a_mount_table_give_mounts_or_none(data):
    for mount in parse_mounts(data):
        assert mount.device


def test_a_mount_table_is_read_with_its_escapes_and_without_what_the_kernel_makes_up():
    text = (
        b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        b"23 22 0:5 / /proc rw - proc proc rw\n"
        b"24 22 0:40 / /mnt/with\\040space rw - tmpfs none rw\n"
        b"nonsense\n"
        b"25 22 0:41 / /cut\n"
    )
    assert [(mount.id, mount.device, mount.point, mount.type) for mount in parse_mounts(text)] == [
        (22, "254:0", b"/", "ext4"),
        (24, "0:40", b"/mnt/with space", "tmpfs"),
    ]


def test_a_mount_is_reached_by_its_own_number_only():
    own = [mount for mount in parse_mounts(read_table("/proc/self/mountinfo")) if mount.point == b"/"][-1:]
    descriptor = reach(own)
    assert descriptor is not None
    os.close(descriptor)
    covered = [type(own[0])(own[0].id + 100_000, own[0].device, b"/", own[0].type, "")]
    assert reach(covered) is None


def test_the_cores_side_reads_what_the_gate_writes():
    decoder = msgspec.json.Decoder(FromWorker)
    hello = decoder.decode(json.dumps(hello_message([("fanotify_permission_events", False, "no")])))
    assert isinstance(hello, Hello)
    assert (hello.worker, hello.capabilities[0].reason) == ("gate", "no")
    emit = decoder.decode(json.dumps(event_message("gate.closed", "high", "It was closed.", reason="why", details={"a": 1})))
    assert isinstance(emit, Emit)
    assert (emit.sequence, emit.events[0].kind, len(emit.events[0].event_id)) == (0, "gate.closed", 32)


def test_the_gate_reads_frames_however_they_are_cut():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = CoreChannel(ours)
        assert channel.receive() == []
        frames = _json_frame(Stop()) * 2
        received = []
        for index in range(len(frames)):
            theirs.send(frames[index : index + 1])
            received += channel.receive() or []
        assert received == [{"type": "Stop"}] * 2
        theirs.send(struct.pack("!I", 2**31))
        assert channel.receive() is None


def test_a_core_that_does_not_read_is_never_waited_for_and_memory_is_bounded():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = CoreChannel(ours)
        for number in range(20_000):
            channel.send({"type": "Emit", "number": number, "padding": "x" * 200})
        assert channel.is_blocked
        assert channel.dropped_count > 0
        assert len(channel._waiting) <= MAX_WAITING
