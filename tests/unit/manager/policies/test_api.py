"""Rules and policies over HTTP, as the OpenAPI document describes them."""

import types

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.testclient import TestClient

from keibi.errors import KeibiError
from keibi.manager.access.api import current_principal
from keibi.manager.http_errors import invalid_request, keibi_error
from keibi.manager.policies.api import router as policies_router
from keibi.manager.rules.api import router as rules_router
from tests.unit.manager.policies.world import OWN_RULE

SHOP = "keibi: policies/1\npolicies:\n  - {name: Shop, parent: Base > Linux}\n"


@pytest.fixture
def client(world):
    app = FastAPI(exception_handlers={KeibiError: keibi_error, RequestValidationError: invalid_request})
    app.include_router(policies_router)
    app.include_router(rules_router)
    app.state.services = types.SimpleNamespace(rules=world.rules, policies=world.policies)
    app.state.asker = world.alice
    app.dependency_overrides[current_principal] = lambda: app.state.asker
    with TestClient(app) as opened:
        yield opened


def answer(response, status=200):
    assert response.status_code == status, response.text
    return response.json() if response.content else None


def test_a_policy_is_seen_changed_and_returned_to(client, world):
    tree = answer(client.get("/api/v1/policies"))
    linux = next(node for node in tree if node["path"] == "Base > Linux")
    address = f"/api/v1/policies/{linux['policy_id']}"
    change = {
        "modules": {"integrity_monitoring": {"settings": {"cpu_percent": 25}, "rules": {"im-linux-at": {"severity": "low"}}}}
    }
    preview = answer(client.post(f"{address}/preview", json=change))
    assert next(line["sentence"]["ja"] for line in preview["lines"]) == "検索のCPU使用率：100 % → 25 %"
    applied = answer(client.patch(address, json={**change, "expected_version": preview["expected_version"]}))
    assert applied["version"] == linux["version"] + 1
    shown = answer(client.get(f"{address}/effective"))["modules"]["integrity_monitoring"]
    assert shown["settings"]["cpu_percent"]["value"] == 25
    assert shown["help"]["cpu_percent"]["title"]["ja"] == "検索のCPU使用率"
    assert shown["help"]["baseline_mode"]["schema"]["enum"] == ["approval", "rolling"]
    late = answer(client.patch(address, json={**change, "expected_version": linux["version"]}), 409)
    assert late["error"]["code"] == "changed_meanwhile"
    reset = {"modules": {"integrity_monitoring": {"settings": {"cpu_percent": None}}}, "expected_version": applied["version"]}
    answer(client.patch(address, json=reset))
    shown = answer(client.get(f"{address}/effective"))["modules"]["integrity_monitoring"]
    assert shown["settings"]["cpu_percent"]["is_overridden"] is False
    assert next(rule for rule in shown["rules"] if rule["rule_id"] == "im-linux-at")["severity"]["value"] == "low"
    versions = answer(client.get(f"{address}/versions"))
    assert [version["version"] for version in versions] == [3, 2, 1]
    answer(client.post(f"{address}/return", json={"version": 2, "expected_version": 3}))
    assert answer(client.get(f"{address}/compare", params={"before": 2, "after": 4})) == []
    unknown = answer(
        client.post(f"{address}/preview", json={"modules": {"integrity_monitoring": {"settings": {"cpu_percnt": 1}}}}), 400
    )
    assert unknown["error"]["code"] == "setting_unknown"
    assert "cpu_percent" in unknown["error"]["hint"]
    answer(client.post(f"{address}/preview", json={"modulez": {}}), 422)


def test_policies_are_made_moved_assigned_and_deleted(client, world):
    computer_id = world.computer("web-1")
    base = world.policy_id("Base")
    shop = answer(client.post("/api/v1/policies", json={"name": "Shop", "parent_id": base}), 201)
    address = f"/api/v1/policies/{shop['policy_id']}"
    answer(client.post(f"{address}/move/preview", json={"parent_id": None}))
    answer(client.post(f"{address}/move", json={"parent_id": None, "expected_version": 1}))
    assert answer(client.get(address))["path"] == "Shop"
    copy = answer(client.post(f"{address}/duplicate", json={"name": "Shop copy"}), 201)
    computers = {"computer_ids": [computer_id]}
    assert answer(client.post(f"{address}/assign/preview", json=computers))["computer_names"] == ["web-1"]
    answer(client.post(f"{address}/assign", json=computers))
    assert answer(client.get(f"/api/v1/policies/computers/{computer_id}"))["used_policy_path"] == "Shop"
    assert answer(client.delete(address), 400)["error"]["code"] == "policy_in_use"
    answer(client.post("/api/v1/policies/unassign", json=computers))
    answer(client.delete(address), 204)
    answer(client.delete(f"/api/v1/policies/{copy['policy_id']}"), 204)
    assert answer(client.get(address), 404)["error"]["code"] == "policy_not_found"


