"""Agents: becoming known, proving who they are, heartbeats, commands, wake-ups and events."""

import threading
import time

import msgspec
import pytest
import zstandard

from keibi.contract.codec import CONTENT_TYPE, encode
from keibi.contract.commands import CommandKind, CommandResult, CommandState
from keibi.contract.enrolment import ChallengeRequest, EnrolResponse, TokenResponse
from keibi.contract.events import Event, EventBatch, EventReceipt
from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse, WakeResponse
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.contract.status import Health, NotEnforced
from keibi.manager.computers.model import ComputerState
from keibi.protection.catalog import MODULES
from tests.manager_running import SimulatedAgent, administrator, facts, status


@pytest.fixture
def api(client, manager):
    return administrator(client, manager)


@pytest.fixture
def provider(manager, api):
    return manager.services.access.authenticate_session(api.cookies["__Host-keibi"])


def token(api, **body):
    response = api.post("/api/v1/enrolment-tokens", json={"name": "test", **body})
    assert response.status_code == 201, response.text
    return response.json()["secret"]


@pytest.fixture
def agent(api, client):
    return SimulatedAgent(client).enrol(token(api)).get_access()


def error_of(response, status_code):
    assert response.status_code == status_code, response.text
    return response.json()["error"]


def beat(agent, generation=0, **more):
    more = {"status_digest": "s1", "facts_digest": "f1", **more}
    request = HeartbeatRequest(policy_generation=generation, **more)
    return agent.post("heartbeat", request, HeartbeatResponse)


def full_beat(agent, generation=0, **more):
    return beat(agent, generation, status=status(generation), facts=agent.facts, **more)


