"""Pattern sets over REST: imported, used by policies, fetched by agents, returned, shared, deleted."""

import asyncio
import hashlib
import os
import shutil

import pytest
from sqlalchemy import select

from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse
from keibi.contract.names import ModuleId
from keibi.errors import TryLaterError
from keibi.manager.audit.tables import AuditRecord
from keibi.manager.composition import make_manager
from keibi.manager.database import Scope
from keibi.manager.patterns import api as patterns_api
from keibi.manager.patterns import records
from keibi.manager.patterns import store as stores
from keibi.manager.patterns.model import MAX_REFUSED_LISTED
from keibi.manager.patterns.slots import ImportSlots
from keibi.protection.catalog import MODULES
from tests.manager_running import QUICK, SimulatedAgent, config_for, serving, shipped, signed_in

PASSWORD = "correct horse battery staple"
RULE = b'rule one { meta: license = "MIT" strings: $a = "zq-one-zq" condition: $a }'
OTHER = b'rule two { strings: $a = "zq-two-zq" condition: $a }\nrule bad { condition: $nowhere }'


class Console:
    """Somebody who calls the API: who is signed in, or whoever has a key."""

    def __init__(self, client, key=""):
        self.client = client
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def call(self, method, path, status=200, **options):
        headers = {**self.headers, **options.pop("headers", {})}
        response = self.client.request(method, f"/api/v1{path}", headers=headers, **options)
        assert response.status_code == status, response.text
        return response.json() if response.content else None

    def load(self, data=RULE, status=201, **query):
        return self.call("POST", "/patterns/import", status, content=data, params={"file_name": "set.yar", **query})

    def policy_id(self, name="Linux"):
        return next(policy["policy_id"] for policy in self.call("GET", "/policies") if policy["name"] == name)

    def agent(self):
        secret = self.call("POST", "/enrolment-tokens", 201, json={"name": "t", "max_uses": 9})["secret"]
        return SimulatedAgent(self.client).enrol(secret).get_access()


@pytest.fixture
def manager(tmp_path, sqlite_template, shared_event_daemon):
    """A manager on SQLite: each import is a process of its own, and only sharing makes a difference to the database."""
    path = tmp_path / "manager.sqlite3"
    shutil.copyfile(sqlite_template, path)
    made = make_manager(config_for(f"sqlite:///{path}", shared_event_daemon, tmp_path / "state"), QUICK, shipped())
    yield made
    made.close()


@pytest.fixture
def manager_on_each_database(database_url, shared_event_daemon, tmp_path):
    made = make_manager(config_for(database_url, shared_event_daemon, tmp_path / "state"), QUICK, shipped())
    yield made
    made.close()


@pytest.fixture
def console(manager):
    yield from console_of(manager)


@pytest.fixture
def console_on_each_database(manager_on_each_database):
    yield from console_of(manager_on_each_database)


def console_of(manager):
    with serving(manager) as client:
        first = manager.first_administrator
        signed_in(client, first.name, first.password)
        body = {"old": first.password, "new": PASSWORD}
        assert client.post("/api/v1/auth/password", json=body).status_code < 300
        yield Console(signed_in(client, first.name, PASSWORD))


def content_of(agent):
    versions = {module.module.value: module.settings_version for module in MODULES}
    asked = HeartbeatRequest(policy_generation=0, status_digest="", facts_digest="", settings_versions=versions)
    policy = agent.post("heartbeat", asked, HeartbeatResponse).policy
    part = next(part for part in policy.modules if part.module is ModuleId.ANTI_MALWARE)
    return policy.generation, part.content


def fetch(agent, sha256, **headers):
    identity = {"Authorization": f"Bearer {agent.access_token}", "Cookie": ""}
    return agent.client.get(f"/agent/v1/content/{sha256}", headers={**identity, **headers})


