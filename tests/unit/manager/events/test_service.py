"""Finding events, each time in a real store."""

import time

import pytest

from keibi.contract.events import EventAction
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.errors import AccessError, InputError
from keibi.manager.audit.service import AuditService
from keibi.manager.events.model import EventQuery
from tests.unit.manager.events.making import an_event, many_events, principal

HOUR = 3600.0


def subjects(page):
    return [row.subject for row in page.items]


def test_an_event_comes_back_as_it_was_sent(events, keep, tenant):
    sent = an_event(
        at=1795650000.123456,
        changed_at=1795649999.5,
        action=EventAction.BLOCKED,
        reason="because",
        details={"a": [1, None, "日本"]},
    )
    keep(sent, now=1795650001.0)
    found = events.get(principal(tenant), sent.event_id)
    assert (found.event_id, found.tenant_id, found.computer_id) == (sent.event_id, tenant, "c" * 32)
    for name in ("module", "kind", "severity", "detected_at", "changed_at", "rule_id", "rule_version", "action", "subject"):
        assert getattr(found, name) == getattr(sent, name), name
    for name in ("entity_type", "reason", "message", "actor", "policy_generation", "details"):
        assert getattr(found, name) == getattr(sent, name), name
    assert found.received_at == 1795650001.0


def test_what_was_not_known_stays_unknown(events, keep, tenant):
    sent = an_event(changed_at=None, actor=type(an_event().actor)())
    keep(sent)
    found = events.get(principal(tenant), sent.event_id)
    assert found.changed_at is None
    assert found.actor.uid is None


def test_pages_are_newest_first_and_hold_still_while_events_arrive(events, keep, tenant):
    now = time.time()
    keep(*[an_event(f"/old/{number:02}", at=now - 100 * 3600 - number) for number in range(25)])
    first = events.search(principal(tenant), EventQuery(), limit=10)
    assert subjects(first) == [f"/old/{number:02}" for number in range(10)]
    keep(*[an_event(f"/new/{number}", at=now) for number in range(5)])
    second = events.search(principal(tenant), EventQuery(), first.next_cursor, limit=10)
    third = events.search(principal(tenant), EventQuery(), second.next_cursor, limit=10)
    assert subjects(second) + subjects(third) == [f"/old/{number:02}" for number in range(10, 25)]
    assert third.next_cursor is None


def test_events_of_one_moment_are_told_apart_by_their_id_on_page_borders(events, keep, tenant):
    at = time.time() - 5
    keep(*[an_event(f"/same/{number}", at=at) for number in range(7)])
    for order in ("newest", "oldest"):
        seen, cursor = [], None
        while True:
            page = events.search(principal(tenant), EventQuery(order=order), cursor, limit=2)
            seen += subjects(page)
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sorted(seen) == [f"/same/{number}" for number in range(7)]


