"""A module's side of the gate: listens for gates, hands questions on, sends verdicts (`agent/gate/judging.py`).

Theory of operation. One thread reads all gates and calls `on_question` for each question; that must hand the work to another
thread when it is not quick. Verdicts, terms and what is to be forgotten may be sent from any thread.
"""

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from keibi.agent.gate import judging
from keibi.agent.gate.judging import GateState, Question, Terms, Told

SEND_SECONDS = 2.0
ACCEPT_AGAIN_SECONDS = 0.05


@dataclass(frozen=True)
class Asked:
    """A question with its descriptor, which whoever is handed this closes (`close`)."""

    question: Question
    descriptor: int
    _gate: "_Gate"

    @property
    def gate_pid(self) -> int:
        """The gate that asks: its mount namespace is the one in which the path means something. 0 before it said so."""
        return self._gate.state.pid

    def answer(self, *, is_allowed: bool, remember: bool, code: str = "") -> None:
        """Tell the gate the verdict (`judging.verdict_message`); does nothing when none is awaited or the gate is gone."""
        if self.question.id:
            self._gate.send(judging.verdict_message(self.question.id, is_allowed=is_allowed, remember=remember, code=code))

    def give_up(self) -> None:
        """Tell the gate that there will be no verdict in time: it answers by the terms."""
        if self.question.id:
            self._gate.send(judging.no_verdict_message(self.question.id))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


class _Gate:
    """One connected gate."""

    def __init__(self, connection: socket.socket, number: int = 0) -> None:
        self.connection = connection
        self.number = number
        self.state = GateState()
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; a gate that is gone or does not read is noticed by the reading thread."""
        with self._lock, contextlib.suppress(OSError):
            judging.send(self.connection, message)


class JudgeServer:
    """Listens at `{directory}/{module}.sock`. `close` must be called by whoever made it."""

    def __init__(
        self,
        directory: str,
        module: str,
        *,
        on_question: Callable[[Asked], None],
        on_told: Callable[[Told], None],
        on_state: Callable[[list[GateState]], None],
        on_caught_up: Callable[[int, float], None] | None = None,
    ) -> None:
        """Begin to listen; must be called while still root, since the directory is root's.

        `on_caught_up` gets a number for the computer's own gate, another one each time it connects, and the moment before which
        it has asked about everything that was written.

        Raises:
            OSError: the socket cannot be made.
        """
        os.makedirs(directory, mode=0o711, exist_ok=True)
        path = os.path.join(directory, f"{module}.sock")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(8)
        self._on_question, self._on_told, self._on_state = on_question, on_told, on_state
        self._on_caught_up = on_caught_up
        self._accepted_count = 0
        self._gates: list[_Gate] = []
        self._lock = threading.Lock()
        self._terms = Terms(module=module)
        self._own: list[int] = [os.getpid()]
        self._wake, self._wake_end = os.pipe()
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name=f"gates of {module}", daemon=True)

    def start(self) -> None:
        """Begin to take questions, in a thread of its own."""
        self._own = [os.getpid()]
        self._thread.start()

    def set_terms(self, terms: Terms) -> None:
        """Tell every gate, also those that come later."""
        with self._lock:
            self._terms = terms
            gates = list(self._gates)
        for gate in gates:
            gate.send(judging.terms_message(terms))

    def set_own(self, pids: Iterable[int]) -> None:
        """Name the module's own further processes, about which gates ask nobody."""
        with self._lock:
            self._own = [os.getpid(), *pids]
            gates, own = list(self._gates), self._own
        for gate in gates:
            gate.send(judging.own_message(own))

    def forget(self, files: list[tuple[int, int]] | None = None) -> None:
        """Have gates forget this judge's verdicts on these (device, inode) pairs, or all of them."""
        with self._lock:
            gates = list(self._gates)
        for gate in gates:
            gate.send(judging.forget_message(files))

    def close(self) -> None:
        """Stop listening and hang up; held processes are answered by the terms. Does nothing the second time."""
        if self._is_closed:
            return
        self._is_closed = True
        os.write(self._wake_end, b"x")
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close()
        os.close(self._wake)
        os.close(self._wake_end)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._is_closed:
                for key, _ in selector.select():
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif isinstance(key.data, _Gate) and not self._read_safely(key.data):
                        selector.unregister(key.data.connection)
                        self._lose(key.data)
            for gate in list(self._gates):
                self._lose(gate)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            # No descriptor is left, or the gate is gone already. This thread must not end of it: others are connected.
            time.sleep(ACCEPT_AGAIN_SECONDS)
            return
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] != 0:
            connection.close()
            return
        seconds, rest = divmod(SEND_SECONDS, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(rest * 1e6)))
        self._accepted_count += 1
        gate = _Gate(connection, self._accepted_count)
        with self._lock:
            self._gates.append(gate)
            terms, own = self._terms, self._own
        gate.send(judging.own_message(own))
        gate.send(judging.terms_message(terms))
        selector.register(connection, selectors.EVENT_READ, gate)

    def _read_safely(self, gate: _Gate) -> bool:
        try:
            return self._read(gate)
        except Exception:  # noqa: BLE001 -- the worker's edge
            # Without this thread every process that the gate holds would wait for its deadline, for ever after. Hanging up has
            # what is held answered by the terms, and the gate connects again.
            traceback.print_exc()
            return False

    def _read(self, gate: _Gate) -> bool:
        """Take one message; False when the gate is gone or not one."""
        try:
            received = judging.receive(gate.connection)
        except (OSError, ValueError):
            return False
        if received is None:
            return False
        message, descriptor = received
        try:
            match message["type"]:
                case "question" if descriptor is not None:
                    asked = Asked(judging.question_of(message), descriptor, gate)
                    descriptor = None
                    self._on_question(asked)
                case "told":
                    self._on_told(judging.told_of(message))
                case "state":
                    gate.state = judging.state_of(message)
                    self._tell_states()
                case "caught_up":
                    if self._on_caught_up is not None and not gate.state.is_proof:
                        self._on_caught_up(gate.number, float(message["at"]))
                case _:
                    return False
        except ValueError:
            return False
        finally:
            if descriptor is not None:
                os.close(descriptor)
        return True

    def _lose(self, gate: _Gate) -> None:
        with self._lock:
            self._gates.remove(gate)
        gate.connection.close()
        self._tell_states()

    def _tell_states(self) -> None:
        with self._lock:
            states = [gate.state for gate in self._gates]
        self._on_state(states)
