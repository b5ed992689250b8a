"""kill -9 of the event store and of the manager in mid-load: no acknowledged event is lost, and none is there twice."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from keibi.contract.events import EventBatch
from keibi.contract.names import new_id
from keibi.errors import TryLaterError
from keibi.manager.events.client import ClickHouse
from keibi.manager.events.daemon import EventDaemon
from keibi.manager.events.feed import EventFeed
from keibi.manager.events.ingest import EventIngest
from keibi.manager.events.store import EventStore
from tests.system.events_ingest_program import make_event

PROGRAM = Path(__file__).with_name("events_ingest_program.py")


class Intake:
    """The program, its event store's process, and the ids that it said are stored."""

    def __init__(self, directory):
        self.process = subprocess.Popen([sys.executable, str(PROGRAM), str(directory)], stdout=subprocess.PIPE, text=True)
        word, _, pid = self.process.stdout.readline().partition(" ")
        assert word == "eventd"
        self.eventd_pid = int(pid)
        self.acknowledged = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line.endswith("\n"):  # the last line may be cut by the kill
                self.acknowledged.append(line.split())

    def wait_for_batches(self, count):
        wait_until(lambda: len(self.acknowledged) >= count, f"{count} batches")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()


def wait_until(is_so, what, limit_seconds=60.0):
    deadline = time.monotonic() + limit_seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def stored_ids(directory):
    daemon = EventDaemon(directory)
    daemon.start()
    client = ClickHouse(daemon.url, key=daemon.key)
    store = EventStore(client)
    store.prepare()
    ids = client.raw("SELECT lower(hex(event_id)) FROM keibi.events").decode().split()
    counted = int(client.raw("SELECT sum(count) FROM keibi.events_hourly"))
    client.close()
    daemon.stop()
    return ids, counted


def check(directory, acknowledged):
    ids, counted = stored_ids(directory)
    assert len(set(ids)) == len(ids), "an event is there twice"
    lost = {event_id for batch in acknowledged for event_id in batch} - set(ids)
    assert not lost, f"{len(lost)} acknowledged events are lost"
    assert counted == len(ids), "the hourly counts differ from the events"


def test_killing_the_event_store_in_mid_load_loses_nothing(tmp_path):
    intake = Intake(tmp_path / "store")
    try:
        intake.wait_for_batches(100)
        os.kill(intake.eventd_pid, signal.SIGKILL)
        before = len(intake.acknowledged)
        intake.wait_for_batches(before + 200)  # it was started again, and the agents' batches went in
    finally:
        intake.kill()
    check(tmp_path / "store", intake.acknowledged)


def test_the_hourly_counts_are_right_again_as_soon_as_the_event_store_is_back(tmp_path):
    daemon = EventDaemon(tmp_path / "store")
    daemon.start()
    client = ClickHouse(daemon.url, key=daemon.key)
    store = EventStore(client)
    store.prepare()

    async def run():
        ingest = EventIngest(store, EventFeed())
        await ingest.start()
        stored = 0
        for kills in range(4):
            batches = [EventBatch(batch_id=new_id(), events=[make_event() for _ in range(200)]) for _ in range(40)]
            sending = asyncio.gather(*(ingest.submit("a" * 32, "c" * 32, batch) for batch in batches))
            await asyncio.sleep(0.02 * kills)  # at another point of the flush each time
            os.kill(daemon.status().pid, signal.SIGKILL)
            stored += sum(receipt.stored for receipt in await sending)
        await ingest.stop()
        return stored

    try:
        stored = asyncio.run(run())
        assert int(client.raw("SELECT count() FROM keibi.events")) == stored == 4 * 40 * 200
        assert int(client.raw("SELECT sum(count) FROM keibi.events_hourly")) == stored
    finally:
        client.close()
        daemon.stop()


def test_killing_the_manager_in_mid_flush_loses_nothing_and_its_event_store_ends_too(tmp_path):
    acknowledged = []
    for _ in range(3):
        intake = Intake(tmp_path / "store")
        try:
            intake.wait_for_batches(60)
        finally:
            intake.kill()
        acknowledged += intake.acknowledged
        wait_until(lambda pid=intake.eventd_pid: not is_alive(pid), "the end of the event store's process")
    check(tmp_path / "store", acknowledged)


def test_killing_both_at_once_loses_nothing(tmp_path):
    intake = Intake(tmp_path / "store")
    try:
        intake.wait_for_batches(80)
        os.kill(intake.eventd_pid, signal.SIGKILL)
    finally:
        intake.kill()
    check(tmp_path / "store", intake.acknowledged)


def test_a_second_manager_on_the_same_store_is_told_why_it_cannot(tmp_path):
    first = EventDaemon(tmp_path / "store")
    first.start()
    try:
        second = EventDaemon(tmp_path / "store", wait_seconds=0.3)
        with pytest.raises(TryLaterError, match=f"already open in process {first.status().pid}"):
            second.start()
        second.stop()
        client = ClickHouse(first.url, key=first.key)
        assert client.raw("SELECT 1") == b"1\n"
        client.close()
    finally:
        first.stop()


def test_a_store_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    daemon = EventDaemon(tmp_path / "file" / "store")
    with pytest.raises(TryLaterError, match="cannot be written: Not a directory"):
        daemon.start()
    daemon.stop()


def test_the_event_store_is_started_again_at_the_same_address(tmp_path):
    daemon = EventDaemon(tmp_path / "store")
    daemon.start()
    try:
        client = ClickHouse(daemon.url, key=daemon.key)
        EventStore(client).prepare()
        for count in (1, 2):
            os.kill(daemon.status().pid, signal.SIGKILL)
            # No error in between: the request waits in the socket's queue until the next process takes it.
            assert client.raw("SELECT count() FROM keibi.events") == b"0\n"
            assert daemon.status().restart_count == count
        client.close()
    finally:
        daemon.stop()
    assert daemon.status().is_running is False
