"""The event store's HTTP edge: what it takes and what it refuses."""

import email.message
import http.client
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.errors import InputError
from keibi.manager.events.eventd import read_form, read_request


def ask(daemon, method="POST", path="/", body=b"", headers=None):
    url = urllib.parse.urlsplit(daemon.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
    try:
        connection.request(method, path, body=body, headers={"X-ClickHouse-Key": daemon.key, **(headers or {})})
        response = connection.getresponse()
        return response.status, response.headers.get("X-ClickHouse-Exception-Code"), response.read()
    finally:
        connection.close()


def test_it_listens_on_the_loopback_only(event_daemon):
    assert urllib.parse.urlsplit(event_daemon.url).hostname == "127.0.0.1"


def test_ping_needs_no_secret_and_everything_else_does(event_daemon):
    assert ask(event_daemon, "GET", "/ping", headers={"X-ClickHouse-Key": ""}) == (200, None, b"Ok.\n")
    for path in ("/", "/?query=SELECT+1", "/other"):
        assert ask(event_daemon, "GET", path, headers={"X-ClickHouse-Key": ""})[:2] == (403, "516")


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/?query=SELECT+1", b"", b"1\n"),
        ("/", b"SELECT 1", b"1\n"),
        ("/?default_format=JSONEachRow", b"SELECT 1 AS one", b'{"one":1}\n'),
        ("/?query=SELECT+{n:UInt8}&param_n=7", b"", b"7\n"),
        ("/?max_threads=1", b"SELECT getSetting('max_threads')", b"1\n"),
    ],
)
def test_queries_come_in_the_url_or_in_the_body(event_daemon, path, body, answer):
    assert ask(event_daemon, path=path, body=body) == (200, None, answer)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/", b"", 400, "36"),
        ("/", b"   ", 400, "36"),
        ("/", b"\xff\xfe", 400, "36"),
        ("/?A-B=1", b"SELECT 1", 400, "36"),
        ("/?no_such_setting=1", b"SELECT 1", 500, "115"),
        ("/", b"SELEC 1", 500, None),
        ("/?query=INSERT+INTO+keibi.events+FORMAT+JSONEachRow", b"not json", 500, None),
        ("/?query=SELECT+{n:UInt8}&param_n=x", b"", 500, None),
    ],
)
def test_what_cannot_be_run_is_an_error_and_the_next_query_runs(event_daemon, event_store, path, body, status, code):
    answered = ask(event_daemon, path=path, body=body)
    assert answered[0] == status
    assert answered[1] is not None
    assert code is None or answered[1] == code
    assert ask(event_daemon, body=b"SELECT 1") == (200, None, b"1\n")


def test_a_body_that_is_too_long_is_not_read(event_daemon):
    assert ask(event_daemon, headers={"Content-Length": str(10**12)})[0] == 413
    assert ask(event_daemon, headers={"Content-Length": "many"})[0] == 411


@given(st.dictionaries(st.from_regex(r"[a-z_0-9]{1,10}", fullmatch=True), st.text(st.characters(exclude_categories=["Cs"]))))
def test_a_form_gives_back_what_was_put_in(fields):
    boundary = "0123456789abcdef" * 2
    parts = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items())
    body = f"{parts}--{boundary}--\r\n".encode()
    assert read_form(f"multipart/form-data; boundary={boundary}", body) == fields


@given(st.text(), st.binary(max_size=300))
def test_a_request_of_noise_is_read_or_refused(query, body):
    headers = email.message.Message()
    for content_type in ("text/plain", "multipart/form-data; boundary=x", "multipart/form-data"):
        headers["Content-Type"] = content_type
        try:
            request = read_request("/?" + urllib.parse.quote(query, safe="=&", errors="replace"), headers, body)
        except InputError:
            continue
        assert request.sql.strip()
