"""Challenges: nonces that the manager need not remember until they are answered.

A nonce holds its time and a MAC over it and the computer's id, so that asking for a million of them costs no memory. Only one
that came back with a valid signature is remembered, until it expires, so that it counts once.
"""

import hmac
import secrets
import struct
import threading
import time
from collections.abc import Callable

from keibi.contract.enrolment import CHALLENGE_SECONDS
from keibi.manager.access.model import NotSignedInError

_HEAD = struct.Struct("!d16s")
_MAC_BYTES = 16
_CONTEXT = b"keibi agent challenge nonce v1\0"


class Challenges:
    """Makes nonces and takes each back once."""

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock
        self._used: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def issue(self, computer_id: str) -> bytes:
        """Return a nonce for whoever says to be that computer."""
        head = _HEAD.pack(self._clock(), secrets.token_bytes(16))
        return head + self._mac(head, computer_id)

    def check(self, computer_id: str, nonce: bytes) -> None:
        """Do nothing if the nonce is ours, for that computer, and not too old.

        Raises:
            NotSignedInError: it is not.
        """
        head = nonce[: _HEAD.size]
        is_ours = len(nonce) == _HEAD.size + _MAC_BYTES and hmac.compare_digest(nonce[_HEAD.size :], self._mac(head, computer_id))
        if not is_ours or not 0 <= self._clock() - _HEAD.unpack(head)[0] < CHALLENGE_SECONDS:
            raise NotSignedInError("challenge_invalid", "this challenge is not valid any more", hint="ask for a new one")

    def use(self, nonce: bytes) -> None:
        """Use a checked nonce up, after its signature was found right.

        Raises:
            NotSignedInError: it was used before.
        """
        now = self._clock()
        with self._lock:
            if len(self._used) > 1000:
                self._used = {used: until for used, until in self._used.items() if until > now}
            if nonce in self._used:
                raise NotSignedInError("challenge_used", "this challenge was answered already", hint="ask for a new one")
            self._used[nonce] = now + CHALLENGE_SECONDS

    def _mac(self, head: bytes, computer_id: str) -> bytes:
        return hmac.digest(self._key, _CONTEXT + head + computer_id.encode("utf-8", "replace"), "sha256")[:_MAC_BYTES]