def test_each_filter_narrows(events, keep, tenant):
    now = time.time()
    keep(an_event("/a", at=now - 10, severity=Severity.LOW, kind="file.created"))
    keep(
        an_event(
            "/b", at=now - 20, module=ModuleId.LOG_INSPECTION, kind="log.matched", rule_id="other", actor=type(an_event().actor)()
        )
    )
    keep(an_event("/c", at=now - 30, action=EventAction.BLOCKED), computer_id="d" * 32)

    def found(**filters):
        return sorted(subjects(events.search(principal(tenant), EventQuery(**filters))))

    assert found() == ["/a", "/b", "/c"]
    assert found(module=ModuleId.LOG_INSPECTION) == ["/b"]
    assert found(kinds=("file.created", "log.matched")) == ["/a", "/b"]
    assert found(severity_at_least=Severity.MEDIUM) == ["/b", "/c"]
    assert found(action=EventAction.BLOCKED) == ["/c"]
    assert found(computer_ids=("d" * 32,)) == ["/c"]
    assert found(rule_id="other") == ["/b"]
    assert found(subject="/a") == ["/a"]
    assert found(user="alice") == ["/a", "/c"]
    assert found(user="root") == ["/a", "/c"]
    assert found(process="/usr/bin/vim") == ["/a", "/c"]
    assert found(process="vim") == ["/a", "/c"]
    assert found(process="im") == []
    assert found(since=now - 25) == ["/a", "/b"]
    assert found(until=now - 25) == ["/c"]
    assert found(since=now - 25, until=now - 15) == ["/b"]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("passwd", True),
        ("PASSWD", True),
        ("ssw", True),
        ("passwd vim", True),
        ("passwd emacs", False),
        ('"was changed"', True),
        ('"changed was"', False),
        ("変更", True),
        ("設定ファイル", True),
        ("設定 変更", True),
        ("削除", False),
        ("更", True),
        ("ｗｅｂ０１", True),
        ("100%", True),
        ("100_", False),
        ("pass%", False),
        (r"a\b", True),
        (r"a\\b", False),
        ("'; DROP TABLE events --", False),
        ("{tenant:String}", False),
    ],
)
def test_text_is_found_in_any_case_width_and_language(events, keep, tenant, text, is_found):
    keep(an_event("/etc/passwd", message=r"/etc/passwd was changed: 設定ファイルが変更されました web01 100% a\b"))
    page = events.search(principal(tenant), EventQuery(text=text))
    assert bool(page.items) is is_found
    assert events.count(principal(tenant), EventQuery(text=text)) == int(is_found)


def test_another_tenants_events_are_not_there(events, keep, tenant):
    sent = an_event()
    keep(sent)
    stranger = principal(new_id())
    assert events.search(stranger, EventQuery()).items == ()
    assert events.count(stranger, EventQuery()) == 0
    assert events.series(stranger, EventQuery()).total == 0
    assert events.top(stranger, EventQuery(), "subject") == []
    assert list(events.export_csv(stranger, EventQuery()))[1:] == []
    for ask in (events.get, events.around):
        with pytest.raises(InputError, match="there is no event"):
            ask(stranger, sent.event_id)


def test_a_provider_sees_all_its_tenants_or_the_chosen_one(events, keep, tenant):
    other = new_id()
    keep(an_event("/one"))
    keep(an_event("/two"), tenant_id=other)
    both = principal(tenant, other, role="provider")
    assert sorted(subjects(events.search(both, EventQuery()))) == ["/one", "/two"]
    assert subjects(events.search(both.in_tenant(other), EventQuery())) == ["/two"]


def test_whoever_is_granted_a_group_sees_only_its_computers(events, keep, tenant, groups):
    mine, theirs = an_event("/mine"), an_event("/theirs")
    keep(mine, computer_id="1" * 32)
    keep(theirs, computer_id="2" * 32)
    groups.computer_ids["web"] = frozenset({"1" * 32})
    limited = principal(tenant, role="operator", groups=frozenset({"web"}))
    assert subjects(events.search(limited, EventQuery())) == ["/mine"]
    assert subjects(events.search(limited, EventQuery(computer_ids=("2" * 32,)))) == []
    assert events.series(limited, EventQuery()).total == 1
    assert events.get(limited, mine.event_id).subject == "/mine"
    with pytest.raises(InputError):
        events.get(limited, theirs.event_id)
    assert events.tags.add(limited, [mine.event_id, theirs.event_id], "seen") == 1
    groups.computer_ids["web"] = frozenset()
    assert events.search(limited, EventQuery()).items == []


def test_a_group_of_thousands_of_computers_can_be_asked_for(events, keep, tenant, groups):
    keep(an_event("/mine"), computer_id="1" * 32)
    groups.computer_ids["all"] = frozenset({"1" * 32} | {f"{number:032x}" for number in range(5000)})
    assert subjects(events.search(principal(tenant, groups=frozenset({"all"})), EventQuery())) == ["/mine"]


