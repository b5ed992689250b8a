"""Taking batches in: nothing is stored twice, nothing acknowledged is lost, and one bad event does not hold up the others."""

import asyncio
import time

import msgspec
import pytest

from keibi.contract.events import Event, EventBatch
from keibi.contract.names import new_id
from keibi.errors import InputError, TryLaterError
from keibi.manager.events.client import ClickHouse
from keibi.manager.events.columns import Arrived, convert, fault
from keibi.manager.events.feed import EventFeed
from keibi.manager.events.ingest import EventIngest
from keibi.manager.events.model import EventQuery
from tests.unit.manager.events.making import a_batch, an_event, many_events, principal, with_ingest

COMPUTER = "c" * 32


def count_of(events, tenant):
    """How many events the tenant has, by the events themselves and by the hourly counts."""
    query = EventQuery(since=time.time() // 3600 * 3600 - 30 * 86400, until=time.time() // 3600 * 3600 + 7200)
    counted = events.count(principal(tenant), EventQuery())
    assert events.series(principal(tenant), query, buckets=400).total == counted
    return counted


def test_the_same_batch_three_times_is_stored_once(event_store, events, tenant):
    batch = a_batch(*many_events(500))

    async def use(ingest):
        receipts = [await ingest.submit(tenant, COMPUTER, batch) for _ in range(3)]
        return receipts, ingest.status()

    receipts, status = with_ingest(event_store, use)
    assert [receipt.stored for receipt in receipts] == [500, 500, 500]
    assert (status.stored_count, status.repeated_count) == (500, 1000)
    assert count_of(events, tenant) == 500


def test_the_same_batch_three_times_at_once_is_stored_once(event_store, events, tenant):
    batch = a_batch(*many_events(500))

    async def use(ingest):
        return await asyncio.gather(*(ingest.submit(tenant, COMPUTER, batch) for _ in range(3)))

    assert len(with_ingest(event_store, use)) == 3
    assert count_of(events, tenant) == 500


def test_batches_that_overlap_store_each_event_once(event_store, events, tenant):
    made = many_events(300)

    async def use(ingest):
        for start in (0, 50, 100, 150, 200):
            await ingest.submit(tenant, COMPUTER, a_batch(*made[start : start + 100]))

    with_ingest(event_store, use)
    assert count_of(events, tenant) == 300


def test_a_batch_comes_again_after_the_manager_restarted(event_store, events, tenant):
    batch = a_batch(*many_events(100), *many_events(100, at=time.time() - 3 * 86400))
    for _ in range(2):
        with_ingest(event_store, lambda ingest: ingest.submit(tenant, COMPUTER, batch))
    assert count_of(events, tenant) == 200


def test_two_batches_under_one_batch_id_are_both_stored(event_store, events, tenant):
    batch_id = new_id()

    async def use(ingest):
        for _ in range(2):
            await ingest.submit(tenant, COMPUTER, EventBatch(batch_id=batch_id, events=many_events(10)))

    with_ingest(event_store, use)
    assert count_of(events, tenant) == 20


def test_one_id_in_two_tenants_is_two_events(event_store, events, tenant):
    other, event = new_id(), an_event()

    async def use(ingest):
        for tenant_id in (tenant, other, tenant):
            await ingest.submit(tenant_id, COMPUTER, a_batch(event))
        await asyncio.gather(*(ingest.submit(tenant_id, COMPUTER, a_batch(event)) for tenant_id in (tenant, other)))

    with_ingest(event_store, use)
    assert count_of(events, tenant) == count_of(events, other) == 1


def test_many_agents_at_once_share_inserts(event_store, events, tenant):
    async def use(ingest):
        await asyncio.gather(*(ingest.submit(tenant, f"{number:032x}", a_batch(*many_events(20))) for number in range(200)))
        return ingest.status()

    status = with_ingest(event_store, use)
    assert status.stored_count == 4000
    assert status.flush_count <= 10
    assert (status.waiting_count, status.waiting_bytes) == (0, 0)
    assert count_of(events, tenant) == 4000


def test_an_event_after_a_quiet_moment_does_not_wait_for_others(event_store, tenant):
    async def use(ingest):
        waited = []
        for _ in range(5):
            await asyncio.sleep(0.15)  # the quiet moment itself
            started = time.monotonic()
            await ingest.submit(tenant, COMPUTER, a_batch(an_event()))
            waited.append(time.monotonic() - started)
        return min(waited)

    # The window for collecting is 100 ms: less than that means that it was not waited out.
    assert with_ingest(event_store, use) < 0.09


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event_id": "not-an-id"}, "is not 32 hexadecimal digits"),
        ({"event_id": "A" * 32}, "is not 32 hexadecimal digits"),
        ({"subject": "x" * 8193}, "subject has 8193 characters, more than 8192"),
        ({"kind": ""}, "the kind is empty"),
        ({"kind": "k" * 201}, "kind has 201 characters"),
        ({"detected_at": float("nan")}, "detected_at is nan, not a time"),
        ({"changed_at": float("-inf")}, "changed_at is -inf, not a time"),
        ({"rule_version": 2**32}, "not a number of 32 bits"),
        ({"rule_version": -1}, "not a number of 32 bits"),
        ({"policy_generation": -1}, "not a number of 64 bits"),
        ({"details": {"difference": "x" * 600_000}}, "the details have"),
    ],
)
def test_a_bad_event_is_set_aside_with_the_reason_and_its_batch_goes_through(event_store, events, tenant, changes, reason):
    bad = msgspec.structs.replace(an_event(), **changes)
    good = many_events(3)

    async def use(ingest):
        receipt = await ingest.submit(tenant, COMPUTER, a_batch(good[0], bad, *good[1:]))
        return receipt, ingest.status()

    receipt, status = with_ingest(event_store, use)
    assert receipt.stored == 4  # the agent may forget all four
    assert (status.stored_count, status.quarantined_count) == (3, 1)
    assert count_of(events, tenant) == 3
    assert reason in fault(bad)
    told = event_store.client.raw(
        "SELECT reason FROM keibi.events_quarantine WHERE tenant_id = {tenant:String}", {"tenant": tenant}, output_format="TSVRaw"
    )
    assert reason in told.decode()


