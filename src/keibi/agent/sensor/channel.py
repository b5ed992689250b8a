"""The sensor's end of its socket to the core. Never waits: what the core does not read yet stays with the sensor."""

import socket
from collections import deque
from dataclasses import dataclass

import msgspec
import zstandard

from keibi.agent.ports import Stop, ToWorker
from keibi.contract.codec import frame, frame_length
from keibi.errors import RefusedError

_HEADER_BYTES = 4
_READ_BYTES = 1 << 16


MAX_BACKLOG_BYTES = 6 * 1024 * 1024
"""Of compressed frames, for half a million observations or so."""


@dataclass(frozen=True)
class _Packed:
    body: bytes
    since: float


class Channel:
    """Frames over a socket. Those that the core does not take yet wait here, compressed."""

    def __init__(self, connection: socket.socket, *, max_backlog_bytes: int = MAX_BACKLOG_BYTES) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._max_backlog_bytes = max_backlog_bytes
        self._unsent = memoryview(b"")
        self._backlog: deque[_Packed] = deque()
        self._backlog_bytes = 0
        self._unread = bytearray()
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._pack = zstandard.ZstdCompressor(level=1)
        self._unpack = zstandard.ZstdDecompressor()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def is_ready(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._unsent

    def send(self, message: object, *, since: float = 0.0) -> None:
        """Write a frame as far as the socket takes it now. `since`: the time of the oldest observation in it."""
        data = frame(message)
        if self._unsent:
            packed = _Packed(self._pack.compress(data), since)
            self._backlog.append(packed)
            self._backlog_bytes += len(packed.body)
        else:
            self._unsent = memoryview(data)
            self.flush()

    def flush(self) -> None:
        """Go on writing what is not written yet."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
                if not self._unsent and self._backlog:
                    packed = self._backlog.popleft()
                    self._backlog_bytes -= len(packed.body)
                    self._unsent = memoryview(self._unpack.decompress(packed.body))
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionError):
            self._unsent = memoryview(b"")  # the end of the core shows when reading
            self._backlog.clear()

    def give_up(self) -> float | None:
        """Give up the frames that wait when they are too many; returns since when observations are then missing."""
        if self._backlog_bytes <= self._max_backlog_bytes:
            return None
        since = min((packed.since for packed in self._backlog if packed.since), default=None)
        self._backlog.clear()
        self._backlog_bytes = 0
        return since

    def receive(self) -> list[ToWorker]:
        """Return the frames that have come; `Stop` when the core is gone.

        Raises:
            RefusedError: the core wrote something that is not a frame of the contract.
        """
        messages: list[ToWorker] = []
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return messages
        except ConnectionError:
            data = b""
        if not data:
            return [Stop()]
        self._unread += data
        while len(self._unread) >= _HEADER_BYTES:
            end = _HEADER_BYTES + frame_length(bytes(self._unread[:_HEADER_BYTES]))
            if len(self._unread) < end:
                break
            try:
                messages.append(self._decoder.decode(bytes(self._unread[_HEADER_BYTES:end])))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RefusedError("frame_invalid", f"the core wrote a frame that is none: {error}") from error
            del self._unread[:end]
        return messages
