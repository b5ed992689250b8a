"""HTTPS to the manager: TLS 1.3, only the pinned authority, host name checked, bounded answers, errors that say what to do.

Standard library only, blocking, one connection for one thread. The manager answers the contract's bodies; its errors are
JSON `{"error": {"code", "message", "hint"}}`.
"""

import contextlib
import http.client
import random
import socket
import ssl
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from keibi.agent.version import agent_version
from keibi.contract.codec import CONTENT_TYPE, MAX_BODY_BYTES, decode, encode
from keibi.errors import AccessError, InputError, KeibiError, RefusedError, TryLaterError

CONNECT_TIMEOUT_SECONDS = 10.0
ANSWER_TIMEOUT_SECONDS = 60.0
MAX_ERROR_BYTES = 64 * 1024
MAX_RETRY_AFTER_SECONDS = 600.0
DEFAULT_RETRY_AFTER_SECONDS = 5.0

_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID of OpenSSL

T = TypeVar("T")


@dataclass(frozen=True)
class Endpoint:
    """Where the manager is and how it proves itself."""

    host: str
    port: int
    context: ssl.SSLContext

    @property
    def name(self) -> str:
        """As shown to people: host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Reply:
    """An answer of the manager, body bounded."""

    status: int
    content_type: str
    retry_after: str
    body: bytes


class _ManagerError(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""
    hint: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ManagerError


class Backoff:
    """Full jitter: each wait is random up to a bound that doubles from `least_seconds` to `most_seconds`."""

    def __init__(self, least_seconds: float = 1.0, most_seconds: float = 60.0) -> None:
        self._least = least_seconds
        self._most = most_seconds
        self._failures = 0

    def failed(self, error: KeibiError | None = None) -> float:
        """Return how many seconds to wait after one more failure; at least what the manager asked for."""
        bound = min(self._most, self._least * 2 ** min(self._failures, 16))
        self._failures += 1
        wait = random.uniform(0.0, bound)  # noqa: S311 - spreads load, keeps no secret
        if isinstance(error, TryLaterError) and error.code == "manager_busy":
            return error.retry_after_seconds + wait
        return wait

    def succeeded(self) -> None:
        """Start anew."""
        self._failures = 0


def endpoint_of(manager_url: str, ca_pem: str) -> Endpoint:
    """Return the endpoint for an address such as https://keibi.example:8443, trusting only `ca_pem`.

    Raises:
        InputError: the address is not https://host[:port], or `ca_pem` holds no certificate.
    """
    try:
        parts = urlsplit(manager_url)
        host, port = parts.hostname, parts.port or 443
    except ValueError as error:
        raise InputError("manager_url_invalid", f"{manager_url!r} is not an address: {error}") from error
    if parts.scheme != "https" or not host or parts.path not in ("", "/") or parts.query or parts.username:
        raise InputError(
            "manager_url_invalid",
            f"{manager_url!r} is not the address of a manager",
            hint="it looks like https://keibi.example:8443",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise InputError(
            "ca_invalid",
            "the CA is not a PEM certificate",
            hint="copy the manager's ca.pem whole, with its BEGIN and END lines",
        ) from error
    return Endpoint(host, port, context)


class Connection:
    """One keep-alive connection. Used by one thread; `abort` may be called by another."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._connection: http.client.HTTPSConnection | None = None
        self._is_aborted = False

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        access_token: str = "",
        timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
        byte_range: tuple[int, int] | None = None,
    ) -> Reply:
        """Send one request and return the answer, whatever its status.

        `byte_range` asks for a part of a file: the first byte and the last, both included.

        A kept connection that the manager has closed meanwhile is opened again once: every request may be sent twice.

        Raises:
            TryLaterError: the manager is away or does not answer in time.
            RefusedError: it does not prove to be the manager.
            InputError: what answers does not speak HTTP, or says more than it may.
        """
        is_last_try = self._connection is None
        while True:
            try:
                return self._exchange(method, path, body, access_token, timeout_seconds, byte_range)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError) as error:
                self.close()
                if is_last_try or self._is_aborted:
                    raise _told(error, self.endpoint) from error
                is_last_try = True
            except (OSError, http.client.HTTPException) as error:
                self.close()
                raise _told(error, self.endpoint) from error
            except BaseException:
                self.close()
                raise

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes,
        access_token: str,
        timeout_seconds: float,
        byte_range: tuple[int, int] | None,
    ) -> Reply:
        connection = self._connection
        if connection is None:
            connection = http.client.HTTPSConnection(
                self.endpoint.host, self.endpoint.port, timeout=CONNECT_TIMEOUT_SECONDS, context=self.endpoint.context
            )
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection = connection
        connection.sock.settimeout(timeout_seconds)
        if self._is_aborted:
            raise TimeoutError("the agent is stopping")
        headers = {"Accept": CONTENT_TYPE, "User-Agent": f"keibi-agent/{agent_version()}"}
        if body:
            headers["Content-Type"] = CONTENT_TYPE
        if access_token:
            headers["Authorization"] = f"Bearer {access_token}"
        if byte_range is not None:
            headers["Range"] = f"bytes={byte_range[0]}-{byte_range[1]}"
        connection.request(method, path, body=body or None, headers=headers)
        response = connection.getresponse()
        limit = MAX_BODY_BYTES if response.status in (200, 206) else MAX_ERROR_BYTES
        content = response.read(limit + 1)
        if len(content) > limit:
            raise InputError(
                "manager_answer_invalid",
                f"the answer has more than {limit} bytes (status {response.status})",
                where=self.endpoint.name,
                hint="what answers there may not be a Keibi manager",
            )
        if response.will_close:
            self.close()
        return Reply(response.status, response.headers.get_content_type(), response.headers.get("Retry-After", ""), content)

    def abort(self) -> None:
        """End a request that waits in another thread, for good."""
        self._is_aborted = True
        connection = self._connection
        plain = connection.sock if connection is not None else None
        if plain is not None:
            with contextlib.suppress(OSError):
                plain.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the connection; the next request opens one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def post(connection: Connection, path: str, value: object, type_: type[T], *, access_token: str = "") -> T:
    """Send `value` and return the answer as `type_`.

    Raises:
        KeibiError: of the family that says who must act.
    """
    reply = connection.request("POST", path, body=encode(value), access_token=access_token)
    return answer_of(reply, type_, connection.endpoint)


