"""What is in an upload: a single file, or the members of a tar, zip or compressed file, one after another and bounded."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol

from keibi.errors import InputError, RefusedError

MAX_MEMBERS = 100_000
MAX_MEMBER_BYTES = 768 * 1024 * 1024
MAX_TOTAL_BYTES = 2 * 1024**3
"""Unpacked: the whole of ClamAV's databases has less than half of it."""
_TAR_MAGIC_AT = 257
_BROKEN = (
    OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, ValueError,
    IndexError, KeyError, RuntimeError, struct.error,
)  # fmt: skip
"""What the standard library raises for broken archives; the second line is where it says nothing better."""


@dataclass(frozen=True)
class Member:
    """One file of an upload."""

    name: str
    data: bytes


class _Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Capped(io.RawIOBase):
    """Reads a stream and stops when more has come out of it than anybody would upload: a bomb costs no more than the cap."""

    def __init__(self, stream: _Reads, max_bytes: int) -> None:
        self._stream = stream
        self._left = max_bytes

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read as `io.RawIOBase` demands."""
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise _bomb()
        buffer[: len(data)] = data
        return len(data)


def members(file: IO[bytes], name: str) -> Iterator[Member]:
    """Yield the files in an upload that is called `name`; a folder within an archive is only part of their names.

    Raises:
        InputError: an archive is broken, encrypted or of an unknown kind. RefusedError: it unpacks to too much.
    """
    head = file.read(512)
    file.seek(0)
    try:
        if head.startswith(b"PK"):
            yield from _zip_members(file)
            return
        opened = _decompressed(file, head)
        stream = io.BufferedReader(_Capped(opened or file, MAX_TOTAL_BYTES), 1024 * 1024)
        if _is_tar(stream.peek(512)[:512]):
            yield from _tar_members(stream)
            return
        inner = name.rpartition(".")[0] if opened is not None and "." in name else name
        yield Member(inner, _bounded(stream, inner))
    except _BROKEN as error:
        raise InputError(
            "upload_broken", f"the upload cannot be unpacked: {error}", where=name, hint="is it whole? upload it again"
        ) from error


def _decompressed(file: IO[bytes], head: bytes) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | None:
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(file)
    if head.startswith((b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")):
        raise InputError("upload_kind", "archives of this kind are not taken", hint="use zip, tar.gz, tar.xz or tar.bz2")
    return None


def _is_tar(head: bytes) -> bool:
    return head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar"


def _tar_members(stream: IO[bytes]) -> Iterator[Member]:
    total = 0
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for count, entry in enumerate(archive):
            _check_count(count)
            if not entry.isreg():
                continue  # links and devices: what they lead to is not ours to read
            # A sparse member may be far larger than the archive that it is in.
            total = _added(total, entry.size)
            content = archive.extractfile(entry)
            if content is not None:
                yield Member(entry.name, _bounded(content, entry.name))


def _zip_members(file: IO[bytes]) -> Iterator[Member]:
    total = 0
    with zipfile.ZipFile(file) as archive:
        for count, entry in enumerate(archive.infolist()):
            _check_count(count)
            if entry.is_dir():
                continue
            if entry.flag_bits & 1:
                raise InputError("upload_encrypted", "the zip file is encrypted", where=entry.filename, hint="upload it without")
            with archive.open(entry) as content:
                data = _bounded(content, entry.filename)
            total = _added(total, len(data))
            yield Member(entry.filename, data)


def _bounded(stream: IO[bytes], name: str) -> bytes:
    data = stream.read(MAX_MEMBER_BYTES + 1)
    if len(data) > MAX_MEMBER_BYTES:
        raise RefusedError("upload_bomb", f"a file in it has more than {MAX_MEMBER_BYTES} bytes", where=name)
    return data


def _added(total: int, more: int) -> int:
    if total + more > MAX_TOTAL_BYTES:
        raise _bomb()
    return total + more


def _bomb() -> RefusedError:
    return RefusedError("upload_bomb", f"it unpacks to more than {MAX_TOTAL_BYTES} bytes", hint="import it in parts")


def _check_count(count: int) -> None:
    if count >= MAX_MEMBERS:
        raise RefusedError("upload_bomb", f"there are more than {MAX_MEMBERS} files in it", hint="import it in parts")
