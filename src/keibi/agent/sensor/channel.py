"""The sensor's end of its socket to the core. Never waits: what the core does not read yet stays with the sensor."""

import socket

import msgspec

from keibi.agent.ports import Stop, ToWorker
from keibi.contract.codec import frame, frame_length
from keibi.errors import RefusedError

_HEADER_BYTES = 4
_READ_BYTES = 1 << 16


class Channel:
    """Frames over a socket. Few bytes wait to be written, so that what comes later can still be brought together."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._unsent = memoryview(b"")
        self._unread = bytearray()
        self._decoder = msgspec.msgpack.Decoder(ToWorker)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def is_ready(self) -> bool:
        """Whether `send` may be called."""
        return not self._unsent

    def send(self, message: object) -> None:
        """Write a frame as far as the socket takes it now; only when `is_ready`."""
        self._unsent = memoryview(frame(message))
        self.flush()

    def queue(self, message: object) -> None:
        """Write a frame after the one that waits; for the few frames that must not be brought together or given up."""
        self._unsent = memoryview(bytes(self._unsent) + frame(message))
        self.flush()

    def flush(self) -> None:
        """Go on writing what is not written yet."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionError):
            self._unsent = memoryview(b"")  # the end of the core shows when reading

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
