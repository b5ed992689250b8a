"""Every endpoint of the API, called with another tenant's ids by somebody who may do everything in their own.

The endpoints come from the OpenAPI document, so a new one is tested without a line here. See `foreign_tenant`.
"""

import re
from typing import Any

import pytest

from tests.manager_running import serving
from tests.unit.manager.foreign_tenant import (
    FACTORIES,
    ID_PARAMETERS,
    IGNORES_UNKNOWN_IDS,
    MARK,
    NOT_ABOUT_TENANTS,
    PLAIN_PARAMETERS,
    SAMPLE_VALUES,
    SPECIAL,
    STREAMS,
    TenantWithObjects,
)

PASSWORD = "correct horse battery staple"


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def sample(document: dict[str, Any], name: str, schema: dict[str, Any]) -> Any:
    """Return a valid value for a schema, the simplest there is."""
    if name in SAMPLE_VALUES:
        return SAMPLE_VALUES[name]
    schema = resolved(document, schema)
    if "enum" in schema:
        return schema["enum"][0]
    for alternative in schema.get("anyOf", []):
        if alternative.get("type") != "null":
            return sample(document, name, alternative)
    match schema.get("type"):
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case "array":
            return []
        case "object":
            required = schema.get("required", [])
            return {key: sample(document, key, schema["properties"][key]) for key in required}
    return "zz sample"


