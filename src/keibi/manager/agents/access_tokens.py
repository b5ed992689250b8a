"""Access tokens: signed claims that are checked in memory, in microseconds, without database or disk.

A token is 48 bytes of claims and a 32-byte HMAC-SHA256, in base64: junk is refused by its length or by one HMAC.
"""

import base64
import binascii
import hmac
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from keibi.contract.enrolment import ACCESS_TOKEN_SECONDS
from keibi.manager.access.model import NotSignedInError

_CLAIMS = struct.Struct("!16s16sdd")
_MAC_BYTES = 32
_CHARACTERS = 4 * ((_CLAIMS.size + _MAC_BYTES) // 3) + 3
_CONTEXT = b"keibi agent access token v1\0"


@dataclass(frozen=True)
class Claims:
    """What a valid token says: which computer asks, of which tenant."""

    computer_id: str
    tenant_id: str
    issued_at: float
    expires_at: float


class AccessTokens:
    """Makes and checks access tokens with the manager's key; nodes that share the key take each other's."""

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock

    def issue(self, computer_id: str, tenant_id: str) -> str:
        """Return a token for a computer that has just proved who it is."""
        now = self._clock()
        claims = _CLAIMS.pack(bytes.fromhex(computer_id), bytes.fromhex(tenant_id), now, now + ACCESS_TOKEN_SECONDS)
        return base64.urlsafe_b64encode(claims + self._mac(claims)).decode().rstrip("=")

    def check(self, token: str) -> Claims:
        """Return the claims of a token that is ours and has not expired.

        Raises:
            NotSignedInError: it is not, or it has.
        """
        if len(token) != _CHARACTERS:
            raise _refused()
        try:
            raw = base64.b64decode(token + "=", altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _refused() from None
        if base64.urlsafe_b64encode(raw).decode().rstrip("=") != token:
            raise _refused()  # another spelling of the same bytes
        claims, mac = raw[: _CLAIMS.size], raw[_CLAIMS.size :]
        if len(mac) != _MAC_BYTES or not hmac.compare_digest(mac, self._mac(claims)):
            raise _refused()
        computer, tenant, issued_at, expires_at = _CLAIMS.unpack(claims)
        if self._clock() >= expires_at:
            raise NotSignedInError("token_expired", "this access token has expired", hint="sign a new challenge")
        return Claims(computer.hex(), tenant.hex(), issued_at, expires_at)

    def _mac(self, claims: bytes) -> bytes:
        return hmac.digest(self._key, _CONTEXT + claims, "sha256")


def _refused() -> NotSignedInError:
    return NotSignedInError("token_invalid", "this access token is not valid", hint="sign a new challenge")
