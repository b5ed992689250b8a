"""The agents' HTTP routes: plain Starlette, msgpack and zstd.

What a stranger can send costs little: an access token is checked in memory before one byte of the body is read, bodies are
read with a cap before they are decoded, and decoding and database work happen in a few worker threads of their own, so that
a storm of agents takes no thread from the console.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from keibi.contract.codec import CONTENT_TYPE, MAX_BODY_BYTES, MAX_DECODED_BYTES, decode, decompress, encode
from keibi.contract.enrolment import ChallengeRequest, ChallengeResponse, EnrolRequest, TokenRequest
from keibi.contract.events import EventBatch, EventReceipt
from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse, WakeResponse
from keibi.contract.uploads import PART_BYTES
from keibi.errors import InputError, KeibiError, RefusedError, TryLaterError
from keibi.manager.access.model import NotSignedInError
from keibi.manager.agents.access_tokens import AccessTokens, Claims
from keibi.manager.agents.heartbeats import Heartbeats
from keibi.manager.agents.revocations import Revocations
from keibi.manager.agents.service import EnrolmentService
from keibi.manager.agents.uploads import Uploads
from keibi.manager.agents.wake import WakeUps
from keibi.manager.http_errors import error_response

MAX_UNKNOWN_BODY_BYTES = 64 * 1024
"""Largest body from somebody who has not proved who they are."""
MAX_HEARTBEAT_BYTES = 8 * 1024 * 1024
MAX_HEARTBEAT_DECODED_BYTES = 32 * 1024 * 1024
BODY_SECONDS = 60.0
DRAIN_SECONDS = 2.0
WORKERS = 6
MAX_WAITING = 400
"""Requests that may wait for a worker; beyond it agents are told to come later, which they do."""
MAX_EVENT_BODIES = 8
"""Event bodies in memory at once: each may have 16 MiB, and 64 MiB decoded."""
MAX_WAITING_EVENT_BODIES = 64
MAX_UPLOAD_BODIES = 4
DEFAULT_WAKE_SECONDS = 25.0
CONTENT_TYPE_OF_FILES = "application/octet-stream"

T = TypeVar("T")


class TakesEvents(Protocol):
    """Whoever stores events and answers when they are durable."""

    async def submit(self, tenant_id: str, computer_id: str, batch: EventBatch, *, size_bytes: int | None = None) -> EventReceipt:
        """Store a batch."""
        ...


class FindsContent(Protocol):
    """Whoever knows where the files that a computer may fetch lie."""

    def path_for(self, tenant_id: str, computer_id: str, sha256: str) -> str:
        """Return the path of a content that this computer's policy names."""
        ...


class AgentRoutes:
    """The routes with what they need; `routes()` is mounted at /agent/v1."""

    def __init__(
        self,
        enrolment: EnrolmentService,
        tokens: AccessTokens,
        revocations: Revocations,
        heartbeats: Heartbeats,
        wake_ups: WakeUps,
        events: TakesEvents,
        uploads: Uploads,
        content: FindsContent,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._enrolment = enrolment
        self._tokens = tokens
        self._revocations = revocations
        self._heartbeats = heartbeats
        self._wake_ups = wake_ups
        self._events = events
        self._uploads = uploads
        self._content = content
        self._clock = clock
        self._workers = _Workers("agent requests", WORKERS, MAX_WAITING)
        self._event_bodies = _Workers("event batches", MAX_EVENT_BODIES, MAX_WAITING_EVENT_BODIES)
        self._upload_bodies = _Workers("uploads", MAX_UPLOAD_BODIES, MAX_WAITING_EVENT_BODIES)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/enrol", self._enrol, methods=["POST"]),
            Route("/challenge", self._challenge, methods=["POST"]),
            Route("/token", self._token, methods=["POST"]),
            Route("/heartbeat", self._heartbeat, methods=["POST"]),
            Route("/wake", self._wake, methods=["GET"]),
            Route("/events", self._take_events, methods=["POST"]),
            Route("/uploads/{command_id}", self._take_upload, methods=["PUT"]),
            Route("/content/{sha256}", self._send_content, methods=["GET"]),
        ]

    async def _enrol(self, request: Request) -> Response:
        async with _answering(request) as answer:
            body = await read_body(request, MAX_UNKNOWN_BODY_BYTES)
            answer.value = await self._workers.run(lambda: self._enrolment.enrol(_small(body, EnrolRequest)))
        return answer.response()

    async def _challenge(self, request: Request) -> Response:
        async with _answering(request) as answer:
            body = await read_body(request, MAX_UNKNOWN_BODY_BYTES)

            def make() -> ChallengeResponse:
                return ChallengeResponse(self._enrolment.challenge(_small(body, ChallengeRequest).computer_id))

            answer.value = await self._workers.run(make)
        return answer.response()

    async def _token(self, request: Request) -> Response:
        async with _answering(request) as answer:
            body = await read_body(request, MAX_UNKNOWN_BODY_BYTES)
            answer.value = await self._workers.run(lambda: self._enrolment.grant_access(_small(body, TokenRequest)))
        return answer.response()

    async def _heartbeat(self, request: Request) -> Response:
        async with _answering(request) as answer:
            claims = self._recognise(request)
            body = await read_body(request, MAX_HEARTBEAT_BYTES)

            def work() -> HeartbeatResponse:
                decoded = decode(body, HeartbeatRequest, max_decoded_bytes=MAX_HEARTBEAT_DECODED_BYTES)
                return self._heartbeats.take(claims, decoded)

            # Before the work and not after: a wake-up that comes meanwhile must lead to another heartbeat.
            self._wake_ups.has_come(claims.computer_id)
            answer.value = await self._workers.run(work)
        return answer.response()

    async def _wake(self, request: Request) -> Response:
        async with _answering(request) as answer:
            claims = self._recognise(request)
            seconds = _seconds(request.query_params.get("seconds", ""))
            # No longer than the token: after it the answer would be for somebody who may have been refused meanwhile.
            left = max(0.0, claims.expires_at - self._clock())
            is_due = await self._wake_ups.wait(claims.computer_id, min(seconds, left))
            self._revocations.check(claims)
            answer.value = WakeResponse(is_due=is_due)
        return answer.response()

    async def _take_events(self, request: Request) -> Response:
        async with _answering(request) as answer:
            claims = self._recognise(request)
            async with self._event_bodies.slot():
                body = await read_body(request, MAX_BODY_BYTES)
                batch, size_bytes = await self._workers.run(lambda: _batch(body))
            answer.value = await self._events.submit(claims.tenant_id, claims.computer_id, batch, size_bytes=size_bytes)
        return answer.response()

    async def _take_upload(self, request: Request) -> Response:
        async with _answering(request) as answer:
            claims = self._recognise(request)
            command_id = request.path_params["command_id"]
            offset = _whole(request.query_params.get("offset", "0"))
            is_final = request.query_params.get("final", "0") == "1"
            async with self._upload_bodies.slot():
                # Before the body: a part that nobody waits for costs no more than this question.
                await self._workers.run(lambda: self._uploads.check(claims, command_id))
                body = await read_body(request, PART_BYTES)
                answer.value = await self._workers.run(
                    lambda: self._uploads.take(claims, command_id, offset, body, is_final=is_final)
                )
        return answer.response()

    async def _send_content(self, request: Request) -> Response:
        """Send a file that the computer's policy names, or the part of it that the Range header asks for."""
        path = ""
        async with _answering(request) as answer:
            claims = self._recognise(request)
            sha256 = request.path_params["sha256"]
            path = await self._workers.run(lambda: self._content.path_for(claims.tenant_id, claims.computer_id, sha256))
        return FileResponse(path, media_type=CONTENT_TYPE_OF_FILES) if path else answer.response()

    def _recognise(self, request: Request) -> Claims:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise NotSignedInError("token_missing", "this request has no access token", hint="sign a challenge first")
        claims = self._tokens.check(token)
        self._revocations.check(claims)
        return claims


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the request's body; stops at the cap and after BODY_SECONDS.

    Raises:
        RefusedError: it is larger. TryLaterError: it comes too slowly, or the connection broke.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:15]) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
    except (TimeoutError, ClientDisconnect) as error:
        raise TryLaterError("body_incomplete", "the body did not arrive whole in time") from error
    return b"".join(chunks)


