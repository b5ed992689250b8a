"""Secret keys in files that only the manager can read; made on first use, never sent anywhere."""

import contextlib
import os
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from keibi.errors import InputError, RefusedError, TryLaterError

KEY_BYTES = 32
_NONCE_BYTES = 12


def load_or_make_key(path: str) -> bytes:
    """Return the key in the file at `path`, made from the system's random source if there is none.

    Raises:
        InputError: the file is not a key. RefusedError: others may read it. TryLaterError: it cannot be read or written.
    """
    try:
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise TryLaterError("key_unreadable", f"cannot read or make a key file: {error.strerror}", where=path) from error
    if mode & 0o077:
        raise RefusedError("key_exposed", f"others may read this key (mode {mode & 0o777:o})", where=path, hint="chmod 600 it")
    if len(key) != KEY_BYTES:
        raise InputError(
            "key_malformed", f"a key has {KEY_BYTES} bytes, this file has another length", where=path, hint="restore a backup"
        )
    return key


class UnlockSecrets:
    """The secret that each computer shares with the manager, for codes that work without a network (`contract.unlock`).

    Derived from one key (HKDF, RFC 5869), so that nothing of it is stored: whoever has the key file has every computer's.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, computer_id: str) -> bytes:
        """Return the secret of a computer, the same each time."""
        info = b"keibi unlock v1\0" + computer_id.encode()
        return HKDFExpand(hashes.SHA256(), KEY_BYTES, info).derive(self._key)


class SecretBox:
    """Encrypts small secrets for the database (AES-256-GCM), bound to what they belong to."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, secret: bytes, owner: str) -> bytes:
        """Return the secret encrypted; only `open` with the same owner gives it back."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, owner.encode())

    def open(self, sealed: bytes, owner: str) -> bytes:
        """Return the secret.

        Raises:
            RefusedError: another key or owner, or changed bytes.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], owner.encode())
        except InvalidTag as error:
            raise RefusedError(
                "secret_unreadable", "a stored secret cannot be decrypted", hint="was the key file replaced? restore it"
            ) from error
