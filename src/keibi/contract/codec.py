"""Bodies on the wire: msgpack inside zstd, with hard caps on both sides of the decompression.

Every decode names the type it expects; nothing received can choose a class.
"""

import struct
from typing import TypeVar

import msgspec
import zstandard

from keibi.errors import InputError, RefusedError

MAX_BODY_BYTES = 16 * 1024 * 1024
"""Compressed size above which a body is not read at all."""
MAX_DECODED_BYTES = 64 * 1024 * 1024
"""Decompressed size above which a body is refused, whatever its header claims."""
MAX_FRAME_BYTES = 32 * 1024 * 1024
"""Longest frame between the processes of one agent."""

CONTENT_TYPE = "application/vnd.keibi+msgpack+zstd"

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_FRAME_HEADER = struct.Struct("!I")


def encode(value: object) -> bytes:
    """Return `value` as a body: msgpack, compressed with zstd."""
    return zstandard.ZstdCompressor(level=3).compress(_encoder.encode(value))


def decode(body: bytes, type_: type[T], *, max_decoded_bytes: int = MAX_DECODED_BYTES) -> T:
    """Return the `type_` that `body` holds.

    Raises:
        RefusedError: the body is larger than the caps, or would be when decompressed.
        InputError: it is not zstd, not msgpack, or not of that type.
    """
    if len(body) > MAX_BODY_BYTES:
        raise RefusedError("body_too_large", f"the body has {len(body)} bytes, more than {MAX_BODY_BYTES}")
    try:
        return msgspec.msgpack.decode(decompress(body, max_decoded_bytes), type=type_)
    except msgspec.ValidationError as error:
        raise InputError("body_invalid", f"the body is not a valid {type_.__name__}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("body_malformed", f"the body is not msgpack: {error}") from error


def decompress(body: bytes, max_decoded_bytes: int = MAX_DECODED_BYTES) -> bytes:
    """Return the decompressed body; stops at the cap, so a bomb costs no more than the cap."""
    try:
        stream = zstandard.ZstdDecompressor(max_window_size=8 * 1024 * 1024).stream_reader(body)
        data = stream.read(max_decoded_bytes + 1)
    except zstandard.ZstdError as error:
        raise InputError("body_malformed", f"the body is not zstd: {error}") from error
    if len(data) > max_decoded_bytes:
        raise RefusedError("body_too_large", f"the body decompresses to more than {max_decoded_bytes} bytes")
    return data


def frame(value: object) -> bytes:
    """Return `value` as a frame for a pipe between the agent's own processes: four bytes of length, then msgpack."""
    payload = _encoder.encode(value)
    return _FRAME_HEADER.pack(len(payload)) + payload


def frame_length(header: bytes) -> int:
    """Return how many bytes follow a four-byte frame header.

    Raises:
        RefusedError: longer than MAX_FRAME_BYTES.
    """
    (length,) = _FRAME_HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise RefusedError("frame_too_large", f"a frame of {length} bytes, more than {MAX_FRAME_BYTES}")
    return int(length)
