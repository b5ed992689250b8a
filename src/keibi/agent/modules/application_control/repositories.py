"""Where installed packages came from: the repository's own name, and the key that signed it, from what apt keeps.

apt has checked the signatures when it fetched the lists; here only the key's fingerprint is read out of them (RFC 4880).
"""

import base64
import binascii
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from keibi.protection.base import escape_name

_HELPER = "/usr/lib/apt/apt-helper"
_PACKED = (".lz4", ".xz", ".gz", ".bz2", ".zst", ".lzma")
_SIGNATURE_BEGIN, _SIGNATURE_END = b"-----BEGIN PGP SIGNATURE-----", b"-----END PGP SIGNATURE-----"
_SIGNATURE_TAG = 2
_ISSUER, _ISSUER_FINGERPRINT = 16, 33
MAX_RELEASE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Origin:
    """A repository: its `Origin` field, and the fingerprint (or last 16 digits) of the key that signed it."""

    name: str
    signer: str


def read_origins(directory: str, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Origin]:
    """Return the origin of each wanted (package, version) that a list in `directory` offers."""
    found: dict[tuple[str, str], Origin] = {}
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return {}
    releases = {name[: -len("InRelease")]: name for name in names if name.endswith("_InRelease")}
    for name in names:
        if "_Packages" not in name:
            continue
        prefix = next((one for one in releases if name.startswith(one)), "")
        if not prefix:
            continue
        origin = _origin_of(os.path.join(directory, releases[prefix]))
        for package in _offered(os.path.join(directory, name)):
            if package in wanted:
                found.setdefault(package, origin)
    return found


def _origin_of(path: str) -> Origin:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_RELEASE_BYTES)
    except OSError:
        return Origin("", "")
    name = ""
    for line in text.splitlines()[:60]:
        if line.startswith(b"Origin:"):
            name = escape_name(line[7:].strip())
            break
    return Origin(name, signer_of(text))


def signer_of(signed: bytes) -> str:
    """Return the fingerprint (or its last 16 digits) of the key in a clear-signed text's first signature; "" without any."""
    begin, end = signed.find(_SIGNATURE_BEGIN), signed.find(_SIGNATURE_END)
    if begin < 0 or end < begin:
        return ""
    armour = signed[begin + len(_SIGNATURE_BEGIN) : end]
    _, _, body = armour.partition(b"\n\n")
    lines = [line for line in body.splitlines() if line and not line.startswith(b"=")]
    try:
        packet = base64.b64decode(b"".join(lines), validate=True)
        return _issuer(packet)
    except (binascii.Error, IndexError, ValueError):
        return ""


def _issuer(packet: bytes) -> str:
    tag, start, length = _packet_header(packet)
    body = packet[start : start + length]
    if tag != _SIGNATURE_TAG or body[0] != 4:
        return ""
    hashed = int.from_bytes(body[4:6], "big")
    unhashed = int.from_bytes(body[6 + hashed : 8 + hashed], "big")
    parts = dict(_subpackets(body[8 + hashed : 8 + hashed + unhashed]))
    parts |= dict(_subpackets(body[6 : 6 + hashed]))
    if fingerprint := parts.get(_ISSUER_FINGERPRINT):
        return fingerprint[1:].hex().upper()
    return parts.get(_ISSUER, b"").hex().upper()


def _packet_header(packet: bytes) -> tuple[int, int, int]:
    first = packet[0]
    if first & 0x40:
        length, used = _new_length(packet, 1)
        return first & 0x3F, 1 + used, length
    size = 1 << (first & 3)
    return (first >> 2) & 0xF, 1 + size, int.from_bytes(packet[1 : 1 + size], "big")


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    first = data[at]
    if first < 192:
        return first, 1
    if first < 255:
        return ((first - 192) << 8) + data[at + 1] + 192, 2
    return int.from_bytes(data[at + 1 : at + 5], "big"), 5


def _subpackets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        length, used = _new_length(data, at)
        if length < 1:
            raise ValueError("a subpacket without a type")
        yield data[at + used] & 0x7F, data[at + used + 1 : at + used + length]
        at += used + length


def _offered(path: str) -> Iterator[tuple[str, str]]:
    """Yield name and version of every package that a list offers, as it is read."""
    if path.endswith(_PACKED):
        if not os.path.exists(_HELPER):
            return
        with subprocess.Popen([_HELPER, "cat-file", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            if process.stdout is not None:
                yield from _names(process.stdout)
        return
    try:
        with open(path, "rb") as file:
            yield from _names(file)
    except OSError:
        return


def _names(lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    name = ""
    for line in lines:
        if line.startswith(b"Package: "):
            name = line[9:].strip().decode("utf-8", "replace")
        elif line.startswith(b"Version: ") and name:
            yield name, line[9:].strip().decode("utf-8", "replace")
