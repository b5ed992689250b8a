"""Signed-in requests: a challenge is signed for an access token, which is renewed before it ends and when it is refused."""

import threading
import time
from typing import TypeVar

from keibi.agent.identity import Identity, load_key
from keibi.agent.transport import ANSWER_TIMEOUT_SECONDS, Connection, Endpoint, Reply, answer_of, post, refusal_of
from keibi.contract.codec import encode
from keibi.contract.enrolment import ChallengeRequest, ChallengeResponse, TokenRequest, TokenResponse, challenge_message

RENEW_BEFORE_SECONDS = 120.0

T = TypeVar("T")


class AccessTokens:
    """The access token that all of the agent's connections share. Kept in memory only."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._key = load_key(identity.key_pem.encode(), where="identity.json")
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0  # by the monotonic clock: one that jumps must not make a token live longer

    def get(self, connection: Connection, *, refused: str = "") -> str:
        """Return a valid token; a new one where it is about to end, or is the one that the manager `refused`.

        Raises:
            KeibiError: the manager is away, or does not accept this computer (disabled, removed).
        """
        with self._lock:
            if self._token and self._token != refused and time.monotonic() < self._renew_at:
                return self._token
            computer_id = self._identity.computer_id
            challenge = post(connection, "/agent/v1/challenge", ChallengeRequest(computer_id), ChallengeResponse)
            signature = self._key.sign(challenge_message(computer_id, challenge.nonce))
            granted = post(connection, "/agent/v1/token", TokenRequest(computer_id, challenge.nonce, signature), TokenResponse)
            self._token = granted.access_token
            lasts = float(granted.expires_in_seconds)
            self._renew_at = time.monotonic() + max(lasts - RENEW_BEFORE_SECONDS, lasts / 2)
            return self._token


class ManagerSession:
    """A connection of one thread that signs in by itself."""

    def __init__(self, endpoint: Endpoint, tokens: AccessTokens) -> None:
        self._connection = Connection(endpoint)
        self._tokens = tokens

    def post(self, path: str, value: object, type_: type[T]) -> T:
        """Send `value` and return the answer.

        Raises:
            KeibiError: of the family that says who must act.
        """
        return self._signed("POST", path, encode(value), type_, ANSWER_TIMEOUT_SECONDS)

    def get(self, path: str, type_: type[T], *, timeout_seconds: float) -> T:
        """Return the answer to a GET.

        Raises:
            KeibiError: of the family that says who must act.
        """
        return self._signed("GET", path, b"", type_, timeout_seconds)

    def put(self, path: str, body: bytes, type_: type[T]) -> T:
        """Send bytes as they are and return the answer.

        Raises:
            KeibiError: of the family that says who must act.
        """
        return self._signed("PUT", path, body, type_, ANSWER_TIMEOUT_SECONDS)

    def get_part(self, path: str, first: int, last: int) -> bytes:
        """Return the bytes from `first` to `last`, both included, of a file at the manager; fewer where it is shorter.

        Raises:
            KeibiError: of the family that says who must act.
        """
        reply = self._ask("GET", path, b"", ANSWER_TIMEOUT_SECONDS, (first, last))
        if reply.status != 206:
            raise refusal_of(reply, self._connection.endpoint)
        return reply.body

    def abort(self) -> None:
        """End a request that waits in another thread, for good."""
        self._connection.abort()

    def close(self) -> None:
        """Close the connection; called by the thread that uses it."""
        self._connection.close()

    def _signed(self, method: str, path: str, body: bytes, type_: type[T], timeout_seconds: float) -> T:
        return answer_of(self._ask(method, path, body, timeout_seconds), type_, self._connection.endpoint)

    def _ask(
        self, method: str, path: str, body: bytes, timeout_seconds: float, byte_range: tuple[int, int] | None = None
    ) -> Reply:
        def exchange(token: str) -> Reply:
            return self._connection.request(
                method, path, body=body, access_token=token, timeout_seconds=timeout_seconds, byte_range=byte_range
            )

        token = self._tokens.get(self._connection)
        reply = exchange(token)
        return exchange(self._tokens.get(self._connection, refused=token)) if reply.status == 401 else reply
