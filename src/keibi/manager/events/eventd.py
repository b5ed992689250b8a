"""The event store's own process: chDB behind the ClickHouse HTTP interface, on a loopback port and with a secret.

Run as `python -m keibi.manager.events.eventd --directory D --port P --key-file F`, or by `EventDaemon`, which hands over a
listening socket and keeps standard input open.

Theory of operation. chDB may be opened by one process only, does not survive a fork, and takes its process with it when it
runs out of memory: so it lives here and nowhere else. The directory is locked before it is opened. Requests are handled by
threads, each with a chDB connection from a small pool; settings given in the URL hold for one request. When standard input
closes, whoever started this is gone (even by kill -9), and it ends too, so that the next manager can open the store.
"""

import argparse
import contextlib
import fcntl
import hmac
import http.server
import importlib
import json
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

from keibi.errors import InputError, KeibiError, TryLaterError

EXIT_CANNOT_OPEN = 3
"""The exit status when the store cannot be opened; standard error says why."""

MAX_BODY_BYTES = 256 * 1024 * 1024
MAX_CONNECTIONS = 8
"""chDB connections, and so queries that run at once; further requests wait."""

ENGINE_OPTIONS = {
    # Bounds for a computer that has other things to do: ClickHouse's own defaults are for a machine of its own.
    "mark_cache_size": 64 * 1024 * 1024,
    "index_mark_cache_size": 64 * 1024 * 1024,
    "background_pool_size": 2,
    "background_move_pool_size": 1,
    "background_fetches_pool_size": 1,
    "background_common_pool_size": 2,
    "background_schedule_pool_size": 2,
    "max_thread_pool_size": 256,
}

_RESERVED = frozenset({"query", "database", "default_format", "user", "password", "query_id", "session_id", "wait_end_of_query"})
_SETTING_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
_INSERT_WITH_BODY = re.compile(r"\s*(INSERT\s+INTO\s+.+?)\s+FORMAT\s+([A-Za-z0-9]+)\s*;?\s*", re.IGNORECASE | re.DOTALL)
_ERROR_CODE = re.compile(r"Code: (\d+)\.")


class Request(NamedTuple):
    """One statement as the ClickHouse HTTP interface takes it."""

    sql: str
    body: bytes
    parameters: dict[str, str]
    settings: dict[str, str]
    output_format: str


