"""What a hostile customer or a hostile agent sends about software: a clear answer, and nobody else's pages break."""

import math
import time

import pytest

from keibi.contract.events import EventBatch, EventReceipt
from keibi.contract.names import new_id
from keibi.errors import InputError
from keibi.manager.events.reach import Reach
from keibi.manager.rules.model import RuleInvalidError
from keibi.manager.software import changes
from keibi.manager.software.model import ChangeFilter, DecisionRequest
from keibi.protection.application_control.rules import HashEntry, InterpreterEntry, RuleAction, SignerEntry
from tests.manager_running import SimulatedAgent, administrator
from tests.unit.manager.software.making import a_change

LONG_PATH = "/" + "/".join(["d" * 250] * 32)  # 8,032 characters: escaped names are longer than PATH_MAX


@pytest.fixture
def api(client, manager):
    return administrator(client, manager)


def all_pages(world, by, limit=1):
    keys, cursor = [], None
    while True:
        page = world.software.changes(world.alice, ChangeFilter(), by, cursor, limit)
        keys += [group.key for group in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return keys


@pytest.mark.parametrize("by", ["hash", "place", "bringer"])
def test_names_of_any_length_do_not_end_the_list(sqlite_world, by):
    world = sqlite_world
    events = [
        a_change(f"{LONG_PATH}/{number}", sha256=None, process=f"{LONG_PATH}/p{number}", ago=number // 2) for number in range(4)
    ]
    world.tell(world.world.computer("web-1"), *events)
    keys = all_pages(world, by)
    assert len(keys) == len(set(keys)) == 4


def test_details_that_no_record_has_do_not_break_the_list_of_others(sqlite_world):
    world = sqlite_world
    odd = [
        {"size": 10**30}, {"size": -1}, {"size": math.inf}, {"repeat_count": 2**64 - 1}, {"repeat_count": math.nan},
        {"sha256": "\ud800"}, {"sha256": "a" * 100_000}, {"file_type": "\x00\x1b[31m"}, {"package": {"name": "\udfff" * 3}},
        {"brought_by": {"user": ["x"], "process": {"a": 1}}}, {"reason_code": None}, {"is_proof": "no"}, {"sha256": 5},
    ]  # fmt: skip
    computer = world.world.computer("web-1")
    for number, details in enumerate(odd):
        try:
            world.tell(computer, a_change(f"/odd/{number}", name=str(number), **details))
        except UnicodeEncodeError:
            continue  # what no message can carry
    world.tell(computer, a_change("/good", name="good", ago=9))
    for by in ("hash", "computer", "bringer", "place"):
        assert all_pages(world, by, 3)


def test_a_filter_of_thousands_of_computers_is_no_fault(sqlite_world):
    world = sqlite_world
    computer = world.world.computer("web-1")
    world.tell(computer, a_change("/opt/a"))
    ids = (*(new_id() for _ in range(9_000)), computer)
    assert world.software.count(world.alice, ChangeFilter(computer_ids=ids)) == 1
    reader = changes.ChangeReader(world.store)
    assert reader.count(Reach(frozenset(), {world.tenant_id: frozenset(ids)}), [], ChangeFilter(), "hash") == 1


@pytest.mark.parametrize("at", [math.inf, -math.inf, math.nan, 1e300])
def test_a_period_that_is_no_time_is_said(sqlite_world, at):
    world = sqlite_world
    world.tell(world.world.computer("web-1"), a_change("/opt/a"))
    for name in ("since", "until"):
        with pytest.raises(InputError) as refused:
            world.software.changes(world.alice, ChangeFilter(**{name: at}))
        assert refused.value.code == "time_invalid"


@pytest.mark.parametrize(
    "entry",
    [HashEntry(sha256="a" * 400_000), InterpreterEntry(path="/" + "p" * 400_000), SignerEntry(key_id="F" * 400_000)],
    ids=["hash", "interpreter", "signer"],
)
def test_an_entry_that_fits_no_ruleset_is_refused_and_not_tried_for_ever(sqlite_world, entry):
    world = sqlite_world
    began_at = time.monotonic()
    with pytest.raises((InputError, RuleInvalidError)):
        world.software.decisions.preview(world.alice, DecisionRequest(action=RuleAction.BLOCK, entries=(entry,)))
    assert time.monotonic() - began_at < 5


def test_bodies_and_cursors_of_another_shape_get_a_clear_answer(api):
    made = api.post("/api/v1/software/decisions", json={"action": "block", "sha256": ["a" * 64]})
    assert made.status_code == 201, made.text
    ruleset = "/api/v1/software/rulesets/ac-own-blocked-software/entries"
    asked = [
        api.post(f"{ruleset}/remove", json={"entries": [{"kind": "hash"}]}),
        api.post(f"{ruleset}/remove", json={"entries": [{"kind": "nothing", "a": 1}, {}]}),
        api.get(ruleset, params={"cursor": "WyJhIl0"}),  # ["a"]
        api.get(ruleset, params={"cursor": "W251bGxd"}),  # [null]
        api.get("/api/v1/software/decisions", params={"cursor": "WyJhIiwxXQ"}),  # ["a",1]
        api.get("/api/v1/software/decisions", params={"cursor": "WzFlMzA4LCJhXHUwMDAwIl0"}),  # [1e308,"a\u0000"]
        api.get("/api/v1/software/changes", params={"since": "inf"}),
        api.get("/api/v1/software/changes", params={"until": "nan"}),
        api.get("/api/v1/software/changes", params={"text": "\x00"}),
        api.get("/api/v1/software/decisions/a%00b"),
        api.post("/api/v1/software/decisions/a%00b/undo", json={"expected_version": 10**40}),
        api.post("/api/v1/software/decisions", json={"action": "block", "sha256": ["a" * 64], "note": "\x00", "rule_id": "\x00"}),
        api.post("/api/v1/software/decisions", json={"action": "block", "sha256": ["b" * 64], "note": "n\x00"}),
        api.post("/api/v1/software/decisions", json={"action": "block", "sha256": ["a" * 64], "tenant_id": "\x00"}),
        api.post("/api/v1/software/maintenance", json={"computer_ids": ["\x00"], "minutes": 1}),
        api.post("/api/v1/software/maintenance", json={"group_ids": ["\x00"], "minutes": 1}),
        api.post("/api/v1/computers/%00/unlock-code", json={"challenge": "AAAA-AAAA"}),
    ]
    for response in asked:
        assert response.status_code < 500, (response.request.url, response.text)
        if response.status_code >= 400:
            assert response.json()["error"]["code"], response.text


def test_a_stolen_key_speaks_for_its_own_computer_only(api, client):
    token = api.post("/api/v1/enrolment-tokens", json={"name": "t", "max_uses": 2}).json()["secret"]
    victim = SimulatedAgent(client, "victim").enrol(token).get_access()
    thief = SimulatedAgent(client, "thief").enrol(token).get_access()
    forged = a_change("/opt/forged", computer_id=victim.computer_id, tenant_id=new_id())
    thief.post("events", EventBatch(new_id(), [forged]), EventReceipt)
    (group,) = api.get("/api/v1/software/changes").json()["items"]
    assert group["computer_ids"] == [thief.computer_id]