def answer_of(reply: Reply, type_: type[T], endpoint: Endpoint) -> T:
    """Return the `type_` in a reply of status 200; raises what any other reply means.

    Raises:
        KeibiError: of the family that says who must act, with the manager's own words where it gave some.
    """
    if reply.status != 200:
        raise refusal_of(reply, endpoint)
    if reply.content_type != CONTENT_TYPE:
        raise InputError(
            "manager_answer_invalid",
            f"the answer is {reply.content_type}, not what a Keibi manager sends",
            where=endpoint.name,
            hint="a proxy or another program answers there; agents need a direct way to the manager",
        )
    try:
        return decode(reply.body, type_)
    except InputError as error:
        raise InputError(
            "manager_answer_invalid",
            f"the manager's answer cannot be read: {error.message}",
            where=endpoint.name,
            hint="manager and agent may be of versions that do not go together: update the older one",
        ) from error


def refusal_of(reply: Reply, endpoint: Endpoint) -> KeibiError:
    """Return what a reply that is not what was asked for means."""
    where = endpoint.name
    told = _ManagerError()
    if reply.content_type == "application/json":
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            told = msgspec.json.decode(reply.body, type=_ErrorBody).error
    message = told.message or f"the manager answered with status {reply.status}"
    match reply.status:
        case 401 | 403:
            return AccessError(told.code or "manager_denies", message, where=where, hint=told.hint)
        case 404 | 405 if not told.code:
            return InputError(
                "manager_version",
                f"the manager does not know this request (status {reply.status})",
                where=where,
                hint="it may be of another version than this agent, or another program answers there",
            )
        case 429 | 503:
            return TryLaterError(
                "manager_busy", message, where=where, hint=told.hint, retry_after_seconds=_retry_after(reply.retry_after)
            )
        case status if status >= 500:
            return TryLaterError(told.code or "manager_failed", message, where=where, hint=told.hint or "see the manager's log")
        case status if 300 <= status < 400:
            return InputError(
                "manager_answer_invalid",
                f"the answer sends elsewhere (status {status})",
                where=where,
                hint="a proxy answers there",
            )
    return InputError(told.code or "manager_refuses", message, where=where, hint=told.hint)


def _retry_after(text: str) -> float:
    # The other form of the header, a date, is not used by the manager.
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdigit() else DEFAULT_RETRY_AFTER_SECONDS


def _told(error: OSError | http.client.HTTPException, endpoint: Endpoint) -> KeibiError:
    """Return what an error of socket, TLS or HTTP means to a person."""
    where = endpoint.name
    match error:
        case ssl.SSLCertVerificationError():
            return _untrusted(error, where)
        case ssl.SSLEOFError() | http.client.RemoteDisconnected() | ConnectionResetError() | BrokenPipeError():
            return TryLaterError("manager_hung_up", "the manager closed the connection", where=where, hint="it may be restarting")
        case ssl.SSLError():
            return InputError(
                "manager_no_tls",
                f"no TLS 1.3 with what listens there: {error.reason or error}",
                where=where,
                hint="is the port the manager's, and no proxy between?",
            )
        case ConnectionRefusedError():
            return TryLaterError(
                "manager_refused_connection",
                "nothing listens at the manager's address",
                where=where,
                hint="is the manager running?",
            )
        case socket.gaierror():
            return TryLaterError(
                "manager_name_unknown", f"the manager's name cannot be resolved: {error.strerror}", where=where, hint="check DNS"
            )
        case TimeoutError():
            return TryLaterError(
                "manager_timeout",
                "the manager does not answer in time",
                where=where,
                hint="a firewall between, or it is overloaded",
            )
        case OSError():
            return TryLaterError("manager_unreachable", f"the manager cannot be reached: {error}", where=where)
    return InputError(
        "manager_answer_invalid",
        f"what answers does not speak HTTP: {type(error).__name__} {error}",
        where=where,
        hint="a proxy or another program answers there",
    )


def _untrusted(error: ssl.SSLCertVerificationError, where: str) -> KeibiError:
    match error.verify_code:
        case 9 | 10:  # not yet valid, expired
            what = "is not valid yet" if error.verify_code == _NOT_YET_VALID else "has expired"
            return RefusedError(
                "manager_certificate_time",
                f"the manager's certificate {what} by this computer's clock",
                where=where,
                hint="compare the clocks of this computer and of the manager; renew the certificate if they agree",
            )
        case 62 | 64:  # host name, address
            return RefusedError(
                "manager_certificate_name",
                f"the manager's certificate is for another name: {error.verify_message}",
                where=where,
                hint="use an address that the certificate names, or add this one at the manager",
            )
    return RefusedError(
        "manager_certificate_untrusted",
        f"the manager's certificate is not from the authority this agent trusts: {error.verify_message}",
        where=where,
        hint="if the manager was set up anew, enrol again with its new ca.pem; otherwise somebody may be in between",
    )
