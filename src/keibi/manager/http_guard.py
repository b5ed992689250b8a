"""What stands before every request: limits of size, and headers that tell browsers to be careful."""

from collections.abc import Collection, Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keibi.errors import RefusedError
from keibi.manager.http_errors import error_response

MAX_BODY_BYTES = 4 * 1024 * 1024
AGENT_PREFIX = "/agent/"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
}


class RequestGuard:
    """Caps bodies (the agents' routes have caps of their own) and adds headers that a route did not set itself."""

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES, larger: Mapping[str, int] | None = None) -> None:
        """`larger` are addresses with caps of their own."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._larger = dict(larger or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["path"].startswith(AGENT_PREFIX):
            await self._app(scope, receive, send_guarded)
            return
        most = self._larger.get(scope["path"], self._max_body_bytes)
        length = HTTPConnection(scope).headers.get("content-length", "")
        if length and (not length.isdecimal() or int(length[:15]) > most):
            await self._refuse(scope, receive, send_guarded, most)
            return
        await self._counted(scope, receive, send_guarded, most)

    async def _counted(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        size = 0
        has_started = False

        async def receive_counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise _TooLargeError
            return message

        async def send_noted(message: Message) -> None:
            nonlocal has_started
            # A framework that catches everything would answer in its own words: what is said below is right.
            if size <= most or has_started:
                has_started = True
                await send(message)

        try:
            await self._app(scope, receive_counted, send_noted)
        except _TooLargeError:
            pass
        if size > most and not has_started:
            await self._refuse(scope, receive, send, most)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        error = RefusedError("body_too_large", f"the body has more than {most} bytes", hint="send less at once")
        await error_response(error)(scope, receive, send)


class _TooLargeError(Exception):
    pass


def client_address(connection: HTTPConnection, trusted_proxies: Collection[str]) -> str:
    """Return where a request comes from: what X-Forwarded-For says only if a trusted proxy says it, else the peer."""
    peer = connection.client.host if connection.client else ""
    if peer not in trusted_proxies:
        return peer
    hops = [hop.strip() for hop in connection.headers.get("x-forwarded-for", "").split(",") if hop.strip()]
    # From the right: what stands left of the first hop that is no proxy of ours, anybody may have written.
    for hop in reversed(hops):
        if hop not in trusted_proxies:
            return hop[:64]
    return peer
