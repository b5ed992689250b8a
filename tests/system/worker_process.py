"""Runs the real worker of a module and plays the core: sends frames, gathers what it says. Each module's harness builds on it."""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import msgspec

from keibi.agent.ports import (
    Answer,
    Applied,
    Configure,
    Emit,
    FromWorker,
    Hello,
    Observation,
    Observed,
    Report,
    Run,
    Stop,
    Stored,
    ToWorker,
    Watch,
)
from keibi.contract.codec import frame, frame_length
from keibi.contract.commands import Command, CommandKind, CommandResult, CommandState
from keibi.contract.events import Event
from keibi.contract.names import ModuleId, new_id
from keibi.contract.policy import ModulePolicy
from keibi.contract.status import Health, ModuleStatus

LIMIT_SECONDS = 30.0
STOP_SECONDS = 20.0
_decoder = msgspec.msgpack.Decoder(FromWorker)


class WorkerProcess:
    """A worker's process and everything that it said."""

    def __init__(self, module: ModuleId, arguments: Sequence[str], *, confirms: bool = True) -> None:
        """Start `keibi.agent.modules.{module}.worker` and wait until it is up; `confirms` answers its events as the core does."""
        self.module = module
        self.confirms = confirms
        self.events: list[Event] = []
        self.statuses: list[ModuleStatus] = []
        self.applied: list[Applied] = []
        self.answers: list[CommandResult] = []
        self.watches: list[Watch] = []
        self.hello: Hello | None = None
        self.generation = 0
        self._received = bytearray()
        self._ours, theirs = socket.socketpair()
        # A file and not a pipe: a worker that has much to say must not wait for somebody to read it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._last_errors = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"keibi.agent.modules.{module}.worker", *arguments], stdin=theirs.fileno(), stderr=self._errors
        )
        theirs.close()
        self.wait(lambda: self.hello is not None)

    def send(self, message: ToWorker) -> None:
        """Send a frame, and read meanwhile, as the core does: two who only write would wait for each other for ever."""
        left = memoryview(frame(message))
        while left:
            readable, writable, _ = select.select([self._ours], [self._ours], [], LIMIT_SECONDS)
            assert readable or writable, "the worker neither reads nor writes"
            if readable:
                self._receive()
            if writable:
                left = left[self._ours.send(left, socket.MSG_DONTWAIT) :]

    def wait(self, condition: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
        """Take frames until the condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, (
                f"waited {seconds} s in vain; status {self.statuses[-1:]}, answers {self.answers[-2:]}, "
                f"events {[(event.kind, event.subject) for event in self.events[-5:]]}, {self.errors()}"
            )
            readable, _, _ = select.select([self._ours], [], [], min(left, 0.1))
            if readable:
                self._receive()

    def take(self) -> None:
        """Take what is there."""
        while select.select([self._ours], [], [], 0)[0]:
            self._receive()

    def _receive(self) -> None:
        data = self._ours.recv(1 << 20)
        assert data, f"the worker is gone: {self.errors()}"
        self._received += data
        while len(self._received) >= 4 and len(self._received) >= 4 + (length := frame_length(bytes(self._received[:4]))):
            message = _decoder.decode(bytes(self._received[4 : 4 + length]))
            del self._received[: 4 + length]
            self._note(message)

    def _note(self, message: FromWorker) -> None:
        match message:
            case Hello():
                self.hello = message
            case Applied():
                self.applied.append(message)
            case Emit():
                self.events += message.events
                if self.confirms:
                    self.send(Stored(message.sequence))
            case Report():
                self.statuses.append(message.status)
            case Answer():
                self.answers.append(message.result)
            case Watch():
                self.watches.append(message)

    def errors(self) -> str:
        """Return the end of what the worker wrote to standard error so far, also when it has ended."""
        if not self._errors.closed:
            # At its place and not by seeking: the worker writes through the same file position.
            size = os.fstat(self._errors.fileno()).st_size
            self._last_errors = os.pread(self._errors.fileno(), 4000, max(0, size - 4000)).decode("utf-8", "replace")
        return self._last_errors

    def apply(self, policy: ModulePolicy, generation: int | None = None) -> Applied:
        """Give a policy, of the next generation unless one is named, and return what the worker says to it."""
        self.generation = self.generation + 1 if generation is None else generation
        self.send(Configure(self.generation, policy))
        self.wait(lambda: bool(self.applied) and self.applied[-1].generation == self.generation)
        return self.applied[-1]

    def wait_looked_through(self, seconds: float = LIMIT_SECONDS) -> None:
        """Wait until the policy given last is in force and everything has been looked at once."""
        self.wait(
            lambda: (
                self.statuses[-1:] != []
                and self.statuses[-1].policy_generation == self.generation
                and self.statuses[-1].health in (Health.ACTIVE, Health.WARNING)
                and "last_scan_at" in self.statuses[-1].metrics
            ),
            seconds,
        )

    def start_command(self, command_kind: CommandKind, /, *, is_local: bool = False, **arguments: object) -> str:
        """Send a command; returns its id."""
        command_id = f"local-{new_id()}" if is_local else new_id()
        self.send(Run(Command(command_id, command_kind, self.module, dict(arguments))))
        return command_id

    def final(self, command_id: str) -> CommandResult | None:
        """Return how a command ended, None before."""
        self.take()
        ended = [one for one in self.answers if one.command_id == command_id and one.state is not CommandState.RUNNING]
        return ended[0] if ended else None

    def wait_final(self, command_id: str, seconds: float = LIMIT_SECONDS) -> CommandResult:
        """Wait for a command to end."""
        self.wait(lambda: self.final(command_id) is not None, seconds)
        result = self.final(command_id)
        assert result is not None
        return result

    def run(self, command_kind: CommandKind, /, *, is_local: bool = False, **arguments: object) -> CommandResult:
        """Carry out a command and return its final answer."""
        return self.wait_final(self.start_command(command_kind, is_local=is_local, **arguments))

    def observe_all(self, *observations: Observation) -> None:
        """Play the sensor."""
        self.send(Observed(list(observations)))

    def of_kind(self, kind: str) -> list[Event]:
        """Return the events of a kind so far."""
        self.take()
        return [event for event in self.events if event.kind == kind]

    def stop(self) -> None:
        """Stop it in order."""
        if self.process.poll() is None:
            self.send(Stop())
            deadline = time.monotonic() + LIMIT_SECONDS
            # What it still has to say must be read, else it could not say that and end.
            while self.process.poll() is None and time.monotonic() < deadline:
                if select.select([self._ours], [], [], 0.05)[0] and not self._ours.recv(1 << 20):
                    break
            self.process.wait(STOP_SECONDS)
        self.close()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(15)
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._ours.close()
        self.errors()
        self._errors.close()