def test_a_set_is_imported_used_and_fetched_whole_or_in_parts(console):
    made = console.load(licence="bought", description="ours")
    assert made["report"]["accepted"] == {"rules": 1}
    assert made["report"]["licences"] == [{"name": "MIT", "count": 1}]
    assert made["pattern_set"]["name"] == "set"
    assert made["pattern_set"]["current"]["licence"] == "bought"
    set_id = made["pattern_set"]["set_id"]
    agent = console.agent()
    assert content_of(agent)[1] == []
    refused = fetch(agent, made["contents"][0]["sha256"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "content_not_found")

    assert (
        console.call("POST", f"/patterns/{set_id}/assign", json={"policy_id": console.policy_id()})["preview"]["computer_count"]
        == 1
    )
    _, references = content_of(agent)
    assert [(one.kind, one.name) for one in references] == [("yara_source", "set.yar")]
    whole = fetch(agent, references[0].sha256)
    assert whole.status_code == 200
    assert hashlib.sha256(whole.content).hexdigest() == references[0].sha256
    part = fetch(agent, references[0].sha256, Range="bytes=3-9")
    assert (part.status_code, part.content) == (206, whole.content[3:10])
    assert agent.client.get(f"/agent/v1/content/{references[0].sha256}").status_code == 401
    detail = console.call("GET", f"/patterns/{set_id}")
    assert [use["name"] for use in detail["uses"]] == ["Base > Linux"]
    in_use = console.call("DELETE", f"/patterns/{set_id}", 400)
    assert in_use["error"]["code"] == "pattern_set_in_use"


def test_versions_are_kept_and_returned_to_on_purpose(console):
    set_id = console.load()["pattern_set"]["set_id"]
    console.call("POST", f"/patterns/{set_id}/assign", json={"policy_id": console.policy_id()})
    agent = console.agent()
    generation, first = content_of(agent)
    second = console.load(OTHER)
    assert second["pattern_set"]["set_id"] == set_id
    assert second["report"]["refused"][0] == {
        "where": "set.yar:2",
        "what": "bad",
        "reason": second["report"]["refused"][0]["reason"],
        "code": "yara_invalid",
    }
    newer, changed = content_of(agent)
    assert newer > generation
    assert changed[0].sha256 != first[0].sha256
    version = second["pattern_set"]["version"]
    back = console.call("POST", f"/patterns/{set_id}/return", json={"number": 1, "expected_version": version})
    assert back["current"]["number"] == 1
    assert content_of(agent)[1] == first
    assert fetch(agent, changed[0].sha256).status_code == 404
    stale = console.call("POST", f"/patterns/{set_id}/return", 409, json={"number": 2, "expected_version": version})
    assert stale["error"]["code"] == "changed_meanwhile"
    console.call("POST", f"/patterns/{set_id}/return", 404, json={"number": 7})
    third = console.load(OTHER)["pattern_set"]
    assert (third["current"]["number"], third["version_count"]) == (3, 3)


def test_a_trial_only_reports(console):
    tried = console.load(OTHER, 200, dry_run=True)
    assert not tried["is_kept"]
    assert tried["report"]["refused_count"] == 1
    assert console.call("GET", "/patterns") == []


def test_policies_name_only_sets_that_there_are(console):
    console.load(name="yara-forge")
    policy_id = console.policy_id()
    version = console.call("GET", f"/policies/{policy_id}")["version"]
    change = {"modules": {"anti_malware": {"settings": {"pattern_sets": ["yara-forg"]}}}, "expected_version": version}
    refused = console.call("PATCH", f"/policies/{policy_id}", 400, json=change)
    assert refused["error"]["code"] == "pattern_set_unknown"
    assert "did you mean 'yara-forge'?" in refused["error"]["hint"]
    change["modules"]["anti_malware"]["settings"]["pattern_sets"] = ["Not A Name"]
    console.call("PATCH", f"/policies/{policy_id}", 400, json=change)


def test_shared_sets_are_for_all_customers_and_changed_by_the_provider_alone(console_on_each_database):
    console = console_on_each_database
    shared = console.load(name="shared", for_all=True)["pattern_set"]
    assert shared["is_shared"]
    tenant = console.call("POST", "/tenants", 201, json={"name": "Customer"})["tenant_id"]
    there = {"X-Keibi-Tenant": tenant}
    key = {"name": "carol", "role_id": "administrator", "tenant_id": tenant}
    carol = Console(console.client, console.call("POST", "/api-keys", 201, json=key, headers=there)["secret"])
    assert [one["name"] for one in carol.call("GET", "/patterns")] == ["shared"]
    carol.call("POST", f"/patterns/{shared['set_id']}/assign", json={"policy_id": carol.policy_id()})
    agent = carol.agent()
    assert [one.name for one in content_of(agent)[1]] == ["shared.yar"]
    carol.call("POST", f"/patterns/{shared['set_id']}/return", 403, json={"number": 1})
    carol.call("DELETE", f"/patterns/{shared['set_id']}", 403)
    carol.call("POST", "/patterns/import", 403, content=RULE, params={"file_name": "a.yar", "for_all": True})
    own = carol.load(OTHER, name="shared")["pattern_set"]
    assert not own["is_shared"]
    assert content_of(agent)[1][0].sha256 == own["current"]["contents"][0]["sha256"]
    used = console.call("GET", f"/patterns/{shared['set_id']}")["uses"]
    assert used == []  # what the customer names is their own by now


def test_deleting_takes_the_contents_away_after_a_while(console, manager, monkeypatch):
    made = console.load()
    path = manager.services.patterns.store.path_of(made["contents"][0]["sha256"])
    console.call("DELETE", f"/patterns/{made['pattern_set']['set_id']}", 204)
    with open(path, "rb") as file:
        assert file.read().endswith(b"}\n")  # young: an import of the same file may be under way
    monkeypatch.setattr(stores, "YOUNG_SECONDS", -1.0)
    kept = console.load(OTHER)
    assert not os.path.exists(path)
    assert manager.services.patterns.store.path_of(kept["contents"][0]["sha256"])


def test_every_change_is_in_the_audit_trail_and_needs_the_right(console, manager):
    made = console.load()["pattern_set"]
    console.load(OTHER)
    console.call("POST", f"/patterns/{made['set_id']}/return", json={"number": 1})
    console.call("DELETE", f"/patterns/{made['set_id']}", 204)
    with manager.services.database.session(Scope.system("test"), writes=False) as session:
        said = session.scalars(select(AuditRecord.action).where(AuditRecord.target_type == "pattern_set")).all()
    assert sorted(said) == ["pattern.delete", "pattern.import", "pattern.import", "pattern.return"]
    key = console.call(
        "POST", "/api-keys", 201, json={"name": "k", "role_id": "auditor", "tenant_id": manager.first_administrator.tenant_id}
    )
    headers = {"Authorization": f"Bearer {key['secret']}"}
    assert console.client.get("/api/v1/patterns", headers=headers).status_code == 200
    answer = console.client.post("/api/v1/patterns/import", content=RULE, params={"file_name": "a.yar"}, headers=headers)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("data", "query", "status", "code"),
    [
        (b"", {}, 400, "upload_empty"),
        (b"nothing of use", {}, 400, "import_empty"),
        (RULE, {"name": "Big Name"}, 400, "pattern_name"),
        (b"PK\x03\x04broken", {"file_name": "a.zip"}, 400, "upload_broken"),
    ],
)
def test_what_cannot_be_imported_says_why(console, data, query, status, code):
    refused = console.load(data, status, **query)
    assert refused["error"]["code"] == code
    assert refused["error"]["message"]