def test_a_computer_overrides_its_policy(client, world):
    computer_id = world.computer("web-1")
    address = f"/api/v1/policies/computers/{computer_id}"
    change = {"modules": {"integrity_monitoring": {"state": "off"}}}
    assert answer(client.post(f"{address}/preview", json=change))["computer_count"] == 1
    assert answer(client.patch(address, json={**change, "expected_version": 0}))["version"] == 1
    state = answer(client.get(f"{address}/effective"))["modules"]["integrity_monitoring"]["state"]
    assert (state["value"], state["origin_name"], state["inherited_value"]) == ("off", "web-1", "real-time")


def test_policies_go_out_and_come_in_as_yaml(client, world):
    planned = answer(client.post("/api/v1/policies/import", json={"text": SHOP}))
    assert planned["is_applied"] is False
    assert answer(client.post("/api/v1/policies/import", json={"text": SHOP}, params={"dry_run": False}))["is_applied"] is True
    text = client.get(f"/api/v1/policies/{world.policy_id('Base > Linux > Shop')}/export").text
    assert text.startswith("keibi: policies/1\n")
    assert answer(client.post("/api/v1/policies/import", json={"text": "keibi: ["}), 400)["error"]["where"].startswith("line 2")


def test_rules_are_listed_checked_tried_and_written(client):
    page = answer(client.get("/api/v1/rules", params={"os": "ubuntu", "severity_at_least": "high", "limit": 5}))
    assert len(page["items"]) == 5
    assert page["total"] > 20
    following = answer(
        client.get("/api/v1/rules", params={"os": "ubuntu", "severity_at_least": "high", "cursor": page["next_cursor"]})
    )
    assert not {row["rule_id"] for row in page["items"]} & {row["rule_id"] for row in following["items"]}
    wrong = OWN_RULE.replace("severity: medium", "severity: grave")
    checked = answer(client.post("/api/v1/rules/validate", json={"text": wrong}))
    assert checked["problems"][0]["line"] == 6
    refused = answer(client.post("/api/v1/rules", json={"text": wrong}), 400)
    assert refused["error"]["problems"][0]["line"] == 6
    made = answer(client.post("/api/v1/rules", json={"text": OWN_RULE}), 201)
    assert made["version"] == 1
    event = {"type": "file", "key": "/srv/shop/a.conf", "change": "created"}
    assert answer(client.post("/api/v1/rules/try", json={"change": event, "rule_id": "im-own-shop"}))["matches"] is True
    changed = answer(
        client.put("/api/v1/rules/im-own-shop", json={"text": OWN_RULE.replace("medium", "low"), "expected_version": 1})
    )
    assert changed["severity"] == "low"
    assert (
        "+severity: low"
        in answer(client.get("/api/v1/rules/im-own-shop/compare", params={"before": 1, "after": 2}))["difference"]
    )
    answer(client.post("/api/v1/rules/im-linux-cron/duplicate", json={"new_rule_id": "im-own-cron"}), 201)
    assert [version["what"] for version in answer(client.get("/api/v1/rules/im-own-shop/versions"))] == ["changed", "created"]
    answer(client.delete("/api/v1/rules/im-own-shop"), 204)
    answer(client.get("/api/v1/rules/im-own-shop"), 404)
    answer(client.get("/api/v1/rules", params={"severity_at_least": "grave"}), 422)


def test_the_document_describes_every_answer(client):
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            good = [status for status in operation["responses"] if status.startswith("2")]
            assert good, path
            if good != ["204"] and "export" not in path:
                schema = operation["responses"][good[0]]["content"]["application/json"]["schema"]
                assert schema, f"{method} {path} has no schema"
