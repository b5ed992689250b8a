"""The spool: nothing lost, nothing twice, bounded, and honest about what it drops."""

import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keibi.agent.spool import Spool
from keibi.contract.events import Event, EventAction
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.errors import TryLaterError

LARGE = 1 << 30


def event(severity=Severity.LOW, action=EventAction.DETECTED, **values) -> Event:
    return Event(new_id(), ModuleId.INTEGRITY_MONITORING, "file.updated", severity, time.time(), action=action, **values)


def decoded(batch) -> list[Event]:
    return [msgspec.msgpack.decode(body, type=Event) for body in batch.events]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "spool.db")


def test_events_come_out_in_the_order_they_came_in_until_they_are_acknowledged(path):
    spool = Spool(path, max_bytes=LARGE)
    events = [event() for _ in range(5)]
    spool.append(events[:3])
    spool.append(events[3:])
    first = spool.take_batch(max_events=3)
    assert decoded(first) == events[:3]
    assert spool.take_batch() == first
    spool.ack("another batch")
    assert spool.take_batch() == first
    spool.ack(first.batch_id)
    second = spool.take_batch()
    assert decoded(second) == events[3:]
    spool.ack(second.batch_id)
    assert spool.take_batch() is None
    assert spool.status().waiting_count == 0
    assert spool.status().waiting_bytes == 0
    spool.close()


def test_an_event_with_an_id_that_is_there_is_ignored(path):
    spool = Spool(path, max_bytes=LARGE)
    one, two = event(), event()
    assert spool.append([one, two]) == 2
    assert spool.append([two, event(), one]) == 1
    assert spool.status().waiting_count == 3
    assert spool.status().waiting_bytes == sum(len(msgspec.msgpack.encode(e)) for e in decoded(spool.take_batch()))
    spool.close()


def test_a_batch_keeps_its_name_when_the_agent_starts_anew(path):
    spool = Spool(path, max_bytes=LARGE)
    spool.append([event() for _ in range(4)])
    batch = spool.take_batch(max_events=2)
    spool.append([event()])
    spool.close()
    again = Spool(path, max_bytes=LARGE)
    assert again.take_batch(max_events=100) == batch
    assert again.status().waiting_count == 5
    again.close()


def test_a_batch_is_bounded_in_bytes_but_never_empty(path):
    spool = Spool(path, max_bytes=LARGE)
    spool.append([event(message="x" * 1000) for _ in range(10)])
    batch = spool.take_batch(max_bytes=3500)
    assert len(batch.events) == 3
    spool.ack(batch.batch_id)
    assert len(spool.take_batch(max_bytes=10).events) == 1
    spool.close()


def test_the_least_severe_and_oldest_go_first_and_are_counted_and_reported(path):
    order = [Severity.CRITICAL, Severity.LOW, Severity.MEDIUM, Severity.HIGH, Severity.LOW]
    events = [event(severity, message="x" * 1000) for severity in order]
    blocked = event(Severity.LOW, EventAction.BLOCKED, message="x" * 1000)
    size = len(msgspec.msgpack.encode(events[0]))
    spool = Spool(path, max_bytes=4 * size + 60)
    spool.append(events)
    spool.append([blocked])
    assert spool.status().dropped_count == 2
    spool.close()
    spool = Spool(path, max_bytes=4 * size + 60)  # the count outlives a restart
    batch = spool.take_batch()
    assert batch.dropped_since_last == 2
    sent = decoded(batch)
    assert sent[:4] == [events[0], events[2], events[3], blocked]
    assert sent[4].kind == "agent.spool_dropped"
    assert sent[4].details == {"dropped_count": 2, "dropped_by_severity": {"low": 2}}
    spool.ack(batch.batch_id)
    assert spool.take_batch() is None
    assert spool.status().dropped_count == 2
    spool.close()


def test_a_batch_under_way_is_never_dropped(path):
    small = [event(message="x" * 500) for _ in range(3)]
    spool = Spool(path, max_bytes=3000)
    spool.append(small)
    batch = spool.take_batch()
    spool.append([event(Severity.CRITICAL, message="x" * 500) for _ in range(6)])
    assert spool.take_batch() == batch
    spool.close()


def test_a_huge_event_loses_its_details_and_says_so(path):
    spool = Spool(path, max_bytes=LARGE)
    spool.append([event(details={"difference": "x" * 2_000_000})])
    (kept,) = decoded(spool.take_batch())
    assert kept.details["left_out"] == "details"
    assert kept.details["left_out_bytes"] > 2_000_000
    spool.close()


