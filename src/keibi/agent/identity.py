"""Who this computer is to the manager: its id, its Ed25519 key and the authority that vouches for the manager.

All of it is one file (`identity.json`, mode 0600), so that it is there whole or not at all. A key that waits for its
enrolment to be answered is in `identity.key.pending`; it is used again when enrolment is tried again.
"""

import contextlib
import os
import stat
import time

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keibi.agent.durable_file import read_if_there, sync_directory, write_durably
from keibi.errors import InputError, RefusedError, TryLaterError


class Identity(msgspec.Struct, frozen=True):
    """What enrolment gave this computer. `key_pem` is secret."""

    computer_id: str
    tenant_name: str
    manager_url: str
    machine_id: str
    enrolled_at: float
    ca_pem: str
    key_pem: str

    def __repr__(self) -> str:
        return f"Identity({self.computer_id!r}, {self.manager_url!r})"

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of `message`."""
        return load_key(self.key_pem.encode(), where="identity.json").sign(message)


class IdentityStore:
    """The identity in a state directory."""

    def __init__(self, state_directory: str) -> None:
        self._directory = state_directory
        self.path = os.path.join(state_directory, "identity.json")
        self._pending_path = os.path.join(state_directory, "identity.key.pending")

    def load(self, machine_id: str) -> Identity | None:
        """Return the identity of this computer, or None before it is enrolled.

        Raises:
            RefusedError: others may read the key, or it was enrolled on a computer with another machine id (a clone).
            InputError: the file is damaged.
        """
        content = read_if_there(self.path)
        if content is None:
            return None
        mode = stat.S_IMODE(os.stat(self.path).st_mode)
        if mode & 0o077:
            raise RefusedError(
                "identity_exposed",
                f"the computer's private key can be read by others (mode {mode:04o})",
                where=self.path,
                hint="enrol again with `keibi agent enrol --again`: the key may be known to others",
            )
        try:
            identity = msgspec.json.decode(content, type=Identity)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(
                "identity_damaged",
                f"the identity cannot be read: {error}",
                where=self.path,
                hint="enrol again with `keibi agent enrol --again`",
            ) from error
        if identity.machine_id and machine_id and identity.machine_id != machine_id:
            raise RefusedError(
                "identity_cloned",
                f"the identity belongs to the computer with machine id {identity.machine_id}, and this one is {machine_id}",
                where=self.path,
                hint="this disk looks cloned: give the copy its own identity with `keibi agent enrol --again`",
            )
        return identity

    def pending_key(self) -> Ed25519PrivateKey:
        """Return the key to enrol with: a new one, or that of an enrolment which was not finished.

        Raises:
            TryLaterError: the key cannot be written.
        """
        content = read_if_there(self._pending_path)
        if content is not None:
            with contextlib.suppress(InputError):  # a torn file of a crash: make a new key
                return load_key(content, where=self._pending_path)
            os.unlink(self._pending_path)
        key = Ed25519PrivateKey.generate()
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(self._pending_path, flags, 0o600), "wb") as file:
                file.write(key_pem(key))
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self._directory)
        except OSError as error:
            raise TryLaterError(
                "state_not_writable",
                f"the computer's key could not be written: {error.strerror}",
                where=self._pending_path,
                hint="run as root, with room on the disk",
            ) from error
        return key

    def forget_pending_key(self) -> bool:
        """Remove the key of an enrolment that was not finished; returns whether there was one."""
        try:
            os.unlink(self._pending_path)
        except FileNotFoundError:
            return False
        return True

    def save(self, identity: Identity) -> None:
        """Make `identity` the identity of this computer, durably, and forget the pending key.

        Raises:
            TryLaterError: it cannot be written; enrolling again will use the same key.
        """
        write_durably(self.path, msgspec.json.encode(identity), mode=0o600)
        with contextlib.suppress(OSError):
            self.forget_pending_key()


def key_pem(key: Ed25519PrivateKey) -> bytes:
    """Return the private key as PEM (PKCS 8)."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the public half: 32 raw bytes."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def load_key(pem: bytes, *, where: str) -> Ed25519PrivateKey:
    """Return the private key that `pem` holds.

    Raises:
        InputError: it is not an Ed25519 private key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise InputError("identity_damaged", "the private key cannot be read", where=where) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("identity_damaged", "the private key is not an Ed25519 key", where=where)
    return key


def new_identity(
    *, computer_id: str, tenant_name: str, manager_url: str, machine_id: str, ca_pem: str, key: Ed25519PrivateKey
) -> Identity:
    """Return the identity that enrolment gave, as of now."""
    return Identity(
        computer_id=computer_id,
        tenant_name=tenant_name,
        manager_url=manager_url,
        machine_id=machine_id,
        enrolled_at=time.time(),
        ca_pem=ca_pem,
        key_pem=key_pem(key).decode(),
    )
