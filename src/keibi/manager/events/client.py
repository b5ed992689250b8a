"""The client of the ClickHouse HTTP interface: the same for the embedded store and for a ClickHouse server.

Values never become SQL: they travel as `param_<name>` and stand in the statement as `{name:Type}`.
"""

import contextlib
import http.client
import queue
import secrets
import ssl
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from keibi.errors import InputError, TryLaterError

T = TypeVar("T")
Value = str | int | float | Sequence[str] | Sequence[int]
"""What a parameter may be; sequences are for `Array(...)`."""

MAX_URL_BYTES = 6000
"""Longer parameters travel in a form, because servers and proxies cut long URLs."""

IDLE_SECONDS = 60.0
"""Connections unused for longer are not trusted to be open; servers and proxies close theirs after minutes."""

_TIMED_OUT = 159
_MEMORY_LIMITS = frozenset({241, 173})
_TOO_MANY = frozenset({202, 252, 439, 242})  # simultaneous queries, parts, threads; read-only replica
_TEXT_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\\0", "\b": "\\b", "\f": "\\f"})
_QUOTED_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\0": "\\0"})


class EventStoreFault(RuntimeError):  # noqa: N818 - it is the store's word for a defect of ours
    """ClickHouse refused a statement that we wrote: a defect in Keibi, or a schema that somebody changed."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ClickHouse:
    """A pool of connections to one ClickHouse HTTP address. Safe to use from many threads."""

    def __init__(
        self, url: str, *, user: str = "default", key: str = "", timeout_seconds: float = 60.0, pool_size: int = 8
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InputError("event_store_url", f"{url!r} is not an http(s) address of a ClickHouse server")
        self._parts = parts
        self._headers = {"X-ClickHouse-User": user, "X-ClickHouse-Key": key}
        self._timeout_seconds = timeout_seconds
        self._pool: queue.LifoQueue[tuple[http.client.HTTPConnection | None, float]] = queue.LifoQueue()
        for _ in range(pool_size):
            self._pool.put((None, 0.0))

    def select(
        self,
        sql: str,
        parameters: Mapping[str, Value],
        row_type: type[T],
        *,
        settings: Mapping[str, str | int] | None = None,
    ) -> list[T]:
        """Return the rows of a query as `row_type` structs."""
        body = self.raw(sql, parameters, output_format="JSONEachRow", settings=settings)
        return msgspec.json.Decoder(row_type).decode_lines(body)

    def raw(
        self,
        sql: str,
        parameters: Mapping[str, Value] | None = None,
        *,
        output_format: str = "TabSeparated",
        settings: Mapping[str, str | int] | None = None,
    ) -> bytes:
        """Run any statement and return its output in the given ClickHouse format.

        Raises:
            TryLaterError: the store is away, busy or full.
            InputError: the query needs more time or memory than one query may have.
            EventStoreFault: the statement is wrong.
        """
        options = {"default_format": output_format, "output_format_json_quote_64bit_integers": "0", **_texts(settings)}
        encoded = {f"param_{name}": parameter_text(value) for name, value in (parameters or {}).items()}
        if sum(len(value) for value in encoded.values()) < MAX_URL_BYTES // 3:
            return self._post({**options, **encoded}, sql.encode(), "text/plain; charset=UTF-8")
        boundary = secrets.token_hex(16)
        fields = {"query": sql, **encoded}
        form = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
        )
        return self._post(options, f"{form}--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}")

    def insert(self, sql: str, body: bytes, *, settings: Mapping[str, str | int] | None = None) -> None:
        """Insert `body`; `sql` ends in the FORMAT that it has. When this returns, the rows are on disk.

        Raises:
            TryLaterError: the store is away, busy or full; the rows may be stored or not.
        """
        self._post({"query": sql, **_texts(settings)}, body, "application/octet-stream", may_repeat=False)

    def is_alive(self) -> bool:
        """Return whether the address answers."""
        try:
            return self._request("GET", "/ping", b"", {})[0] == 200
        except TryLaterError:
            return False

    def close(self) -> None:
        """Close the idle connections."""
        with contextlib.suppress(queue.Empty):
            while True:
                connection, _ = self._pool.get_nowait()
                if connection is not None:
                    connection.close()

    def _post(self, options: Mapping[str, str], body: bytes, content_type: str, *, may_repeat: bool = True) -> bytes:
        path = (self._parts.path or "/") + "?" + urllib.parse.urlencode(options)
        headers = {**self._headers, "Content-Type": content_type}
        status, code, answer = self._request("POST", path, body, headers, may_repeat=may_repeat)
        if status == 200 and not code:
            return answer
        raise _failure(status, code, answer.decode("utf-8", "replace").strip()[:2000])

    def _request(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], *, may_repeat: bool = True
    ) -> tuple[int, int, bytes]:
        with self._connection() as (connection, is_reused):
            try:
                return _exchange(connection, method, path, body, headers)
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                # The store's process may have been started again since this connection was used; that is no trouble for a
                # query. Whether an insert went in before is for its caller to find out.
                if is_reused and may_repeat and not isinstance(error, TimeoutError):
                    with contextlib.suppress(http.client.HTTPException, OSError):
                        return _exchange(connection, method, path, body, headers)
                    connection.close()
                raise TryLaterError(
                    "event_store_away",
                    f"the event store does not answer: {error or type(error).__name__}",
                    where=f"{self._parts.hostname}:{self._parts.port}",
                    hint="events wait at the agents until it is back",
                ) from error

    @contextlib.contextmanager
    def _connection(self) -> Iterator[tuple[http.client.HTTPConnection, bool]]:
        """Lend a connection, and whether it is one that was used before."""
        connection, used_at = self._pool.get()
        try:
            if connection is None:
                connection = self._connect()
            elif time.monotonic() - used_at > IDLE_SECONDS:
                connection.close()  # it opens anew when it is used
            yield connection, connection.sock is not None
        finally:
            self._pool.put((connection, time.monotonic()))

    def _connect(self) -> http.client.HTTPConnection:
        host = self._parts.hostname or ""
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, self._parts.port, timeout=self._timeout_seconds, context=context)
        return http.client.HTTPConnection(host, self._parts.port, timeout=self._timeout_seconds)


def parameter_text(value: Value) -> str:
    """Return a parameter as ClickHouse reads it: escaped text, or an array literal."""
    match value:
        case str():
            return value.translate(_TEXT_ESCAPES)
        case int() | float():
            return repr(value)
        case _:
            return (
                "["
                + ",".join(f"'{item.translate(_QUOTED_ESCAPES)}'" if isinstance(item, str) else str(item) for item in value)
                + "]"
            )


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, int, bytes]:
    connection.request(method, path, body=body, headers=dict(headers))
    response = connection.getresponse()
    answer = response.read()
    return response.status, int(response.headers.get("X-ClickHouse-Exception-Code", "0")), answer


def _failure(status: int, code: int, text: str) -> Exception:
    if code == _TIMED_OUT or code in _MEMORY_LIMITS:
        return InputError(
            "query_too_heavy",
            "the query needs more time or memory than one query may use",
            hint="narrow the period or add a filter",
        )
    if code in _TOO_MANY or status in {502, 503, 504}:
        return TryLaterError("event_store_busy", f"the event store is busy: {text[:300]}")
    if "No space left on device" in text or code == 243:
        return TryLaterError("event_store_full", "the event store's disk is full", hint="free space; events wait at the agents")
    return EventStoreFault(code, text or f"HTTP status {status}")


def _texts(settings: Mapping[str, str | int] | None) -> dict[str, str]:
    return {name: str(value) for name, value in (settings or {}).items()}