class TestEnrolment:
    def test_a_token_is_bound_to_group_policy_and_count(self, api, client, manager, provider):
        group = api.post("/api/v1/groups", json={"name": "Web"}).json()["group_id"]
        policy = manager.services.policies.tree(provider)[0].policy_id
        secret = token(api, group_id=group, policy_id=policy, max_uses=2)
        first, second, third = (SimulatedAgent(client, f"web{number}") for number in range(3))
        first.enrol(secret)
        second.enrol(secret)
        assert error_of(third.post("enrol", third.enrol_request(secret)), 403)["code"] == "enrolment_token_used"
        computer = api.get(f"/api/v1/computers/{first.computer_id}").json()
        assert (computer["group_id"], computer["policy_id"], computer["state"]) == (group, policy, "never")
        assert computer["facts"]["os_name"] == "debian"

    def test_a_token_used_by_many_at_once_is_never_used_too_often(self, api, client):
        secret = token(api, max_uses=3)
        agents = [SimulatedAgent(client, f"web{number}") for number in range(8)]
        codes = []

        def enrol(agent):
            codes.append(agent.post("enrol", agent.enrol_request(secret)).status_code)

        threads = [threading.Thread(target=enrol, args=(agent,)) for agent in agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes) == [200] * 3 + [403] * 5
        assert api.get("/api/v1/computers").json()["total"] == 3

    def test_the_same_request_again_gives_the_same_answer_and_counts_once(self, api, client):
        secret = token(api)
        agent = SimulatedAgent(client)
        request = agent.enrol_request(secret)
        assert agent.post("enrol", request, EnrolResponse) == agent.post("enrol", request, EnrolResponse)
        assert api.get("/api/v1/enrolment-tokens").json()["items"][0]["uses"] == 1

    def test_unknown_revoked_and_expired_tokens_are_told_apart(self, api, client, manager):
        agent = SimulatedAgent(client)
        assert error_of(agent.post("enrol", agent.enrol_request("ke_junk")), 403)["code"] == "enrolment_token_unknown"
        made = api.post("/api/v1/enrolment-tokens", json={"name": "t"}).json()
        assert api.delete(f"/api/v1/enrolment-tokens/{made['token']['token_id']}").json()["is_usable"] is False
        error = error_of(agent.post("enrol", agent.enrol_request(made["secret"])), 403)
        assert error["code"] == "enrolment_token_revoked"
        assert error["hint"] == "make a new one"

    def test_who_does_not_hold_the_key_cannot_enrol_it(self, api, client):
        secret = token(api)
        agent = SimulatedAgent(client)
        other = SimulatedAgent(client)
        for request in (
            agent.enrol_request(secret, signature=bytes(64)),
            agent.enrol_request(secret, public_key=other.public_key),
            agent.enrol_request(secret, public_key=b"short"),
            agent.enrol_request(secret, signature=b""),
        ):
            assert error_of(agent.post("enrol", request), 400)["code"] == "enrolment_signature"

    def test_a_key_on_another_machine_is_refused_and_raises_an_alarm(self, api, client, agent):
        clone = SimulatedAgent(client, "clone")
        clone.key = agent.key
        for _ in range(2):
            assert error_of(clone.post("enrol", clone.enrol_request(token(api))), 400)["code"] == "key_in_use"
        (alarm,) = api.get("/api/v1/identity-alarms").json()["items"]
        assert (alarm["kind"], alarm["computer_id"], alarm["count"]) == ("key_on_other_machine", agent.computer_id, 2)
        assert "clone" in alarm["detail"]
        full_beat(agent)
        problems = api.get(f"/api/v1/computers/{agent.computer_id}").json()["problems"]
        assert "identity_alarm" in {problem["code"] for problem in problems}
        assert api.post(f"/api/v1/identity-alarms/{alarm['alarm_id']}/resolve").status_code == 200
        assert api.get("/api/v1/identity-alarms").json()["items"] == []

    def test_another_key_on_the_same_machine_raises_an_alarm(self, api, client, agent):
        SimulatedAgent(client, "web1-again", agent.facts.machine_id).enrol(token(api))
        (alarm,) = api.get("/api/v1/identity-alarms").json()["items"]
        assert alarm["kind"] == "machine_with_other_key"

    def test_an_identity_that_moves_to_another_machine_raises_an_alarm(self, api, agent):
        beat(agent, status=status(), facts=facts("elsewhere", "x" * 32))
        (alarm,) = api.get("/api/v1/identity-alarms").json()["items"]
        assert alarm["kind"] == "machine_id_changed"