class Endpoint:
    def __init__(self, document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> None:
        self.document, self.method, self.path = document, method.upper(), path
        parameters = operation.get("parameters", [])
        self.path_ids = [parameter["name"] for parameter in parameters if parameter["in"] == "path"]
        self.query_ids = [p["name"] for p in parameters if p["in"] == "query" and p["name"] in ID_PARAMETERS]
        self.required_query = {
            p["name"]: sample(document, p["name"], p["schema"])
            for p in parameters
            if p["in"] == "query" and p.get("required") and p["name"] not in ID_PARAMETERS
        }
        content = operation.get("requestBody", {}).get("content", {})
        self.body_schema = resolved(document, content["application/json"]["schema"]) if "application/json" in content else None
        self.properties = self.body_schema.get("properties", {}) if self.body_schema else {}
        self.body_ids = [name for name in self.properties if name in ID_PARAMETERS]

    def __repr__(self) -> str:
        return f"{self.method} {self.path}"

    def kind(self, name: str) -> str:
        return SPECIAL.get((self.path, name), ID_PARAMETERS[name])

    def body(self, ids: dict[str, str]) -> Any:
        if self.body_schema is None:
            return None
        made = sample(self.document, "", self.body_schema)
        for name in self.body_ids:
            if name in ids:
                schema = resolved(self.document, self.properties[name])
                made[name] = [ids[name]] if schema.get("type") == "array" else ids[name]
            elif name in made and name not in SAMPLE_VALUES and not isinstance(made[name], list):
                made[name] = None
        return made

    def call(self, caller: TenantWithObjects, ids: dict[str, str]):
        path = self.path
        for name in self.path_ids:
            path = path.replace("{" + name + "}", ids[name])
        query = {**self.required_query, **{name: ids[name] for name in self.query_ids if name in ids}}
        return caller.client.request(self.method, path, json=self.body(ids), params=query, headers=caller.headers)


def endpoints(document: dict[str, Any]) -> list[Endpoint]:
    return [
        Endpoint(document, method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path not in NOT_ABOUT_TENANTS and path not in STREAMS
    ]


@pytest.fixture
def tenants(manager):
    """Two tenants with an administrator each: `own`, who asks, and `foreign`, whose ids are asked for."""
    services = manager.services
    first = manager.first_administrator
    cookie = services.access.sign_in(first.name, first.password).cookie
    with serving(manager) as client:
        made = []
        for name in ("own", MARK):
            tenant_id = services.tenants.create(services.access.authenticate_session(cookie), f"tenant {name}").tenant_id
            provider = services.access.authenticate_session(cookie)
            user = services.access.users.create(
                provider.in_tenant(tenant_id), f"admin.{name}", PASSWORD, must_change_password=False
            )
            services.access.users.give(provider, user.user_id, "administrator", tenant_id=tenant_id)
            signed_in = services.access.sign_in(f"admin.{name}", PASSWORD)
            headers = {"Cookie": f"__Host-keibi={signed_in.cookie}", "X-Keibi-Csrf": signed_in.csrf_token}
            made.append(TenantWithObjects(client, tenant_id, headers, mark=name))
        yield made


def leaks(text: str, sent: dict[str, str]) -> list[str]:
    """Return what the answer says of the foreign tenant beyond the ids that were sent."""
    for value in sent.values():
        text = text.replace(value, "")
    return re.findall(rf"[^\"]*{MARK}[^\"]*", text)


def state_of(tenant: TenantWithObjects) -> dict[str, Any]:
    """Return what a tenant's own administrator sees: must be the same before and after."""
    paths = ("/users", "/roles", "/api-keys", "/groups", "/enrolment-tokens", "/computers", "/identity-alarms", "/commands")
    seen = {path: tenant.call("GET", path) for path in (*paths, "/policies", "/events", "/events/tags", "/events/retention")}
    for path in ("/users", "/computers"):
        for item in seen[path]["items"]:
            item.pop("last_sign_in_at", None)
    seen["policy"] = tenant.call("GET", f"/policies/{tenant.id_of('policy')}/effective")
    seen["rule"] = tenant.call("GET", f"/rules/{tenant.id_of('rule')}")
    return seen


def test_no_endpoint_shows_or_changes_anything_of_another_tenant(tenants):
    own, foreign = tenants
    document = own.client.get("/api/v1/openapi.json").json()
    every = endpoints(document)
    assert len(every) > 60
    unknown = sorted(
        {name for endpoint in every for name in endpoint.path_ids if name not in ID_PARAMETERS}
        | {
            name
            for endpoint in every
            for name in endpoint.properties
            if name.endswith(("_id", "_ids")) and name not in ID_PARAMETERS
        }
    )
    assert set(unknown) <= PLAIN_PARAMETERS, "say in foreign_tenant.ID_PARAMETERS what these are ids of"

    theirs = {kind: foreign.id_of(kind) for kind in FACTORIES}
    before = state_of(foreign)
    wrong = []

    for endpoint in every:
        # 1. Everything in the path is foreign: it must not exist.
        if endpoint.path_ids:
            ids = {name: theirs[endpoint.kind(name)] for name in (*endpoint.path_ids, *endpoint.body_ids)}
            response = endpoint.call(own, ids)
            if response.status_code not in (403, 404):
                wrong.append(f"{endpoint} with foreign ids: {response.status_code} {response.text[:200]}")
            if found := leaks(response.text, ids):
                wrong.append(f"{endpoint} leaks {found[:3]}")
        # 2. Each id in the query or body is foreign, one at a time, and the path is the caller's own.
        for name in (*endpoint.query_ids, *endpoint.body_ids):
            ids = {path_id: own.id_of(endpoint.kind(path_id)) for path_id in endpoint.path_ids}
            ids[name] = theirs[endpoint.kind(name)]
            response = endpoint.call(own, ids)
            if response.status_code >= 500:
                wrong.append(f"{endpoint} with a foreign {name}: {response.status_code} {response.text[:200]}")
            if response.status_code == 422:
                wrong.append(f"{endpoint} was not tried with a foreign {name}: {response.text[:200]}")
            is_taken = endpoint.method != "GET" and name in endpoint.body_ids and response.status_code < 400
            if is_taken and endpoint.path not in IGNORES_UNKNOWN_IDS:
                wrong.append(f"{endpoint} took a foreign {name}: {response.status_code} {response.text[:200]}")
            if found := leaks(response.text, ids):
                wrong.append(f"{endpoint} with a foreign {name} leaks {found[:3]}")
        # 3. No ids at all: lists show the caller's own rows only.
        if not endpoint.path_ids and endpoint.method == "GET":
            response = endpoint.call(own, {})
            if response.status_code != 200:
                wrong.append(f"{endpoint}: {response.status_code} {response.text[:200]}")
            if found := leaks(response.text, {}):
                wrong.append(f"{endpoint} leaks {found[:3]}")

    assert wrong == [], "\n".join(wrong)
    assert state_of(foreign) == before


def test_the_header_that_chooses_a_customer_opens_no_other(tenants):
    own, foreign = tenants
    response = own.client.get("/api/v1/computers", headers={**own.headers, "X-Keibi-Tenant": foreign.tenant_id})
    assert response.status_code == 403
    assert MARK not in response.text


def test_nobody_gets_anything_without_signing_in(tenants):
    own, _ = tenants
    document = own.client.get("/api/v1/openapi.json").json()
    for endpoint in endpoints(document):
        ids = {name: own.id_of(endpoint.kind(name)) for name in endpoint.path_ids if name in ID_PARAMETERS}
        for headers in ({}, {"Authorization": "Bearer kb_junk"}, {"Cookie": "__Host-keibi=junk"}):
            path = endpoint.path
            for name, value in ids.items():
                path = path.replace("{" + name + "}", value)
            response = own.client.request(endpoint.method, path, headers=headers)
            assert response.status_code == 401, f"{endpoint} with {headers}: {response.status_code}"