class EngineError(Exception):
    """What ClickHouse answered, with its error code."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        found = _ERROR_CODE.search(text)
        self.code = int(found.group(1)) if found else 1002  # UNKNOWN_EXCEPTION


class Engine:
    """chDB on one directory, with a pool of connections."""

    def __init__(self, directory: Path, memory_bytes: int) -> None:
        # Imported here: the import opens an in-memory engine and takes a quarter of a second, which only this process pays.
        chdb = importlib.import_module("chdb._chdb")
        options = {**ENGINE_OPTIONS, "max_server_memory_usage": memory_bytes}
        self._address = f"{directory}?" + "&".join(f"{name}={value}" for name, value in options.items())
        self._chdb = chdb
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        # chDB closes the engine with its last connection, so one stays open for as long as the process lives.
        self._anchor = chdb.connect(self._address)
        for _ in range(MAX_CONNECTIONS):
            self._idle.put(None)

    def run(self, request: Request) -> bytes:
        """Run one statement and return its output in the format that was asked for.

        Raises:
            EngineError: ClickHouse refused it.
        """
        with self._connection() as connection:
            with_settings = request.settings
            try:
                if with_settings:
                    connection.query("SET " + ", ".join(f"{name} = {_quoted(value)}" for name, value in with_settings.items()))
                found = _INSERT_WITH_BODY.fullmatch(request.sql) if request.body else None
                if found:
                    return self._insert(connection, found.group(1), found.group(2), request.body)
                result = connection.query(request.sql, request.output_format, params=request.parameters)
                return bytes(result.bytes())
            except RuntimeError as error:
                raise EngineError(str(error)) from error
            finally:
                if with_settings:
                    connection.query("SET " + ", ".join(f"{name} = DEFAULT" for name in with_settings))

    def close(self) -> None:
        """Close every connection that is idle, and with the last one the store."""
        while True:
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                break
            if connection is not None:
                connection.close()
        self._anchor.close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        connection = self._idle.get()
        try:
            if connection is None:
                connection = self._chdb.connect(self._address)
            yield connection
        except BaseException:
            # After a failure nobody knows what the connection still holds (an open insert, half-reset settings).
            with contextlib.suppress(RuntimeError):
                if connection is not None:
                    connection.close()
            connection = None
            raise
        finally:
            self._idle.put(connection)

    @staticmethod
    def _insert(connection: Any, sql: str, input_format: str, body: bytes) -> bytes:
        stream = connection.send_insert(sql, input_format)
        try:
            connection.insert_append(stream, body)
            connection.insert_done(stream)
        except RuntimeError:
            with contextlib.suppress(RuntimeError):
                connection.insert_cancel(stream)
            raise
        return b""


class Handler(http.server.BaseHTTPRequestHandler):
    """The ClickHouse HTTP interface, as far as a client of ours uses it: /ping, and / with a query."""

    protocol_version = "HTTP/1.1"
    server: "EventServer"
    timeout = 300

    def do_GET(self) -> None:
        """Answer /ping without a secret; everything else is a query."""
        if self.path == "/ping":
            self._answer(200, b"Ok.\n")
        else:
            self._serve(b"")

    def do_POST(self) -> None:
        """Run the query in the URL on the body, or the query that is the body."""
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            self.close_connection = True
            self._answer(411, b"Content-Length is missing or not a number\n")
            return
        if not 0 <= length <= MAX_BODY_BYTES:
            self.close_connection = True
            self._answer(413, f"the body has {length} bytes, more than {MAX_BODY_BYTES}\n".encode())
            return
        self._serve(self.rfile.read(length))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Stay silent: queries hold what customers look for, and the manager logs failures itself."""

    def _serve(self, body: bytes) -> None:
        if not hmac.compare_digest(self.headers.get("X-ClickHouse-Key", "").encode(), self.server.key):
            self._answer(403, b"Code: 516. DB::Exception: the secret in X-ClickHouse-Key is wrong\n", code=516)
            return
        try:
            request = read_request(self.path, self.headers, body)
            self._answer(200, self.server.engine.run(request))
        except InputError as error:
            self._answer(400, f"Code: 36. DB::Exception: {error}\n".encode(), code=36)
        except EngineError as error:
            self._answer(500, f"{error}\n".encode(), code=error.code)

    def _answer(self, status: int, body: bytes, *, code: int = 0) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-ClickHouse-Exception-Code", str(code))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class EventServer(http.server.ThreadingHTTPServer):
    """The HTTP server around one engine, on a socket that somebody already listens with."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, engine: Engine, key: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.engine = engine
        self.key = key.encode()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection, without Nagle's delay: answers are small and somebody waits for them."""
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address


def read_request(path: str, headers: Message, body: bytes) -> Request:
    """Return the statement that a request holds: in the URL, in the body, or in a form.

    Raises:
        InputError: no query, a setting whose name is none, or a form that is cut.
    """
    url = urllib.parse.urlsplit(path)
    values = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True, strict_parsing=False, max_num_fields=1000))
    content_type = headers.get("Content-Type", "")
    if content_type.startswith("multipart/form-data"):
        values.update(read_form(content_type, body))
        body = b""
    if "query" in values:
        sql = values["query"]
    else:
        try:
            sql, body = body.decode(), b""
        except UnicodeDecodeError as error:
            raise InputError("query_malformed", f"the query is not UTF-8: {error}") from error
    if not sql.strip():
        raise InputError("query_missing", "there is no query, neither in the URL nor in the body")
    parameters = {name.removeprefix("param_"): value for name, value in values.items() if name.startswith("param_")}
    settings = {name: value for name, value in values.items() if name not in _RESERVED and not name.startswith("param_")}
    for name in settings:
        if not _SETTING_NAME.fullmatch(name):
            raise InputError("setting_unknown", f"{name!r} is not the name of a setting")
    return Request(sql, body, parameters, settings, values.get("default_format", "TabSeparated"))