class TestProof:
    def test_each_challenge_counts_once(self, agent):
        request = agent.token_request()
        agent.post("token", request, TokenResponse)
        assert error_of(agent.post("token", request), 401)["code"] == "challenge_used"

    def test_a_challenge_is_for_one_computer(self, api, client, agent):
        other = SimulatedAgent(client, "web2").enrol(token(api))
        request = agent.token_request()
        foreign = msgspec.structs.replace(request, computer_id=other.computer_id)
        assert error_of(agent.post("token", foreign), 401)["code"] == "challenge_invalid"

    def test_an_unknown_computer_and_a_wrong_key_look_alike(self, client, agent):
        impostor = SimulatedAgent(client)
        impostor.computer_id = agent.computer_id
        stranger = SimulatedAgent(client)
        stranger.computer_id = new_id()
        errors = [error_of(who.post("token", who.token_request()), 401) for who in (impostor, stranger)]
        assert errors[0] == errors[1]
        assert errors[0]["code"] == "identity_unknown"

    @pytest.mark.parametrize("path", ["heartbeat", "events"])
    def test_without_a_valid_token_nothing_is_taken(self, agent, path):
        for junk in ("", "x", "A" * 107, agent.access_token[:-2] + "xx", "A" * 5000):
            response = agent.post(path, EventBatch("b", []), token=junk)
            assert error_of(response, 401)["code"] in ("token_invalid", "token_missing")
            assert response.headers["www-authenticate"] == "Bearer"

    def test_disabling_refuses_at_once_and_enabling_lets_in_again(self, api, agent):
        full_beat(agent)
        api.patch(f"/api/v1/computers/{agent.computer_id}", json={"is_enabled": False})
        assert error_of(agent.post("heartbeat", HeartbeatRequest(0, "s1", "f1")), 401)["code"] == "token_revoked"
        assert error_of(agent.post("events", EventBatch("b", [])), 401)["code"] == "token_revoked"
        assert error_of(agent.post("token", agent.token_request()), 403)["code"] == "computer_disabled"
        api.patch(f"/api/v1/computers/{agent.computer_id}", json={"is_enabled": True})
        full_beat(agent.get_access())

    def test_removing_refuses_at_once(self, api, agent):
        assert api.delete(f"/api/v1/computers/{agent.computer_id}").status_code == 204
        assert error_of(agent.post("heartbeat", HeartbeatRequest(0, "s1", "f1")), 401)["code"] == "token_revoked"
        assert error_of(agent.post("token", agent.token_request()), 401)["code"] == "identity_unknown"

    def test_disabling_a_customer_refuses_its_agents(self, api, client):
        tenant = api.post("/api/v1/tenants", json={"name": "Acme"}).json()["tenant_id"]
        made = api.post("/api/v1/enrolment-tokens", json={"name": "t"}, headers={"X-Keibi-Tenant": tenant}).json()
        agent = SimulatedAgent(client).enrol(made["secret"]).get_access()
        api.patch(f"/api/v1/tenants/{tenant}", json={"is_enabled": False})
        assert error_of(agent.post("heartbeat", HeartbeatRequest(0, "s1", "f1")), 401)["code"] == "token_revoked"

    def test_revocations_are_known_after_a_restart(self, api, agent, manager):
        api.patch(f"/api/v1/computers/{agent.computer_id}", json={"is_enabled": False})
        manager.revocations._revoked = {}
        manager.revocations.load()
        assert error_of(agent.post("heartbeat", HeartbeatRequest(0, "s1", "f1")), 401)["code"] == "token_revoked"


class TestHeartbeats:
    def test_the_policy_comes_once_and_then_unchanged(self, agent, api):
        first = full_beat(agent)
        assert first.policy is not None
        assert [module.module for module in first.policy.modules] == [module.module for module in MODULES]
        generation = first.policy.generation
        again = beat(agent, generation)
        assert again.policy is None
        assert not again.want_status
        assert not again.want_facts
        computer = api.get(f"/api/v1/computers/{agent.computer_id}").json()
        assert (computer["state"], computer["generation_wanted"], computer["generation_received"]) == (
            "online",
            generation,
            generation,
        )

    def test_what_the_manager_does_not_have_is_asked_for(self, agent):
        first = beat(agent)
        assert first.want_status
        assert first.want_facts
        full_beat(agent)
        other = beat(agent, status_digest="s2")
        assert other.want_status
        assert not other.want_facts

    def test_heartbeats_that_say_nothing_new_are_written_in_bulk(self, agent, api, manager):
        generation = full_beat(agent).policy.generation
        beat(agent, generation)
        seen_before = manager.heartbeats._seen.copy()
        beat(agent, generation)
        assert agent.computer_id in {**seen_before, **manager.heartbeats._seen}
        wait_for(lambda: not manager.heartbeats._seen)
        assert time.time() - api.get(f"/api/v1/computers/{agent.computer_id}").json()["last_heartbeat_at"] < 30

    def test_a_changed_policy_arrives_with_the_next_heartbeat(self, agent, api, manager, provider):
        policies = manager.services.policies
        generation = full_beat(agent).policy.generation
        for _ in range(2):
            assert beat(agent, generation).policy is None
        node = next(node for node in policies.tree(provider) if node.parent_id is None)
        change = msgspec.convert({"heartbeat_seconds": 120}, type_of_change())
        policies.change(provider, node.policy_id, change, node.version)
        wait_for(lambda: beat(agent, generation).policy is not None)
        assert beat(agent, generation).policy.generation > generation
        assert beat(agent, generation).heartbeat_seconds == 120

    def test_problems_and_drifts_are_counted_for_the_overview(self, agent, api):
        sick = status(health=Health.ERROR, is_safe_mode=True, safe_mode_reason="three crashes")
        module = msgspec.structs.replace(
            sick.modules[0],
            message="no fanotify",
            metrics={"drifts_waiting_count": 4.0},
            not_enforced=[NotEnforced("real-time", "the kernel is too old", "no_fanotify")],
        )
        beat(agent, status=msgspec.structs.replace(sick, modules=[module, *sick.modules[1:]]), facts=agent.facts)
        overview = api.get("/api/v1/overview").json()
        assert overview["states"] == {"online": 1, "offline": 0, "never": 0, "disabled": 0}
        assert overview["unprotected_count"] == 1
        assert overview["drift_count"] == 4
        assert set(overview["problem_counts"]) == {"safe_mode", "module_error", "not_enforced"}
        unprotected = api.get("/api/v1/computers/unprotected").json()
        assert [(entry["computer"]["hostname"], entry["problem"]["code"]) for entry in unprotected] == [
            ("web1", "safe_mode"),
            ("web1", "module_error"),
            ("web1", "not_enforced"),
        ]

    def test_text_from_an_agent_that_no_database_can_hold_is_kept_as_well_as_it_can(self, agent, api):
        evil = facts("a\x00b" + "x" * 400, agent.facts.machine_id, addresses=["1" * 100] * 100, os_pretty_name="\ud7ff" * 300)
        beat(agent, status=status(policy_error="\x00 \x1b[2J <script>"), facts=evil)
        computer = api.get(f"/api/v1/computers/{agent.computer_id}")
        assert computer.status_code == 200
        assert len(computer.json()["hostname"]) <= 255


