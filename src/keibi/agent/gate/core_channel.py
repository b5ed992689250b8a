"""The warden's side of its socket to the core: the frames of `agent/ports.py`, in JSON (`WorkerSpec.encoding`).

Sending never waits: a core that is busy, or waits for a file that this gate holds, must not keep the warden from its watch.
"""

import json
import os
import socket
import struct
import time
from collections import deque
from typing import Any, Final

MAX_WAITING: Final = 256
MAX_FRAME_BYTES: Final = 1024 * 1024
_HEADER = struct.Struct("!I")


class CoreChannel:
    """A non-blocking socket of frames."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._received = bytearray()
        self._waiting: deque[bytes] = deque()
        self._rest = b""
        self.dropped_count = 0

    def fileno(self) -> int:
        """Return the descriptor to be polled."""
        return self._connection.fileno()

    @property
    def is_blocked(self) -> bool:
        """Whether frames wait until the core reads."""
        return bool(self._rest or self._waiting)

    def send(self, message: dict[str, Any]) -> None:
        """Send a frame, now or later; the oldest are dropped when too many wait."""
        payload = json.dumps(message, separators=(",", ":")).encode()
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped_count += 1
        self._waiting.append(_HEADER.pack(len(payload)) + payload)
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as the core takes it."""
        while self.is_blocked:
            if not self._rest:
                self._rest = self._waiting.popleft()
            try:
                self._rest = self._rest[self._connection.send(self._rest) :]
            except OSError:
                return

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the frames that came; None when the core is gone or speaks something else."""
        try:
            data = self._connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        self._received += data
        messages = []
        while len(self._received) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._received)
            if length > MAX_FRAME_BYTES:
                return None
            if len(self._received) < _HEADER.size + length:
                break
            try:
                messages.append(json.loads(self._received[_HEADER.size : _HEADER.size + length]))
            except ValueError:
                return None
            del self._received[: _HEADER.size + length]
        return messages if data else None


def hello_message(capabilities: list[tuple[str, bool, str]]) -> dict[str, Any]:
    """Return the first frame: what this gate can do, each with the reason where it cannot."""
    return {
        "type": "Hello",
        "worker": "gate",
        "pid": os.getpid(),
        "capabilities": [{"name": name, "is_available": can, "reason": reason} for name, can, reason in capabilities],
    }


def event_message(
    kind: str, severity: str, message: str, *, reason: str = "", details: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a frame with one event of the gate, which the core spools; the gate keeps no copy."""
    return {
        "type": "Emit",
        "sequence": 0,
        "events": [
            {
                "event_id": _new_id(),
                "module": "anti_malware",
                "kind": kind,
                "severity": severity,
                "detected_at": time.time(),
                "subject": "gate",
                "reason": reason,
                "message": message,
                "details": details or {},
            }
        ],
    }


def _new_id() -> str:
    """Return a UUIDv7 (RFC 9562) as 32 hex digits, as `contract.names.new_id` does, which is not for this process."""
    # Not by `secrets`, which loads three megabytes of libcrypto.
    tail = int.from_bytes(os.urandom(10), "big") >> 6
    milliseconds = time.time_ns() // 1_000_000
    return f"{(milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (tail >> 62) << 64 | 0b10 << 62 | tail & (1 << 62) - 1:032x}"
