"""The manager's own certificate authority and its server certificate.

The authority is made once and lasts ten years: agents pin it at enrolment. The server's certificate is made from it at the
start, and anew when its end comes near or the manager gets other names.
"""

import contextlib
import datetime as dt
import ipaddress
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keibi.errors import InputError, RefusedError, TryLaterError

CA_DAYS = 3650
SERVER_DAYS = 397  # what browsers accept at most
RENEW_BEFORE_DAYS = 60
# Clocks of agents that run a little late must not find the certificate "not valid yet".
BACKDATED = dt.timedelta(days=1)


@dataclass(frozen=True)
class ServerCertificate:
    """The files that the server is started with, and the authority that agents pin."""

    ca_file: str
    certificate_file: str
    key_file: str
    ends_at: dt.datetime


def ensure_certificates(directory: str, host_names: Iterable[str] = ()) -> ServerCertificate:
    """Make what is missing in `directory` or near its end, and return the files.

    Raises:
        TryLaterError: the directory cannot be written. RefusedError: others may read a key. InputError: a file is no
            certificate or key, or a name cannot be in one.
    """
    paths = {name: os.path.join(directory, name) for name in ("ca.pem", "ca.key", "server.pem", "server.key")}
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        ca_key, ca = _authority(paths["ca.key"], paths["ca.pem"])
        names = all_names(host_names)
        present = _read_certificate(paths["server.pem"]) if os.path.exists(paths["server.pem"]) else None
        if present is None or not os.path.exists(paths["server.key"]) or not _is_good(present, ca, names):
            present = _make_server(ca_key, ca, names, paths["server.key"], paths["server.pem"])
    except OSError as error:
        raise TryLaterError(
            "certificates_unwritable", f"cannot make certificates: {error.strerror}", where=error.filename or directory
        ) from error
    return ServerCertificate(paths["ca.pem"], paths["server.pem"], paths["server.key"], present.not_valid_after_utc)


def all_names(host_names: Iterable[str]) -> list[str]:
    """Return the names for the certificate: localhost, loopback addresses, this computer's name, and the given ones."""
    own = socket.gethostname()
    return list(dict.fromkeys(["localhost", "127.0.0.1", "::1", *([own] if own else []), *host_names]))


def _authority(key_path: str, path: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    if os.path.exists(key_path) and os.path.exists(path):
        return _read_key(key_path), _read_certificate(path)
    if os.path.exists(path):
        raise InputError(
            "ca_key_missing",
            "the authority's certificate is here but not its key",
            where=key_path,
            hint="restore the key from a backup; without it no new server certificate can be made that agents accept",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Keibi"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Keibi manager authority of {socket.gethostname()}"[:64]),
        ]
    )
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _key_bytes(key), 0o600)
    _write(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return key, certificate


def _make_server(
    ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, names: list[str], key_path: str, path: str
) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Keibi manager")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(now + dt.timedelta(days=SERVER_DAYS), ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    # With the authority behind it, so that a browser which trusts the authority finds the way.
    chain = certificate.public_bytes(serialization.Encoding.PEM) + ca.public_bytes(serialization.Encoding.PEM)
    # The certificate goes first and returns last: a crash between leaves a pair that does not fit, which is made anew.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    _write(key_path, _key_bytes(key), 0o600)
    _write(path, chain, 0o644)
    return certificate


def _is_good(certificate: x509.Certificate, ca: x509.Certificate, names: list[str]) -> bool:
    renew_at = certificate.not_valid_after_utc - dt.timedelta(days=RENEW_BEFORE_DAYS)
    present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    has_all = all(_general_name(name) in list(present) for name in names)
    return has_all and certificate.issuer == ca.subject and dt.datetime.now(dt.UTC) < renew_at


def _general_name(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    try:
        return x509.DNSName(name.encode("idna").decode() if not name.isascii() else name)
    except (ValueError, UnicodeError) as error:
        raise InputError("host_name", f"{name!r} cannot be in a certificate: {error}", hint="see host_names") from error


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _read_key(path: str) -> ec.EllipticCurvePrivateKey:
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        data = file.read()
    if mode & 0o077:
        raise RefusedError("key_exposed", f"others may read this key (mode {mode:o})", where=path, hint="chmod 600 it")
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise InputError("key_malformed", f"this is not a private key: {error}", where=path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError("key_malformed", "this is not a key that the manager made", where=path)
    return key


def _read_certificate(path: str) -> x509.Certificate:
    with open(path, "rb") as file:
        data = file.read()
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise InputError("certificate_malformed", f"this is not a certificate: {error}", where=path) from error


def _write(path: str, data: bytes, mode: int) -> None:
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