def type_of_change():
    from keibi.manager.policies.overrides import PolicyChange

    return PolicyChange


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class TestCommands:
    def send(self, api, agent, kind="scan", **body):
        response = api.post(f"/api/v1/computers/{agent.computer_id}/commands", json={"kind": kind, **body})
        assert response.status_code == 202, response.text
        return response.json()["command_id"]

    def test_a_command_goes_out_with_a_heartbeat_and_its_results_come_back(self, agent, api):
        generation = full_beat(agent).policy.generation
        beat(agent, generation)
        command_id = self.send(api, agent, module="integrity_monitoring", arguments={"rules": ["a"]})
        (command,) = beat(agent, generation).commands
        assert (command.command_id, command.kind, command.arguments) == (command_id, CommandKind.SCAN, {"rules": ["a"]})
        # The answer may have been lost: it comes again until the agent says something about it.
        assert [again.command_id for again in beat(agent, generation).commands] == [command_id]
        half = CommandResult(command_id, CommandState.RUNNING, "half", 0.5, {}, 1.0)
        assert beat(agent, generation, results=[half]).commands == []
        assert api.get(f"/api/v1/commands/{command_id}").json()["progress"] == 0.5
        done = CommandResult(command_id, CommandState.DONE, "42 entities", 1.0, {"entities": 42}, 2.0)
        beat(agent, generation, results=[done])
        late = CommandResult(command_id, CommandState.RUNNING, "late", 0.7, {}, 1.5)
        beat(agent, generation, results=[late])
        found = api.get(f"/api/v1/commands/{command_id}").json()
        assert (found["state"], found["message"], found["result"]) == ("done", "42 entities", {"entities": 42})
        assert api.get(f"/api/v1/computers/{agent.computer_id}/commands").json()["total"] == 1

    def test_an_agent_cannot_answer_for_another(self, agent, api, client):
        other = SimulatedAgent(client, "web2").enrol(token(api)).get_access()
        command_id = self.send(api, agent)
        full_beat(other, results=[CommandResult(command_id, CommandState.DONE, "forged")])
        assert api.get(f"/api/v1/commands/{command_id}").json()["state"] == "pending"

    def test_a_command_that_nobody_fetches_expires(self, agent, api, manager):
        command_id = self.send(api, agent, expires_in_seconds=1)
        wait_for(lambda: api.get(f"/api/v1/commands/{command_id}").json()["state"] == "expired")
        assert full_beat(agent).commands == []
        manager.services.commands.expire()
        assert "did not fetch" in api.get(f"/api/v1/commands/{command_id}").json()["message"]

    def test_kinds_need_their_own_permissions(self, agent, api, manager, provider):
        role = manager.services.access.roles.create(provider, "Scanner", ["computers.view", "commands.run"])
        made = api.post("/api/v1/api-keys", json={"name": "scanner", "role_id": role.role_id}).json()
        key = {"Authorization": f"Bearer {made['secret']}", "Cookie": ""}
        path = f"/api/v1/computers/{agent.computer_id}/commands"
        assert api.post(path, json={"kind": "scan"}, headers=key).status_code == 202
        for kind in ("restore", "preview_restore", "decide_drift"):
            assert error_of(api.post(path, json={"kind": kind}, headers=key), 403)["code"] == "not_allowed"

    def test_a_file_is_put_back_and_allowed_by_those_only_who_may_edit_policies(self, agent, api, manager, provider):
        path = f"/api/v1/computers/{agent.computer_id}/commands"
        plain = {"kind": "restore_quarantined", "module": "anti_malware", "arguments": {"quarantine_ids": ["a"]}}
        allowing = plain | {"arguments": plain["arguments"] | {"allow_until": "2099-01-01"}}
        for permission, answer in (("policies.edit", 202), ("commands.run", 403)):
            permissions = ["computers.view", "quarantine.manage", permission]
            role = manager.services.access.roles.create(provider, permission, permissions)
            made = api.post("/api/v1/api-keys", json={"name": permission, "role_id": role.role_id}).json()
            key = {"Authorization": f"Bearer {made['secret']}", "Cookie": ""}
            assert api.post(path, json=plain, headers=key).status_code == 202
            assert api.post(path, json=allowing, headers=key).status_code == answer

    def test_bad_commands_are_refused_with_the_reason(self, agent, api):
        path = f"/api/v1/computers/{agent.computer_id}/commands"
        assert error_of(api.post(path, json={"kind": "rm -rf"}), 422)["code"] == "request_invalid"
        assert error_of(api.post(path, json={"kind": "scan", "expires_in_seconds": 0}), 400)["code"] == "expiry_invalid"
        assert error_of(api.post(path, json={"kind": "scan", "colour": 1}), 422)["where"] == "body.colour"
        api.patch(f"/api/v1/computers/{agent.computer_id}", json={"is_enabled": False})
        assert error_of(api.post(path, json={"kind": "scan"}), 400)["code"] == "computer_disabled"


