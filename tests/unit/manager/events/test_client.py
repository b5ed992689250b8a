"""The client of the ClickHouse HTTP interface, against the embedded store."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keibi.errors import InputError, TryLaterError
from keibi.manager.events.client import ClickHouse, EventStoreFault

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


class Texts(msgspec.Struct):
    one: str
    many: list[str]
    number: int


@settings(max_examples=150, deadline=None)
@given(one=TEXTS, many=st.lists(TEXTS, max_size=5), number=st.integers(-(2**63), 2**63 - 1))
def test_a_value_arrives_as_it_was_given_and_never_becomes_sql(event_store, one, many, number):
    sql = "SELECT {one:String} AS one, {many:Array(String)} AS many, {number:Int64} AS number"
    (row,) = event_store.client.select(sql, {"one": one, "many": many, "number": number}, Texts)
    assert (row.one, row.many, row.number) == (one, many, number)


@settings(max_examples=20, deadline=None)
@given(many=st.lists(TEXTS, min_size=300, max_size=400))
def test_values_too_long_for_a_url_travel_in_a_form(event_store, many):
    sql = "SELECT {one:String} AS one, {many:Array(String)} AS many, 1 AS number"
    (row,) = event_store.client.select(sql, {"one": "\r\n--", "many": many}, Texts)
    assert (row.one, row.many) == ("\r\n--", many)


def test_a_query_that_takes_too_long_asks_for_a_narrower_one(event_store):
    with pytest.raises(InputError, match="more time or memory"):
        event_store.client.raw("SELECT count() FROM numbers(100000000000)", settings={"max_execution_time": "0.2"})


def test_a_query_that_takes_too_much_memory_asks_for_a_narrower_one(event_store):
    with pytest.raises(InputError, match="more time or memory"):
        event_store.client.raw("SELECT groupArray(number) FROM numbers(50000000)", settings={"max_memory_usage": 10_000_000})


def test_settings_of_one_query_do_not_reach_the_next(event_store):
    sql = "SELECT getSetting('max_execution_time')"
    assert float(event_store.client.raw(sql, settings={"max_execution_time": 7})) == 7
    for _ in range(10):
        assert float(event_store.client.raw(sql)) == 0


def test_a_wrong_statement_is_a_fault_with_clickhouses_code(event_store):
    with pytest.raises(EventStoreFault) as caught:
        event_store.client.raw("SELECT * FROM keibi.nothing")
    assert caught.value.code == 60
    assert event_store.client.raw("SELECT 1") == b"1\n"


def test_a_wrong_secret_is_refused(event_daemon):
    for key in ("", "wrong", "é"[:0] + event_daemon.key[:-1]):
        client = ClickHouse(event_daemon.url, key=key)
        with pytest.raises(EventStoreFault, match="secret"):
            client.raw("SELECT 1")
        client.close()


def test_a_store_that_is_not_there_is_away():
    client = ClickHouse("http://127.0.0.1:1", timeout_seconds=1.0)
    with pytest.raises(TryLaterError, match="does not answer"):
        client.raw("SELECT 1")
    assert client.is_alive() is False


@pytest.mark.parametrize("url", ["", "localhost:8123", "ftp://x", "http://"])
def test_an_address_that_is_none_is_told(url):
    with pytest.raises(InputError, match="is not an http"):
        ClickHouse(url)


def test_a_setting_whose_name_is_none_is_refused(event_store):
    with pytest.raises(EventStoreFault, match="not the name of a setting"):
        event_store.client.raw("SELECT 1", settings={"a = 1, b": 1})
