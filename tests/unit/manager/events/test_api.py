"""The events API over HTTP, with a real store behind it."""

import asyncio
import csv
import io
import json
import types

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from keibi.contract.names import new_id
from keibi.errors import KeibiError
from keibi.manager.access.api import current_principal
from keibi.manager.events import live
from keibi.manager.events.api import router
from keibi.manager.events.model import EventQuery
from keibi.manager.http_answers import collect_definitions
from keibi.manager.http_errors import keibi_error
from tests.unit.manager.events.making import an_event, many_events, principal


@pytest.fixture
def client(events, tenant):
    app = FastAPI(exception_handlers={KeibiError: keibi_error})
    app.include_router(router)
    app.state.services = types.SimpleNamespace(events=events)
    app.state.asker = principal(tenant)
    app.dependency_overrides[current_principal] = lambda: app.state.asker
    with TestClient(app) as opened:
        yield opened


def test_a_search_pages_through_all_events_and_counts_them(client, keep):
    keep(*many_events(25))
    seen, cursor = [], ""
    while cursor is not None:
        page = client.get(
            "/api/v1/events", params={"limit": 10, "with_total": True, **({"cursor": cursor} if cursor else {})}
        ).json()
        assert page["total"] == 25
        seen += [item["event_id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert len(set(seen)) == 25


def test_filters_come_from_the_address(client, keep):
    keep(an_event("/etc/hosts", kind="file.created"), an_event("/etc/passwd"))

    def found(**parameters):
        return [item["subject"] for item in client.get("/api/v1/events", params=parameters).json()["items"]]

    assert found(kind=["file.created", "file.deleted"]) == ["/etc/hosts"]
    assert found(text="パスワード") == []
    assert found(text="PASSWD", severity="medium", module="integrity_monitoring", user="alice", process="vim") == ["/etc/passwd"]
    assert client.get("/api/v1/events/count", params={"subject": "/etc/hosts"}).json() == {"event_count": 1}


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"severity": "huge"}, 422),
        ({"limit": 0}, 422),
        ({"limit": 1001}, 422),
        ({"cursor": "x"}, 400),
        ({"since": 9, "until": 1}, 400),
    ],
)
def test_a_wrong_parameter_is_the_callers_mistake(client, parameters, status):
    assert client.get("/api/v1/events", params=parameters).status_code == status


def test_one_event_its_surroundings_and_its_tags(client, keep):
    sent = an_event("/etc/passwd", at=1795650000.0)
    keep(sent, an_event("/etc/shadow", at=1795649990.0), now=1795650001.0)
    found = client.get(f"/api/v1/events/{sent.event_id}").json()
    assert (found["subject"], found["details"], found["tags"]) == ("/etc/passwd", sent.details, [])
    near = client.get(f"/api/v1/events/{sent.event_id}/around").json()
    assert ([row["subject"] for row in near["before"]], near["after"]) == (["/etc/shadow"], [])
    body = {"event_ids": [sent.event_id], "tag": "確認済み"}
    assert client.post("/api/v1/events/tags", json=body).json() == {"event_count": 1}
    assert client.get("/api/v1/events/tags").json() == [{"tag": "確認済み", "event_count": 1}]
    assert client.post("/api/v1/events/tags/remove", json=body).json() == {"event_count": 1}
    assert client.get("/api/v1/events/tags").json() == []


def test_another_tenants_event_is_not_found(client, keep, tenant):
    sent = an_event()
    keep(sent)
    client.app.state.asker = principal(new_id())
    for path in ("", "/around"):
        assert client.get(f"/api/v1/events/{sent.event_id}{path}").status_code == 404
    assert client.post("/api/v1/events/tags", json={"event_ids": [sent.event_id], "tag": "x"}).json() == {"event_count": 0}
    client.app.state.asker = principal(tenant)
    assert client.get(f"/api/v1/events/{sent.event_id}").json()["tags"] == []


def test_charts_and_rankings(client, keep):
    keep(*many_events(5))
    series = client.get("/api/v1/events/series", params={"by": "severity", "time_zone": "Asia/Tokyo"}).json()
    assert series["total"] == 5
    assert len(series["starts_at"]) == len(series["lines"][0]["counts"])
    assert client.get("/api/v1/events/top", params={"field": "user"}).json() == [
        {"value": "root", "count": 5, "computer_count": 1}
    ]


def test_the_csv_file_is_sent_as_an_attachment(client, keep):
    keep(*many_events(3))
    answer = client.get("/api/v1/events/export.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    assert len(list(csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff"))))) == 3


def test_retention_can_be_read_and_changed(client, tenant):
    assert client.get("/api/v1/events/retention").json()[0]["days"] == 90
    changed = client.put("/api/v1/events/retention", json={"module": "integrity_monitoring", "days": 30}).json()
    assert {"tenant_id": tenant, "module": "integrity_monitoring", "days": 30, "is_default": False} in changed
    assert client.put("/api/v1/events/retention", json={"days": 0}).status_code == 422


def test_the_live_stream_brings_new_events_and_goes_on_where_it_broke_off(events, keep, tenant):
    asker = principal(tenant)

    async def watch(after=None, wanted=2):
        messages = []
        stream = live.event_stream(events, asker, EventQuery(), after, max_seconds=10)
        async for message in stream:
            if message.startswith("retry"):
                await asyncio.to_thread(keep, an_event("/one"))
                events.feed.publish(1.0)
                await asyncio.to_thread(keep, an_event("/two\nlines"))
                events.feed.publish(2.0)
            elif "event: event" in message:
                messages.append(message)
            if len(messages) == wanted:
                break
        await stream.aclose()
        return messages

    first = asyncio.run(watch())
    lines = [dict(line.split(": ", 1) for line in message.strip().splitlines()) for message in first]
    assert [json.loads(line["data"])["subject"] for line in lines] == ["/one", r"/two\x0alines"]
    again = asyncio.run(watch(lines[0]["id"], 1))
    assert json.loads(again[0].partition("data: ")[2])["subject"] == r"/two\x0alines"


def test_the_live_stream_over_http_ends_by_itself_so_that_the_browser_signs_in_anew(client, keep, monkeypatch):
    monkeypatch.setattr(live.event_stream, "__kwdefaults__", {"encode": None, "max_seconds": 0.2})
    answer = client.get("/api/v1/events/tail")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.startswith("retry: 1000\nid: ")
    assert client.get("/api/v1/events/tail", headers={"Last-Event-ID": "nonsense"}).status_code == 400


def test_the_openapi_document_names_every_answer(client):
    document = client.app.openapi()
    collect_definitions(document)
    paths = {path: methods for path, methods in document["paths"].items() if path.startswith("/api/v1/events")}
    assert len(paths) == 11
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            assert operation["responses"]["200"]["content"], (path, method)
    assert "EventRecord" in document["components"]["schemas"]