class TestWakeUps:
    def wake(self, agent, seconds):
        headers = {"Authorization": f"Bearer {agent.access_token}", "Cookie": ""}
        response = agent.client.get(f"/agent/v1/wake?seconds={seconds}", headers=headers)
        assert response.status_code == 200, response.text
        return msgspec.msgpack.decode(zstandard.decompress(response.content), type=WakeResponse).is_due

    def test_a_wait_ends_when_its_time_is_over(self, agent):
        full_beat(agent)
        assert self.wake(agent, 0.05) is False

    def test_a_command_wakes_its_agent_within_a_second(self, agent, api, manager):
        full_beat(agent)
        answered = []
        thread = threading.Thread(target=lambda: answered.append((self.wake(agent, 20), time.monotonic())))
        thread.start()
        wait_for(lambda: manager.wake_ups.waiting_count == 1)
        sent_at = time.monotonic()
        TestCommands().send(api, agent)
        thread.join()
        assert answered[0][0] is True
        assert answered[0][1] - sent_at < 1.0

    def test_a_wake_up_between_two_waits_is_not_lost_and_a_heartbeat_takes_it(self, agent, api):
        full_beat(agent)
        TestCommands().send(api, agent)
        assert self.wake(agent, 0.5) is True
        assert self.wake(agent, 0.5) is True
        beat(agent)
        assert self.wake(agent, 0.05) is False

    def test_an_edited_computer_is_woken_for_its_policy(self, agent, api):
        full_beat(agent)
        api.patch(f"/api/v1/computers/{agent.computer_id}", json={"policy_id": None, "note": "x"})
        assert self.wake(agent, 1.0) is True

    def test_nonsense_seconds_are_refused(self, agent):
        headers = {"Authorization": f"Bearer {agent.access_token}", "Cookie": ""}
        for seconds in ("x", "-1", "nan", "1e9"):
            response = agent.client.get(f"/agent/v1/wake?seconds={seconds}", headers=headers)
            assert error_of(response, 400)["code"] == "seconds_invalid"


