"""The application's edge: signing in over HTTP, other sites, sizes, errors, headers, and its description."""

import asyncio
import json
import threading

import pytest

from keibi.errors import AccessError, InputError, RefusedError, TryLaterError
from keibi.manager.access.model import NotSignedInError
from keibi.manager.application import guarded
from keibi.manager.http_errors import status_of
from keibi.manager.http_guard import client_address
from tests.manager_running import administrator

UNKNOWN_ID = "0" * 31 + "1"


@pytest.fixture
def api(client, manager):
    return administrator(client, manager)


def error_of(response, status_code):
    assert response.status_code == status_code, response.text
    return response.json()["error"]


@pytest.mark.parametrize(
    ("error", "status_code"),
    [
        (InputError("anything", ""), 400),
        (InputError("computer_not_found", ""), 404),
        (InputError("user_exists", ""), 409),
        (InputError("role_conflict", ""), 409),
        (InputError("changed_meanwhile", ""), 409),
        (NotSignedInError("session_ended", ""), 401),
        (AccessError("not_allowed", ""), 403),
        (TryLaterError("database_busy", ""), 503),
        (TryLaterError("locked_out", ""), 429),
        (RefusedError("body_too_large", ""), 413),
        (RefusedError("csrf_token", ""), 403),
        (RefusedError("key_in_use", ""), 400),
    ],
)
def test_the_family_of_an_error_decides_the_status(error, status_code):
    assert status_of(error) == status_code