class _Workers:
    """A bounded number of worker threads with a bounded number of requests waiting for them."""

    def __init__(self, what: str, count: int, max_waiting: int) -> None:
        self._what = what
        self._count = count
        self._max_waiting = max_waiting
        self._present = 0
        self._slots: asyncio.Semaphore | None = None
        self._limiter: anyio.CapacityLimiter | None = None

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for one of the slots; at most `max_waiting` may wait.

        Raises:
            TryLaterError: too many wait already.
        """
        if self._present >= self._count + self._max_waiting:
            raise TryLaterError(
                "manager_overloaded",
                f"{self._present} {self._what} wait already",
                hint="the agent comes again by itself",
                retry_after_seconds=5.0,
            )
        if self._slots is None:
            self._slots = asyncio.Semaphore(self._count)
        self._present += 1
        try:
            async with self._slots:
                yield
        finally:
            self._present -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns in a worker thread."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._count)
        async with self.slot():
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)


class _Answer:
    def __init__(self) -> None:
        self.value: object = None
        self.error: KeibiError | None = None

    def response(self) -> Response:
        if self.error is not None:
            return error_response(self.error)
        return Response(encode(self.value), media_type=CONTENT_TYPE)


@asynccontextmanager
async def _answering(request: Request) -> AsyncIterator[_Answer]:
    # Errors are answered here and not by the application's handlers: no log line for what strangers send, and no way
    # through the middleware of the console.
    answer = _Answer()
    try:
        yield answer
    except KeibiError as error:
        answer.error = error
        await _drain(request)


async def _drain(request: Request) -> None:
    """Take a small body that nobody will read, so that the connection can be used again; a large one costs it."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:15]) > MAX_UNKNOWN_BODY_BYTES:
        return
    # RuntimeError: the body was read before the error.
    with contextlib.suppress(RuntimeError, ClientDisconnect, TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in request.stream():
                pass


def _small(body: bytes, type_: type[T]) -> T:
    return decode(body, type_, max_decoded_bytes=MAX_UNKNOWN_BODY_BYTES)


def _batch(body: bytes) -> tuple[EventBatch, int]:
    data = decompress(body, MAX_DECODED_BYTES)
    try:
        return msgspec.msgpack.decode(data, type=EventBatch), len(data)
    except msgspec.ValidationError as error:
        raise InputError("body_invalid", f"the body is not a valid EventBatch: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError("body_malformed", f"the body is not msgpack: {error}") from error


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise InputError("offset_invalid", f"offset={text[:40]!r} is not a whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text) if text else DEFAULT_WAKE_SECONDS
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 3600:
        raise InputError("seconds_invalid", f"seconds={text[:40]!r} is not a number from 0 to 3600")
    return seconds


def _too_large(max_bytes: int) -> RefusedError:
    return RefusedError("body_too_large", f"the body has more than {max_bytes} bytes")
