"""The REST API, for the command line: certificate pinned, errors turned into the four families."""

import http.client
import json
import os
import ssl
import tomllib
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from keibi.errors import AccessError, InputError, KeibiError, TryLaterError

PROFILE_PATHS = ("~/.config/keibi/cli.toml", "/var/lib/keibi/cli.toml")
"""Where the command line looks for its manager; the second is written by `keibi up` and readable by root alone."""
BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Profile:
    """Which manager, and as whom. From the environment (KEIBI_URL, KEIBI_API_KEY, KEIBI_CA) or a file with the same names."""

    url: str
    api_key: str
    ca_file: str

    @classmethod
    def load(cls) -> "Profile":
        """Return the profile of the environment, else of the first file there is.

        Raises:
            InputError: there is none, or it is incomplete.
        """
        values = {name: os.environ.get(f"KEIBI_{name.upper()}", "") for name in ("url", "api_key", "ca")}
        for candidate in PROFILE_PATHS:
            path = os.path.expanduser(candidate)
            try:
                with open(path, "rb") as file:
                    content = tomllib.load(file)
            except OSError:
                continue
            except tomllib.TOMLDecodeError as error:
                raise InputError("profile_malformed", f"this is not TOML: {error}", where=path) from error
            values = {name: values[name] or str(content.get(name, "")) for name in values}
            break
        if not values["url"]:
            raise InputError(
                "no_manager",
                "no manager is known to the command line",
                hint="set KEIBI_URL and KEIBI_API_KEY, or run it as root where 'keibi up' ran",
            )
        return cls(values["url"].rstrip("/"), values["api_key"], values["ca"])


class ApiClient:
    """One connection to the manager's REST API."""

    def __init__(self, profile: Profile, *, timeout_seconds: float = 30.0) -> None:
        self._profile = profile
        self._timeout_seconds = timeout_seconds

    def get(self, path: str, **query: Any) -> Any:
        """Return the decoded answer of GET /api/v1{path}; query values that are None are left out."""
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """Return the decoded answer of POST /api/v1{path}."""
        return self.call("POST", path, body=body, query=query)

    def upload(self, path: str, file: IO[bytes], **query: Any) -> Any:
        """Return the decoded answer of POST /api/v1{path} with a file as its body.

        Raises:
            As `call`.
        """
        return self.call("POST", path, body=file, query=query)

    def call(self, method: str, path: str, *, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        """Return the decoded JSON answer, or text where it is not JSON, or None where there is no body.

        Raises:
            InputError, AccessError, TryLaterError: as the manager says, or because it cannot be reached.
        """
        connection = self._connect()
        try:
            response = self._request(connection, method, path, body, query)
            data = response.read()
            if response.status >= 400:
                raise _error_of(response.status, data, f"{method} {path}")
            if "json" in response.headers.get("Content-Type", ""):
                return json.loads(data) if data else None
            return data.decode("utf-8", "replace") if data else None
        finally:
            connection.close()

    def lines(self, path: str, **query: Any) -> Iterator[str]:
        """Yield the lines of an answer that goes on (server-sent events, CSV) as they come."""
        connection = self._connect()
        try:
            response = self._request(connection, "GET", path, None, query)
            if response.status >= 400:
                raise _error_of(response.status, response.read(), f"GET {path}")
            while line := response.readline():
                yield line.decode("utf-8", "replace").rstrip("\r\n")
        finally:
            connection.close()

    def blocks(self, path: str) -> Iterator[bytes]:
        """Yield the content of an answer in blocks as they come.

        Raises:
            As `call`; TryLaterError: it ended before its end.
        """
        connection = self._connect()
        try:
            response = self._request(connection, "GET", path, None, None)
            if response.status >= 400:
                raise _error_of(response.status, response.read(), f"GET {path}")
            left = response.length
            while block := response.read(BLOCK_BYTES):
                left = None if left is None else left - len(block)
                yield block
            if left:
                raise TryLaterError("answer_incomplete", f"the answer ended {left} bytes too early", where=path)
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        parts = urllib.parse.urlsplit(self._profile.url)
        if parts.scheme == "http":
            if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
                raise InputError("url_insecure", f"{self._profile.url} would send the key unencrypted", hint="use https://")
            return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=self._timeout_seconds)
        if parts.scheme != "https" or not parts.hostname:
            raise InputError("url_invalid", f"{self._profile.url!r} is not an address like https://manager.example:8443")
        try:
            context = ssl.create_default_context(cafile=self._profile.ca_file or None)
        except OSError as error:
            raise InputError(
                "ca_unreadable", f"cannot read the manager's certificate authority: {error}", where=self._profile.ca_file
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=self._timeout_seconds, context=context)

    def _request(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any, query: dict[str, Any] | None
    ) -> http.client.HTTPResponse:
        pairs = [(name, value) for name, value in (query or {}).items() if value not in (None, "", [])]
        address = f"/api/v1{path}" + (f"?{urllib.parse.urlencode(pairs, doseq=True)}" if pairs else "")
        headers = {"Authorization": f"Bearer {self._profile.api_key}"} if self._profile.api_key else {}
        payload: Any = None
        if hasattr(body, "read"):
            payload = body
            headers["Content-Type"] = "application/octet-stream"
            headers["Content-Length"] = str(os.fstat(body.fileno()).st_size)
        elif body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, address, body=payload, headers=headers)
            return connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            raise AccessError(
                "manager_untrusted",
                f"the certificate of {self._profile.url} was not issued by the expected authority: {error.verify_message}",
                hint="KEIBI_CA names the file with the manager's authority",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise TryLaterError(
                "manager_unreachable",
                f"cannot reach the manager at {self._profile.url}: {error}",
                hint="is it running? 'keibi status' tells on the manager's own computer",
            ) from error


def segment(text: str) -> str:
    """Return an id as one part of a path, whatever is in it.

    Raises:
        InputError: there is nothing in it.
    """
    if not text.strip("./ "):
        raise InputError("id_invalid", f"{text!r} is no id", hint="the lists show them")
    return urllib.parse.quote(text, safe="")


def _error_of(status: int, data: bytes, where: str) -> KeibiError:
    try:
        said = json.loads(data)["error"]
        code, message, hint = str(said["code"]), str(said["message"]), str(said.get("hint", ""))
        where = str(said.get("where", "")) or where
    except (ValueError, KeyError, TypeError):
        code, message, hint = f"http_{status}", f"the manager answered {status}", ""
    if status in (401, 403):
        return AccessError(code, message, where=where, hint=hint)
    if status in (429, 502, 503, 504):
        return TryLaterError(code, message, where=where, hint=hint)
    return InputError(code, message, where=where, hint=hint)