@given(st.lists(st.tuples(st.sampled_from(list(Severity)), st.integers(0, 300)), min_size=1, max_size=40), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_is_what_a_simple_model_keeps(tmp_path_factory, rows, slots):
    path = str(tmp_path_factory.mktemp("spool") / "spool.db")
    max_bytes = slots * 250
    spool = Spool(path, max_bytes=max_bytes)
    model: list[Event] = []
    dropped = 0
    for severity, length in rows:
        one = event(severity, message="x" * length)
        spool.append([one])
        model.append(one)
        while sum(len(msgspec.msgpack.encode(e)) for e in model) > max_bytes:
            model.remove(min(model, key=lambda e: (e.severity.rank, model.index(e))))
            dropped += 1
    kept = [e for e in decoded(spool.take_batch()) if e.kind != "agent.spool_dropped"] if model or dropped else []
    assert kept == model
    assert spool.status().dropped_count == dropped
    spool.close()


def test_a_corrupt_file_is_moved_aside_and_what_can_be_read_is_kept(path, tmp_path):
    spool = Spool(path, max_bytes=LARGE)
    events = [event(message="x" * 300) for _ in range(2000)]
    spool.append(events)
    spool.close()
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(os.urandom(4096 * 3))
    again = Spool(path, max_bytes=LARGE)
    assert "moved to" in again.corruption
    assert [name for name in os.listdir(tmp_path) if "corrupt-" in name]
    kept = []
    while (batch := again.take_batch()) is not None:
        kept += decoded(batch)
        again.ack(batch.batch_id)
    assert len(kept) > 1000
    assert {e.event_id for e in kept} <= {e.event_id for e in events}
    again.close()


def test_a_file_that_is_no_database_is_moved_aside(path):
    with open(path, "wb") as file:
        file.write(b"this is not a database " * 1000)
    spool = Spool(path, max_bytes=LARGE)
    assert "corrupt" in spool.corruption
    assert spool.append([event()]) == 1
    spool.close()


def test_a_full_disk_refuses_whole_appends_and_is_used_again_when_there_is_room(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], check=True)
    try:
        spool = Spool(str(disk / "spool.db"), max_bytes=LARGE)
        (disk / "ballast").write_bytes(b"x" * 1_000_000)
        kept: set[str] = set()

        def fill():
            for _ in range(1000):
                group = [event(message="x" * 500) for _ in range(20)]
                spool.append(group)
                kept.update(e.event_id for e in group)

        with pytest.raises(TryLaterError, match="make room"):
            fill()
        assert spool.status().waiting_count == len(kept)
        (disk / "ballast").unlink()
        spool.append([event()])
        assert spool.status().waiting_count == len(kept) + 1
        batch = spool.take_batch(max_events=10_000)
        assert kept <= {e.event_id for e in decoded(batch)}
        spool.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_append_returned_for_survives_kill_9(path):
    program = """
import sys, time
from keibi.agent.spool import Spool
from keibi.contract.events import Event
from keibi.contract.names import ModuleId, Severity, new_id
spool = Spool(sys.argv[1], max_bytes=1 << 30)
while True:
    events = [Event(new_id(), ModuleId.INTEGRITY_MONITORING, "file.updated", Severity.LOW, time.time()) for _ in range(50)]
    spool.append(events)
    print("\\n".join(e.event_id for e in events), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True)
    told = [process.stdout.readline().strip() for _ in range(2000)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split()
    process.stdout.close()
    process.wait(10)
    spool = Spool(path, max_bytes=LARGE)
    assert not spool.corruption
    kept = set()
    while (batch := spool.take_batch()) is not None:
        kept |= {e.event_id for e in decoded(batch)}
        spool.ack(batch.batch_id)
    assert {event_id for event_id in told if len(event_id) == 32} <= kept
    spool.close()


def test_events_that_the_manager_never_takes_are_put_aside(path):
    spool = Spool(path, max_bytes=LARGE)
    spool.append([event(), event()])
    whole = spool.take_batch()
    spool.split(whole.batch_id)
    single = spool.take_batch(max_events=1)
    assert single.batch_id != whole.batch_id
    spool.set_aside(single.batch_id, "not valid")
    assert len(spool.take_batch().events) == 1
    spool.close()
