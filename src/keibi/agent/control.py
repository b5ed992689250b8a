"""The agent's local socket: one line of JSON asks, lines of JSON answer. Only root may ask.

{"do": "status"}                     -> {"answer": {...}}
{"do": "scan", "module": "..."}      -> {"progress": {...}} ... {"answer": {...}}
{"do": "leave-safe-mode"}            -> {"answer": {"left": [...]}}
anything wrong                       -> {"error": {"code", "message", "where", "hint"}}
"""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec

from keibi.agent.log import Log
from keibi.errors import AccessError, InputError, KeibiError, RefusedError, TryLaterError

MAX_LINE_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_CONNECTIONS = 16
ASK_SECONDS = 10.0

ControlAction = Callable[[dict[str, Any]], AsyncIterator[dict[str, Any]]]
"""What one word of the control language does: gives progress any number of times, and last of all its answer."""


class ControlServer:
    """Answers on the control socket."""

    def __init__(self, path: str, actions: Mapping[str, ControlAction], log: Log) -> None:
        self._path = path
        self._actions = actions
        self._log = log
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled, then remove the socket.

        Raises:
            InputError: the socket cannot be made there.
        """
        listener = _listen(self._path)
        server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE_BYTES)
        try:
            async with server:
                await server.serve_forever()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        try:
            await self._answer(reader, writer)
        except KeibiError as error:
            await _send(
                writer, {"error": {"code": error.code, "message": error.message, "where": error.where, "hint": error.hint}}
            )
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            return  # whoever asked has gone, or did not speak the language
        except Exception as error:  # noqa: BLE001 - a fault in one request must not end the agent
            self._log.error("control request failed by a fault of the agent", error)
            await _send(
                writer, {"error": {"code": "agent_fault", "message": f"{type(error).__name__}: {error}", "where": "", "hint": ""}}
            )
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) > MAX_CONNECTIONS:
            raise TryLaterError("control_busy", f"more than {MAX_CONNECTIONS} requests at once")
        uid = _peer_uid(writer)
        if uid not in (0, os.geteuid()):
            raise AccessError("control_root_only", f"user {uid} may not control the agent", hint="use sudo")
        async with asyncio.timeout(ASK_SECONDS):
            line = await reader.readuntil(b"\n")
        try:
            asked = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError("control_malformed", f"the request is not a JSON object: {error}") from error
        action = self._actions.get(str(asked.get("do", "")))
        if action is None:
            raise InputError(
                "control_unknown", f"there is nothing to do called {asked.get('do')!r}", hint=f"one of {', '.join(self._actions)}"
            )
        last: dict[str, Any] = {}
        is_first = True
        async for step in action(asked):
            if not is_first:
                await _send(writer, {"progress": last})
            last, is_first = step, False
        await _send(writer, {"answer": last})


async def request(
    socket_path: str,
    asked: dict[str, Any],
    *,
    timeout_seconds: float = 30.0,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Ask the agent on this computer and return its answer. `timeout_seconds` is the longest silence.

    Raises:
        TryLaterError: no agent runs there, or it does not answer.
        AccessError: the caller is not root.
        InputError: it does not know what was asked.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_unix_connection(socket_path, limit=MAX_ANSWER_BYTES)
    except PermissionError as error:
        raise AccessError("control_root_only", "only root may control the agent", where=socket_path, hint="use sudo") from error
    except (OSError, TimeoutError) as error:
        raise TryLaterError(
            "agent_not_running",
            "no agent answers on this computer",
            where=socket_path,
            hint="start it: `keibi up`, or its service",
        ) from error
    try:
        writer.write(msgspec.json.encode(asked) + b"\n")
        while True:
            async with asyncio.timeout(timeout_seconds):
                line = await reader.readline()
            if not line:
                raise TryLaterError("agent_not_running", "the agent ended before it answered", where=socket_path)
            said = msgspec.json.decode(line, type=dict[str, dict[str, Any]])
            if "answer" in said:
                return said["answer"]
            if "error" in said:
                raise _error_of(said["error"])
            if on_progress is not None:
                on_progress(said.get("progress", {}))
    except (TimeoutError, ConnectionError) as error:
        raise TryLaterError(
            "agent_silent",
            f"the agent did not answer within {timeout_seconds:.0f} s",
            where=socket_path,
            hint="see the agent's log",
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            "control_malformed",
            f"what answers there is no agent of this version: {error}",
            where=socket_path,
            hint="restart the agent",
        ) from error
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await writer.wait_closed()


def _error_of(told: dict[str, Any]) -> KeibiError:
    code, message = str(told.get("code", "")), str(told.get("message", ""))
    families: dict[str, type[KeibiError]] = {
        "control_root_only": AccessError,
        "control_busy": TryLaterError,
        "agent_fault": RefusedError,
    }
    return families.get(code, InputError)(code, message, where=str(told.get("where", "")), hint=str(told.get("hint", "")))


async def _send(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(msgspec.json.encode(value) + b"\n")
        await writer.drain()


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _listen(path: str) -> socket.socket:
    """Return a listening socket at `path`, replacing one that a former run left behind."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        # The lock of the state directory says that no other agent runs with it, so a socket here is a left-over.
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)  # whoever was quicker is refused by _peer_uid
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise InputError(
            "control_socket_not_made",
            f"the control socket cannot be made: {error.strerror}",
            where=path,
            hint="set socket_path in agent.toml",
        ) from error
    listener.setblocking(False)
    return listener