class TestEvents:
    def event(self):
        return Event(
            event_id=new_id(),
            module=ModuleId.INTEGRITY_MONITORING,
            kind="file.updated",
            severity=Severity.HIGH,
            detected_at=time.time(),
            subject="/etc/passwd",
        )

    def test_events_are_searchable_when_they_are_acknowledged(self, agent, api):
        batch = EventBatch(new_id(), [self.event() for _ in range(3)])
        receipt = agent.post("events", batch, EventReceipt)
        assert receipt == EventReceipt(batch.batch_id, 3)
        found = api.get("/api/v1/events", params={"computer": agent.computer_id}).json()
        assert {row["event_id"] for row in found["items"]} == {event.event_id for event in batch.events}
        agent.post("events", batch, EventReceipt)
        assert api.get("/api/v1/events/count", params={"computer": agent.computer_id}).json()["event_count"] == 3

    def test_a_decompression_bomb_and_junk_are_refused(self, agent):
        headers = {"Content-Type": CONTENT_TYPE, "Authorization": f"Bearer {agent.access_token}", "Cookie": ""}
        bomb = zstandard.ZstdCompressor().compress(bytes(200 * 1024 * 1024))
        assert len(bomb) < 100_000
        for body, status_code, code in (
            (bomb, 413, "body_too_large"),
            (b"junk", 400, "body_malformed"),
            (b"", 400, "body_malformed"),
            (zstandard.compress(b"\xc1\xc1"), 400, "body_malformed"),
            (encode({"batch_id": 1}), 400, "body_invalid"),
            (encode([]), 400, "body_invalid"),
            (bytes(17 * 1024 * 1024), 413, "body_too_large"),
        ):
            assert error_of(agent.client.post("/agent/v1/events", content=body, headers=headers), status_code)["code"] == code

    def test_strangers_bodies_have_a_small_cap(self, client):
        bomb = zstandard.compress(bytes(10 * 1024 * 1024))
        assert error_of(client.post("/agent/v1/challenge", content=bomb), 413)["code"] == "body_too_large"
        assert error_of(client.post("/agent/v1/enrol", content=bytes(100_000)), 413)["code"] == "body_too_large"
        assert client.post("/agent/v1/challenge", content=encode(ChallengeRequest("nobody"))).status_code == 200


def test_states_follow_the_last_heartbeat(world):
    from keibi.manager.computers.service import state_of
    from keibi.manager.computers.tables import ComputerRecord, ReportRecord

    now = 1000.0
    for is_enabled, last, expected in (
        (True, None, ComputerState.NEVER),
        (True, now - 180, ComputerState.ONLINE),
        (True, now - 181, ComputerState.OFFLINE),
        (False, now, ComputerState.DISABLED),
    ):
        record, report = ComputerRecord(is_enabled=is_enabled), ReportRecord(last_heartbeat_at=last, heartbeat_seconds=60)
        assert state_of(record, report, now) is expected