def test_whoever_may_not_see_events_is_refused(events, tenant):
    nobody = principal(tenant, role="auditor")
    nobody = type(nobody)(user_id="", name="bob", kind="session", tenant_ids=frozenset({tenant}))
    for ask in (
        lambda: events.search(nobody, EventQuery()),
        lambda: events.count(nobody, EventQuery()),
        lambda: events.get(nobody, "0" * 32),
        lambda: events.around(nobody, "0" * 32),
        lambda: events.series(nobody, EventQuery()),
        lambda: events.top(nobody, EventQuery(), "user"),
        lambda: events.tail(nobody, EventQuery()),
        lambda: events.export_csv(nobody, EventQuery()),
        lambda: events.tags.in_use(nobody),
        lambda: events.tags.add(principal(tenant, role="auditor"), ["0" * 32], "x"),
    ):
        with pytest.raises(AccessError):
            ask()


def test_around_an_event_are_its_neighbours_on_the_same_computer(events, keep, tenant):
    now = time.time() - 5 * HOUR
    middle = an_event("/middle", at=now)
    keep(middle, *[an_event(f"/{side}", at=now + side) for side in (-4000, -20, -10, 10, 20, 4000)])
    keep(an_event("/elsewhere", at=now), computer_id="d" * 32)
    found = events.around(principal(tenant), middle.event_id)
    assert [row.subject for row in found.before] == ["/-10", "/-20"]
    assert [row.subject for row in found.after] == ["/10", "/20"]


def test_a_chart_counts_every_event_once_whether_by_hour_or_finer(events, keep, tenant):
    end = (time.time() // HOUR) * HOUR
    keep(
        *many_events(30, at=end - 1.0),
        *many_events(20, at=end - 10 * HOUR, severity=Severity.LOW),
        *many_events(10, at=end - 30 * HOUR),
    )
    asker = principal(tenant)
    day = events.series(asker, EventQuery(since=end - 24 * HOUR, until=end), buckets=24, by="severity")
    assert day.step_seconds == 3600
    assert len(day.starts_at) == 24
    assert {line.key: sum(line.counts) for line in day.lines} == {"high": 30, "low": 20}
    assert {line.key: line.counts[-1] for line in day.lines} == {"high": 30, "low": 0}
    fine = events.series(asker, EventQuery(since=end - 600, until=end), buckets=20)
    assert (fine.step_seconds, fine.total) == (60, 30)
    uneven = events.series(asker, EventQuery(since=end - 24 * HOUR - 7, until=end + 7), buckets=24)
    assert uneven.total == 50
    with_text = events.series(asker, EventQuery(since=end - 48 * HOUR, until=end, text="conf"), buckets=48)
    assert with_text.total == 60


def test_days_begin_at_the_readers_midnight(events, keep, tenant):
    # 2026-11-20 00:30 in Tokyo is the day before in UTC.
    keep(an_event(at=1795102200.0), now=1795102300.0)
    query = EventQuery(since=1795014000.0, until=1795186800.0)
    tokyo = events.series(principal(tenant), query, buckets=2, time_zone="Asia/Tokyo")
    assert tokyo.step_seconds == 86400
    assert [line.counts for line in tokyo.lines] == [(0, 1)]
    with pytest.raises(InputError, match="not a time zone"):
        events.series(principal(tenant), query, time_zone="Mars/Olympus")


def test_the_top_of_a_field_counts_events_and_computers(events, keep, tenant):
    keep(*[an_event("/often") for _ in range(3)], an_event("/once"))
    keep(an_event("/often"), computer_id="d" * 32)
    ranked = events.top(principal(tenant), EventQuery(), "subject")
    assert [(row.value, row.count, row.computer_count) for row in ranked] == [("/often", 4, 2), ("/once", 1, 1)]
    assert [(row.value, row.count) for row in events.top(principal(tenant), EventQuery(), "computer_id")] == [
        ("c" * 32, 4),
        ("d" * 32, 1),
    ]
    assert [(row.value, row.count) for row in events.top(principal(tenant), EventQuery(), "severity")] == [("high", 5)]
    with pytest.raises(InputError, match="cannot be ranked"):
        events.top(principal(tenant), EventQuery(), "details")


def test_the_tail_brings_each_event_once_in_the_order_of_arrival(events, keep, tenant):
    keep(an_event("/before"))
    asker = principal(tenant)
    begin = events.tail(asker, EventQuery())
    assert begin.items == ()
    keep(an_event("/spooled yesterday", at=time.time() - 86400), an_event("/now"))
    keep(an_event("/later"))
    first = events.tail(asker, EventQuery(), begin.cursor, limit=2)
    second = events.tail(asker, EventQuery(), first.cursor, limit=2)
    assert sorted(row.subject for row in first.items) == ["/now", "/spooled yesterday"]
    assert [row.subject for row in second.items] == ["/later"]
    assert events.tail(asker, EventQuery(), second.cursor) == type(second)((), second.cursor)
    assert events.tail(asker, EventQuery(subject="/later"), begin.cursor).items == second.items


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "WzEsMl0", "WyIxIiwiMiJd", "é" * 10, "A" * 9000])
def test_a_cursor_that_is_none_is_told(events, tenant, cursor):
    if cursor:
        with pytest.raises(InputError, match="is not a cursor"):
            events.search(principal(tenant), EventQuery(), cursor)


