"""The one-time code that frees a computer from application control without a network.

The agent shows a challenge; the console answers with a code for it; the agent checks the code and forgets the challenge. Both
know a secret of this computer, which came with its policy. Root on the computer can read it: whoever is root there needs no code.
"""

import base64
import hashlib
import hmac
import secrets

_CHARACTERS = 16
_CONTEXT = b"keibi unlock v1\0"


def new_challenge() -> str:
    """Return a challenge such as `K7QX-M2NV`, easy to read out."""
    return _grouped(base64.b32encode(secrets.token_bytes(5)).decode())


def unlock_code(secret: bytes, challenge: str) -> str:
    """Return the code for a challenge: 80 bits of HMAC-SHA-256 in four groups."""
    digest = hmac.new(secret, _CONTEXT + _plain(challenge).encode(), hashlib.sha256).digest()
    return _grouped(base64.b32encode(digest).decode()[:_CHARACTERS])


def is_code(secret: bytes, challenge: str, code: str) -> bool:
    """Whether `code` is the one for `challenge`; spaces, hyphens and case do not matter."""
    return bool(secret) and hmac.compare_digest(_plain(unlock_code(secret, challenge)).encode(), _plain(code).encode())


def _plain(text: str) -> str:
    return "".join(text.upper().replace("-", "").split())


def _grouped(text: str) -> str:
    return "-".join(text[start : start + 4] for start in range(0, len(text), 4))
