"""A worker's side of its socket to the core (`agent/ports.py`)."""

import os
import socket
import threading

import msgspec

from keibi.agent.ports import FromWorker, ToWorker
from keibi.contract.codec import frame, frame_length

_to_worker = msgspec.msgpack.Decoder(ToWorker)


class CoreSocket:
    """The socket to the core; a worker finds it as its standard input. Any thread may send, one reads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: FromWorker) -> None:
        """Send one frame; a core that is gone ends the worker, since its parent is."""
        data = frame(message)
        with self._lock:
            try:
                self._connection.sendall(data)
            except OSError:
                os._exit(0)

    def receive(self) -> ToWorker | None:
        """Return the next frame, or None when the core has closed the socket."""
        header = self._exactly(4)
        if header is None:
            return None
        payload = self._exactly(frame_length(header))
        return None if payload is None else _to_worker.decode(payload)

    def _exactly(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            try:
                part = self._connection.recv(count - len(data))
            except OSError:
                return None
            if not part:
                return None
            data += part
        return bytes(data)
