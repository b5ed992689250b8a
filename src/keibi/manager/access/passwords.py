"""Passwords: the rules, and Argon2id with OWASP's parameters, a few at a time."""

import secrets
import threading
import unicodedata
from dataclasses import dataclass

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from keibi.errors import InputError, TryLaterError

MIN_CHARACTERS = 12
MAX_CHARACTERS = 256
MAX_AT_ONCE = 2
"""Hashes at the same time: each takes 19 MiB and one core, so that a flood of sign-ins waits and does not take the machine."""
MAX_WAIT_SECONDS = 15.0
_ALPHABET = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # without what looks alike
# The start of well-known passwords that are long enough to pass the length.
_COMMON = ("password", "passw0rd", "123456", "qwerty", "letmein", "iloveyou", "welcome", "administrator", "changeme", "keibi")


@dataclass(frozen=True)
class Argon2Parameters:
    """Cost of a hash. The default is OWASP's first recommendation: 19 MiB, two passes, one lane."""

    memory_kib: int = 19 * 1024
    passes: int = 2
    lanes: int = 1


class Passwords:
    """Makes and checks password hashes; thread-safe, at most MAX_AT_ONCE at a time."""

    def __init__(self, parameters: Argon2Parameters = Argon2Parameters()) -> None:
        self._hasher = PasswordHasher(
            time_cost=parameters.passes, memory_cost=parameters.memory_kib, parallelism=parameters.lanes, type=Type.ID
        )
        self._slots = threading.BoundedSemaphore(MAX_AT_ONCE)
        # Checked for names that do not exist, so that they take as long as those that do.
        self._nobody = self._hasher.hash(secrets.token_urlsafe(16))

    def hash(self, password: str) -> str:
        """Return the hash to store.

        Raises:
            TryLaterError: too many wait already.
        """
        with _Slot(self._slots):
            return self._hasher.hash(_normal(password))

    def matches(self, stored: str | None, password: str) -> bool:
        """Whether the password is the one of the stored hash; None (no such user) takes the same time and is False.

        Raises:
            TryLaterError: too many wait already.
        """
        with _Slot(self._slots):
            try:
                is_right = self._hasher.verify(stored or self._nobody, _normal(password))
            except (VerifyMismatchError, InvalidHashError):
                return False
            return is_right and stored is not None

    def is_outdated(self, stored: str) -> bool:
        """Whether a hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)


def check_password_rules(password: str, *, user_name: str) -> None:
    """Do nothing if the password is good enough: long, not made of the name, not well known, not one letter again and again.

    Raises:
        InputError: it is not, and why.
    """
    text = _normal(password)
    reason = ""
    if len(text) < MIN_CHARACTERS:
        reason = f"it has {len(text)} characters; at least {MIN_CHARACTERS} are needed"
    elif len(text) > MAX_CHARACTERS:
        reason = f"it has more than {MAX_CHARACTERS} characters"
    elif user_name and len(user_name) > 2 and user_name.casefold() in text.casefold():
        reason = "it contains the user's name"
    elif len(set(text)) < 5:
        reason = "it repeats the same few characters"
    elif text.casefold().startswith(_COMMON) and len(text) < MIN_CHARACTERS + 4:
        reason = "it begins with a well-known password"
    if reason:
        raise InputError("password_weak", f"this password cannot be used: {reason}", hint="several unrelated words are good")


def generate_password() -> str:
    """Return a new random password in groups that can be read out: 20 letters and digits, 116 bits."""
    letters = [secrets.choice(_ALPHABET) for _ in range(20)]
    return "-".join("".join(letters[start : start + 5]) for start in range(0, 20, 5))


def _normal(password: str) -> str:
    # The same characters typed on another keyboard may come in another Unicode form (NIST 800-63B, 5.1.1.2).
    return unicodedata.normalize("NFKC", password)


class _Slot:
    def __init__(self, slots: threading.BoundedSemaphore) -> None:
        self._slots = slots

    def __enter__(self) -> None:
        if not self._slots.acquire(timeout=MAX_WAIT_SECONDS):
            raise TryLaterError("sign_in_busy", "too many sign-ins at once", hint="try again in a minute", retry_after_seconds=30)

    def __exit__(self, *_: object) -> None:
        self._slots.release()