def test_an_import_of_one_customer_keeps_no_other_waiting():
    slots = ImportSlots()
    with slots.taken("one"):
        with pytest.raises(TryLaterError) as busy, slots.taken("one"):
            raise AssertionError("the same customer imports twice at once")
        assert busy.value.code == "import_busy"
        with slots.taken("two"), pytest.raises(TryLaterError), slots.taken("three"):
            raise AssertionError("three import at once")
    with slots.taken("one"):
        pass


def test_the_sets_of_one_customer_have_a_limit(console, monkeypatch):
    console.load()
    monkeypatch.setattr(records, "MAX_SETS", 1)
    assert console.load(OTHER, 400, name="second")["error"]["code"] == "patterns_full"
    console.load(OTHER)  # the next version of the one that there is
    monkeypatch.setattr(records, "MAX_CUSTOMER_BYTES", 100)
    assert console.load(RULE, 400)["error"]["code"] == "patterns_full"
    assert len(console.call("GET", "/patterns")) == 1


def test_a_disk_that_is_nearly_full_takes_no_upload(console, monkeypatch):
    monkeypatch.setattr(stores, "SPARE_BYTES", 2**62)
    assert console.load(status=503)["error"]["code"] == "content_full"


def test_an_upload_that_stands_still_is_ended(monkeypatch):
    monkeypatch.setattr(patterns_api, "PAUSE_SECONDS", 0.05)

    class Stalled:
        async def stream(self):
            await asyncio.Event().wait()
            yield b""

    with pytest.raises(TryLaterError) as ended:
        asyncio.run(patterns_api._receive(Stalled(), os.devnull, stores.ContentStore("/")))
    assert ended.value.code == "body_incomplete"


def test_what_an_import_left_behind_is_swept_away_after_a_day(tmp_path, monkeypatch):
    store = stores.ContentStore(str(tmp_path))
    (tmp_path / ".import-left").mkdir()
    (tmp_path / ".import-left" / "upload").write_bytes(b"x")
    store.keep_only(())
    assert (tmp_path / ".import-left").exists()
    monkeypatch.setattr(stores, "LEFT_SECONDS", -1.0)
    store.keep_only(())
    assert os.listdir(tmp_path) == []


def test_odd_names_of_files_and_long_reports_do_no_harm(console):
    bad = b"".join(b"rule bad%d { condition: $nowhere }\n" % number for number in range(30))
    made = console.load(RULE + b"\n" + bad, file_name="a\x00\x1b[31m/../..\\b.yar", name="odd")
    assert made["report"]["refused_count"] == 30
    assert made["pattern_set"]["current"]["file_name"].isprintable()
    (listed,) = console.call("GET", "/patterns")
    assert len(listed["current"]["report"]["refused"]) == MAX_REFUSED_LISTED
    assert listed["current"]["report"]["refused_count"] == 30
    assert len(console.call("GET", f"/patterns/{listed['set_id']}")["current"]["report"]["refused"]) == 30