def test_signing_in_sets_a_cookie_that_scripts_and_other_sites_cannot_use(client, manager):
    first = manager.first_administrator
    response = client.post("/api/v1/auth/sign-in", json={"name": first.name, "password": first.password})
    cookie = response.headers["set-cookie"].lower()
    assert cookie.startswith("__host-keibi=")
    assert {"secure", "httponly", "samesite=lax", "path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "domain" not in cookie
    assert response.json()["principal"]["name"] == "admin"
    assert client.get("/api/v1/auth/me").json()["kind"] == "session"
    client.headers["X-Keibi-Csrf"] = response.json()["csrf_token"]
    assert client.post("/api/v1/auth/sign-out").status_code == 204
    assert error_of(client.get("/api/v1/auth/me"), 401)["code"] == "not_signed_in"


def test_other_sites_cannot_use_somebodys_session(api):
    body = {"name": "group"}
    token = api.headers["X-Keibi-Csrf"]
    for headers, code in (
        ({"X-Keibi-Csrf": ""}, "csrf_token"),
        ({"X-Keibi-Csrf": "x" * 43}, "csrf_token"),
        ({"Origin": "https://evil.example"}, "foreign_origin"),
        ({"Origin": "null"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "foreign_origin"),
        ({"Sec-Fetch-Site": "same-site"}, "foreign_origin"),
    ):
        assert error_of(api.post("/api/v1/groups", json=body, headers=headers), 403)["code"] == code
    assert api.get("/api/v1/groups").json() == []
    own = {"Origin": "https://manager.example", "Sec-Fetch-Site": "same-origin", "X-Keibi-Csrf": token}
    assert api.post("/api/v1/groups", json=body, headers=own).status_code == 201


def test_an_api_key_needs_no_token_of_a_session(api):
    made = api.post("/api/v1/api-keys", json={"name": "ci", "role_id": "operator"}).json()
    headers = {"Authorization": f"Bearer {made['secret']}", "Cookie": "", "X-Keibi-Csrf": "", "Origin": "https://ci.example"}
    assert api.post("/api/v1/groups", json={"name": "g"}, headers=headers).status_code == 201
    me = api.get("/api/v1/auth/me", headers=headers).json()
    assert (me["kind"], me["name"]) == ("api_key", "ci")
    assert error_of(api.get("/api/v1/users", headers={**headers, "Authorization": "Basic x"}), 401)["code"] == "scheme_unknown"


def test_who_must_change_the_password_can_do_nothing_else(api):
    api.post("/api/v1/users", json={"name": "nina", "password": "correct horse battery staple"})
    signed_in = api.post("/api/v1/auth/sign-in", json={"name": "nina", "password": "correct horse battery staple"})
    headers = {"X-Keibi-Csrf": signed_in.json()["csrf_token"]}
    assert error_of(api.get("/api/v1/computers"), 403)["code"] == "password_change_required"
    body = {"old": "correct horse battery staple", "new": "another long pass phrase"}
    assert api.post("/api/v1/auth/password", json=body, headers=headers).status_code == 204
    assert error_of(api.get("/api/v1/computers"), 403)["code"] == "not_allowed"


def test_parallel_wrong_sign_ins_over_http_lock_the_account(client, manager):
    first = manager.first_administrator
    codes = []

    def attack():
        for _ in range(5):
            response = client.post("/api/v1/auth/sign-in", json={"name": "admin", "password": "a wrong password"})
            codes.append(response.json()["error"]["code"])

    threads = [threading.Thread(target=attack) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count("credentials_wrong") == 10
    assert codes.count("locked_out") == 90
    response = client.post("/api/v1/auth/sign-in", json={"name": "admin", "password": first.password})
    assert "opens again in 15 min" in error_of(response, 429)["message"]
    assert 0 < int(response.headers["retry-after"]) <= 900


def test_bodies_are_capped_whether_they_announce_their_size_or_not(api):
    def chunks():
        for _ in range(100):
            yield bytes(100_000)

    headers = {"Content-Type": "application/json"}
    assert error_of(api.post("/api/v1/groups", content=bytes(5_000_000), headers=headers), 413)["code"] == "body_too_large"
    assert error_of(api.post("/api/v1/groups", content=chunks(), headers=headers), 413)["code"] == "body_too_large"


def test_every_answer_has_the_headers_that_make_browsers_careful(api):
    for path in ("/api/v1/computers", "/api/v1/nothing", "/api/v1/health", "/agent/v1/wake", "/sign-in"):
        headers = api.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
    assert api.get("/api/v1/computers").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path", "content", "status_code", "code"),
    [
        ("GET", "/api/v1/nothing", None, 404, "path_unknown"),
        ("PUT", "/api/v1/computers", None, 405, "method_unknown"),
        ("POST", "/api/v1/groups", b"{", 422, "request_invalid"),
        ("POST", "/api/v1/groups", b'{"name": 5}', 422, "request_invalid"),
        ("POST", "/api/v1/groups", b'{"name": "x", "nmae": 1}', 422, "request_invalid"),
        ("GET", "/api/v1/computers?limit=0", None, 422, "request_invalid"),
        ("GET", "/api/v1/computers?limit=100000", None, 422, "request_invalid"),
        ("GET", "/api/v1/computers?cursor=junk", None, 400, "cursor_invalid"),
        ("GET", "/api/v1/computers?sort=evil", None, 400, "sort_invalid"),
        ("GET", f"/api/v1/computers/{UNKNOWN_ID}", None, 404, "computer_not_found"),
        ("POST", "/api/v1/groups", b'{"name": "a\\u0000b"}', 400, "group_name"),
        (
            "POST",
            "/api/v1/users",
            b'{"name": "bob", "password": "correct horse battery", "full_name": "\\ud800"}',
            422,
            "request_invalid",
        ),
        ("GET", "/api/v1/computers?text=%00", None, None, ""),
        ("GET", "/api/v1/users?text=%ff", None, None, ""),
        ("POST", "/agent/v1/nothing", b"", 404, "path_unknown"),
    ],
)
def test_what_is_wrong_is_told_in_one_shape(api, method, path, content, status_code, code):
    response = api.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code < 500, response.text
    if status_code is not None:
        error = error_of(response, status_code)
        assert set(error) >= {"code", "message", "hint", "where"}
        assert error["message"]
        assert not code or error["code"] == code


def test_the_description_names_every_answer_and_is_whole(client):
    document = client.get("/api/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.partition('"')[0] in schemas
    assert "x-definitions" not in text
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), (method, path)
            success = [response for code, response in operation["responses"].items() if code.startswith("2")]
            assert success, (method, path)
            described = operation["responses"]["default"]["content"]["application/json"]["schema"]
            assert described == {"$ref": "#/components/schemas/Error"}, (method, path)
            assert "422" not in operation["responses"], (method, path)
    needed = schemas["Error"]["properties"]["error"]["required"]
    for wrong in (client.get("/api/v1/computers"), client.get("/api/v1/nothing"), client.post("/api/v1/auth/sign-in", json={})):
        assert set(wrong.json()["error"]) >= set(needed)


def test_a_forwarded_address_is_believed_of_trusted_proxies_only():
    class Connection:
        def __init__(self, peer, forwarded):
            self.client = type("Peer", (), {"host": peer})()
            self.headers = {"x-forwarded-for": forwarded}

    trusted = ("10.0.0.1", "10.0.0.2")
    for peer, forwarded, expected in (
        ("192.0.2.1", "1.2.3.4", "192.0.2.1"),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.1"),
    ):
        assert client_address(Connection(peer, forwarded), trusted) == expected


def test_background_work_that_has_begun_ends_before_the_manager_does():
    has_begun, may_end, ended = threading.Event(), threading.Event(), []

    def work():
        has_begun.set()
        may_end.wait(10)
        ended.append(True)

    async def scenario():
        task = asyncio.create_task(guarded(work))
        assert await asyncio.to_thread(has_begun.wait, 10)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [True]

    asyncio.run(scenario())