def test_control_characters_are_written_out_and_escaped_names_stay(events, keep, tenant):
    sent = an_event("/tmp/\x1b[31mred\n\u202egnp.exe", message="全角　空白", reason=r"already \x1b escaped", kind="file.created")
    keep(sent)
    found = events.get(principal(tenant), sent.event_id)
    assert found.subject == r"/tmp/\x1b[31mred\x0a\xe2\x80\xaegnp.exe"
    assert found.message == "全角　空白"
    assert found.reason == r"already \x1b escaped"


def test_a_lone_surrogate_does_not_stop_a_flush(keep):
    assert keep(an_event("/tmp/\udcff"), an_event(details={"name": "\udcff"}), an_event()) == 2


@pytest.mark.parametrize("at", [0.0, 86400.0, 4_000_000_000.0, -5.0, 1e18])
def test_an_event_of_a_wrong_clock_is_kept_under_its_arrival_once(events, keep, tenant, at):
    sent = an_event(at=at)
    assert keep(sent) == 1
    assert keep(sent) == 0
    found = events.get(principal(tenant), sent.event_id)
    assert abs(found.detected_at - time.time()) < 60
    assert "clock said" in found.note


def test_spooled_events_of_more_than_a_hundred_days_go_in_at_once(events, keep, tenant):
    now = time.time()
    assert keep(*[an_event(at=now - number * 86400) for number in range(200)]) == 200
    assert events.count(principal(tenant), EventQuery()) == 200


