"""ClamAV's containers: .cvd (signed, packed), .cld (signed, plain) and .cud (unsigned): a header of 512 bytes, then a tar.

The header is text: `ClamAV-VDB:time:version:signatures:functionality level:MD5:signature:builder:seconds`. The first member,
`NAME.info`, repeats it and lists the others with size and SHA-256; clamd refuses a container without.
"""

import gzip
import hashlib
import io
import tarfile
import time
from dataclasses import dataclass

from keibi.errors import InputError, RefusedError

MAGIC = b"ClamAV-VDB:"
HEADER_BYTES = 512
KNOWN_FUNCTIONALITY_LEVEL = 216
"""Of the newest engine that Keibi is tested with, ClamAV 1.4."""
_NO_DIGEST = "X"


@dataclass(frozen=True)
class Header:
    """What a container says of itself."""

    version: int
    signatures_count: int
    functionality_level: int
    md5: str
    is_signed: bool
    built_at: str


def read_header(data: bytes, where: str) -> Header:
    """Return the header at the beginning of `data`.

    Raises:
        InputError: it is none, or of an engine that is newer than any that Keibi knows.
    """
    text = data[:HEADER_BYTES].decode("latin-1")
    fields = text.rstrip(" \0\n").split(":")
    if len(data) < HEADER_BYTES or len(fields) < 8:
        raise InputError("clamav_broken", "the header of the database is cut off or malformed", where=where, hint=_WHOLE)
    try:
        version, count, level = (int(fields[number]) for number in (2, 3, 4))
    except ValueError as error:
        raise InputError(
            "clamav_broken", f"the header of the database is malformed: {error}", where=where, hint=_WHOLE
        ) from error
    if level > KNOWN_FUNCTIONALITY_LEVEL:
        raise InputError(
            "clamav_too_new",
            f"this database was made for a newer engine: it needs ClamAV's functionality level {level}, "
            f"and Keibi is tested with {KNOWN_FUNCTIONALITY_LEVEL} (ClamAV 1.4)",
            where=where,
            hint="import the database for an older engine, or update Keibi and ClamAV",
        )
    return Header(version, count, level, fields[5].lower(), len(fields[6]) > 8, fields[1])


def packed(data: bytes, header: Header, where: str) -> bytes:
    """Return what follows the header, once its digest is that of the header.

    Raises:
        RefusedError: it is not: the file is broken or was altered.
    """
    rest = data[HEADER_BYTES:]
    if len(header.md5) == 32 and hashlib.md5(rest, usedforsecurity=False).hexdigest() != header.md5:
        raise RefusedError("clamav_altered", "the database has another digest than its header names", where=where, hint=_WHOLE)
    return rest


def write_container(files: dict[str, bytes], signatures_count: int, stem: str = "keibi") -> bytes:
    """Return plain databases as one unsigned container, which clamd loads as `stem`.cud. Equal databases give equal bytes."""
    info = _header(signatures_count, _NO_DIGEST) + "\n"
    info += "".join(f"{name}:{len(data)}:{hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items()))
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in [(f"{stem}.info", info.encode()), *sorted(files.items())]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    body = gzip.compress(plain.getvalue(), compresslevel=6, mtime=0)
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    return _header(signatures_count, digest).encode().ljust(HEADER_BYTES) + body


def _header(signatures_count: int, digest: str) -> str:
    # The time is a fixed one, so that the same databases are the same content; clamd only prints it.
    at = time.strftime("%d %b %Y %H-%M +0000", time.gmtime(0))
    return f"ClamAV-VDB:{at}:1:{signatures_count}:1:{digest}:{_NO_DIGEST}:keibi:0"


_WHOLE = "fetch it again from where it came from"