def read_form(content_type: str, body: bytes) -> dict[str, str]:
    """Return the fields of a multipart/form-data body, which carries parameters that are too long for a URL.

    Raises:
        InputError: no boundary, or a part without a name.
    """
    _, _, boundary = content_type.partition("boundary=")
    if not boundary:
        raise InputError("form_malformed", f"the form has no boundary: {content_type!r}")
    fields: dict[str, str] = {}
    for part in body.split(b"--" + boundary.strip('"').encode())[1:-1]:
        head, separator, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'name="([A-Za-z0-9_]+)"', head)
        if not separator or name is None:
            raise InputError("form_malformed", f"a part of the form has no name: {head[:100]!r}")
        fields[name.group(1).decode()] = value.removesuffix(b"\r\n").decode("utf-8", "replace")
    return fields


def lock_directory(directory: Path, wait_seconds: float) -> int:
    """Create and lock the store's directory; return the descriptor that holds the lock until the process ends.

    Waits up to `wait_seconds` for another holder to end: after a kill of the manager, its event store is about to.

    Raises:
        InputError: the directory cannot be made or written.
        TryLaterError: another process has the store open.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / "eventd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(
            "event_store_unwritable",
            f"the event store's directory {directory} cannot be written: {error.strerror}",
            hint="choose another directory or mend its owner, mode or disk",
        ) from error
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise TryLaterError(
                "event_store_in_use",
                f"the event store in {directory} is already open in process {owner}",
                hint="only one manager may use a directory; stop the other one or choose another directory",
            ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def listen(port: int) -> socket.socket:
    """Return a socket that listens on the loopback port.

    Raises:
        InputError: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        message = f"port {port} on 127.0.0.1 cannot be used: {error.strerror}"
        raise InputError("port_in_use", message, hint="choose another port") from error
    listener.listen(128)
    return listener


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _end_with_starter(stop: threading.Event) -> None:
    # A read that returns nothing means that every copy of the other end is closed: the manager is gone.
    while os.read(0, 4096):
        pass
    stop.set()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="keibi-eventd", description="Hold Keibi's event store; answer ClickHouse HTTP queries.")
    parser.add_argument("--directory", type=Path, required=True, help="where the events are")
    parser.add_argument("--memory-bytes", type=int, default=2 * 1024**3, help="what all queries together may use")
    parser.add_argument("--wait-seconds", type=float, default=0.0, help="how long to wait for another process to leave the store")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--port", type=int, help="loopback port to listen on")
    where.add_argument("--listen-descriptor", type=int, help="socket that already listens, inherited from the manager")
    parser.add_argument("--key-file", type=Path, help="file with the secret; else it is the first line of standard input")
    return parser.parse_args()


def main() -> int:
    """Hold the store until told to end; return the exit status."""
    arguments = _arguments()
    # What anything prints must not fill the pipe on which the manager waits for one line.
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        if arguments.key_file:
            key = arguments.key_file.read_text().strip()
        else:
            key = sys.stdin.readline().strip()
            threading.Thread(target=_end_with_starter, args=(stop,), daemon=True).start()
        lock = lock_directory(arguments.directory, arguments.wait_seconds)
        listener = socket.socket(fileno=arguments.listen_descriptor) if arguments.port is None else listen(arguments.port)
        engine = Engine(arguments.directory / "chdb", arguments.memory_bytes)
    except (KeibiError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return EXIT_CANNOT_OPEN
    server = EventServer(listener, engine, key)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True)
    thread.start()
    print(json.dumps({"ready": True, "port": listener.getsockname()[1], "pid": os.getpid()}), file=report, flush=True)
    stop.wait()
    server.shutdown()
    engine.close()
    os.close(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