def test_too_many_events_in_one_batch_are_refused(event_store, tenant):
    async def use(ingest):
        with pytest.raises(InputError, match="more than 50000"):
            await ingest.submit(tenant, COMPUTER, EventBatch(batch_id="b", events=[an_event()] * 50_001))
        assert (await ingest.submit(tenant, COMPUTER, EventBatch(batch_id="b", events=[]))).stored == 0

    with_ingest(event_store, use)


def test_beyond_the_bound_of_bytes_agents_are_told_to_try_later(event_store, events, tenant):
    async def use(ingest):
        answers = await asyncio.gather(
            *(ingest.submit(tenant, COMPUTER, a_batch(*many_events(100))) for _ in range(50)), return_exceptions=True
        )
        return answers, ingest.status()

    answers, status = with_ingest(event_store, use, max_waiting_bytes=1_000_000)
    refused = [answer for answer in answers if isinstance(answer, TryLaterError)]
    assert 0 < len(refused) < 50
    assert refused[0].code == "ingest_full"
    assert status.refused_count == 100 * len(refused)
    assert count_of(events, tenant) == 100 * (50 - len(refused))


def test_a_batch_that_waits_when_the_manager_stops_is_still_stored(event_store, events, tenant):
    async def run():
        ingest = EventIngest(event_store, EventFeed())
        await ingest.start()
        tasks = [asyncio.create_task(ingest.submit(tenant, COMPUTER, a_batch(*many_events(10)))) for _ in range(20)]
        await asyncio.sleep(0)
        await ingest.stop()
        receipts = await asyncio.gather(*tasks)
        with pytest.raises(TryLaterError):
            await ingest.submit(tenant, COMPUTER, a_batch(an_event()))
        return receipts

    assert len(asyncio.run(run())) == 20
    assert count_of(events, tenant) == 200


def test_when_the_store_stays_away_agents_are_told_to_try_later(event_store, tenant, monkeypatch):
    monkeypatch.setattr("keibi.manager.events.ingest.GIVE_UP_SECONDS", 0.3)
    away = type(event_store)(ClickHouse("http://127.0.0.1:1", timeout_seconds=1.0))

    async def use(ingest):
        with pytest.raises(TryLaterError, match="does not answer"):
            await ingest.submit(tenant, COMPUTER, a_batch(an_event()))
        return ingest.status()

    status = with_ingest(away, use)
    assert (status.stored_count, status.waiting_bytes) == (0, 0)


def test_the_feed_tells_of_a_stored_flush(event_store, tenant):
    async def run():
        feed = EventFeed()
        ingest = EventIngest(event_store, feed)
        await ingest.start()
        waiter = asyncio.create_task(feed.wait(feed.newest_at, 10))
        await ingest.submit(tenant, COMPUTER, a_batch(an_event()))
        told = await waiter
        await ingest.stop()
        return told, await feed.wait(feed.newest_at, 0.01)

    assert asyncio.run(run()) == (True, False)


def test_the_rollup_is_made_anew_for_days_that_lost_counts(event_store, events, keep, tenant):
    now = time.time()
    keep(*many_events(50, at=now - 40 * 86400))
    day = time.strftime("%Y-%m-%d", time.gmtime(now - 40 * 86400))
    event_store.client.raw(f"ALTER TABLE keibi.events_hourly DROP PARTITION '{day}'")
    assert day in event_store.repair_rollup()
    assert event_store.repair_rollup() == []
    start = (now - 41 * 86400) // 3600 * 3600
    assert events.series(principal(tenant), EventQuery(since=start, until=start + 2 * 86400), buckets=48).total == 50


def test_columns_of_no_events_are_empty():
    columns = convert([Arrived("t", "c", [])], time.time())
    assert (columns.table.num_rows, columns.spans, columns.quarantined) == (0, [], [])


def test_every_field_of_an_event_has_a_column_or_is_known_to_have_none():
    columns = set(convert([Arrived("t", "c", [an_event()])], time.time()).table.column_names)
    assert set(Event.__struct_fields__) - columns == {"actor"}