@pytest.mark.parametrize(
    "query",
    [
        EventQuery(since=10.0, until=5.0),
        EventQuery(since=-1.0),
        EventQuery(until=float("inf")),
        EventQuery(text="x" * 501),
        EventQuery(computer_ids=("c",) * 10_001),
    ],
)
def test_a_query_that_cannot_be_meant_is_told(events, tenant, query):
    with pytest.raises(InputError):
        events.search(principal(tenant), query)


def test_tags_stand_beside_events_and_can_be_searched(events, keep, tenant, state):
    first, second = an_event("/first"), an_event("/second")
    keep(first, second)
    asker = principal(tenant)
    assert events.tags.add(asker, [first.event_id, second.event_id, new_id()], " 確認済み ") == 2
    assert events.tags.add(asker, [first.event_id], "確認済み") == 1
    assert events.tags.add(asker, [first.event_id], "urgent") == 1
    assert [row.tags for row in events.search(asker, EventQuery(subject="/first")).items] == [("urgent", "確認済み")]
    assert subjects(events.search(asker, EventQuery(tag="urgent"))) == ["/first"]
    assert [(row.tag, row.event_count) for row in events.tags.in_use(asker)] == [("確認済み", 2), ("urgent", 1)]
    assert events.tags.remove(asker, [first.event_id], "urgent") == 1
    assert events.get(asker, first.event_id).tags == ("確認済み",)
    assert events.count(asker, EventQuery()) == 2
    entries = AuditService(state).list(asker).items
    assert [entry.action for entry in entries] == ["event.untag", "event.tag", "event.tag", "event.tag"]
    assert entries[-1].summary == "2 events tagged as '確認済み'"


@pytest.mark.parametrize("tag", ["", "  ", "x" * 51, "two\nlines", "\x00"])
def test_a_tag_that_cannot_be_read_is_refused(events, tenant, tag):
    with pytest.raises(InputError, match="cannot be a tag"):
        events.tags.add(principal(tenant), ["0" * 32], tag)


def test_the_csv_file_holds_every_event_and_no_formula(events, keep, tenant):
    keep(*many_events(1200), an_event("=HYPERLINK(1)", message='with "quotes", and commas'))
    lines = list(events.export_csv(principal(tenant), EventQuery(), "ja"))
    assert lines[0].startswith("\ufeff検知日時,")
    assert len(lines) == 1202
    formula = next(line for line in lines if "HYPERLINK" in line)
    assert ",'=HYPERLINK(1)," in formula
    assert '"with ""quotes"", and commas"' in formula
