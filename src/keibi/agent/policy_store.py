"""Policy generations on disk: the newest received, the last good one that is in force, and why a newer one was refused.

Each is one file that is replaced whole. A generation is in force only when every module accepted it; until then, and for
ever if one refuses, the former stays. One that the agent did not survive applying three times is refused too.
"""

import os
from typing import TypeVar

import msgspec

from keibi.agent.durable_file import read_if_there, write_durably
from keibi.contract.policy import EffectivePolicy
from keibi.errors import TryLaterError

MAX_ATTEMPTS = 3

T = TypeVar("T")


class Refusal(msgspec.Struct, frozen=True):
    """Why a generation is not in force. Another agent version tries it again."""

    generation: int
    error: str
    agent_version: str


class _Attempt(msgspec.Struct, frozen=True):
    generation: int
    count: int


class PolicyStore:
    """The policies in a state directory."""

    def __init__(self, state_directory: str, agent_version: str) -> None:
        """Read what is there; a file that cannot be read counts as absent, and `damage` says so.

        Raises:
            TryLaterError: the directory cannot be made.
        """
        self._directory = os.path.join(state_directory, "policy")
        self._agent_version = agent_version
        self.damage = ""
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise TryLaterError(
                "state_not_writable", f"no directory for policies: {error.strerror}", where=self._directory
            ) from error
        self.in_force = self._read("in-force", EffectivePolicy)
        self.received = self._read("received", EffectivePolicy)
        self.refusal = self._read("refusal", Refusal)

    @property
    def received_generation(self) -> int:
        """The newest generation the manager need not send again, whether or not it could be applied."""
        if self.received is not None:
            return self.received.generation
        if self.refusal is not None and self.refusal.agent_version == self._agent_version:
            return self.refusal.generation
        return self.in_force.generation if self.in_force is not None else 0

    @property
    def error(self) -> str:
        """Why the newest generation is not in force, "" when it is."""
        return f"generation {self.refusal.generation}: {self.refusal.error}" if self.refusal else ""

    def candidate(self) -> EffectivePolicy | None:
        """Return the received policy that still has to be tried, or None."""
        if self.received is None or (self.in_force is not None and self.received == self.in_force):
            return None
        refusal = self.refusal
        if refusal and refusal.generation == self.received.generation and refusal.agent_version == self._agent_version:
            return None
        return self.received

    def receive(self, policy: EffectivePolicy) -> None:
        """Keep a policy from the manager, to be tried.

        Raises:
            TryLaterError: the disk is full; the manager will be asked again.
        """
        self._write("received", policy)
        self.received = policy
        self._remove("refusal")
        self.refusal = None

    def begin_attempt(self, generation: int) -> int:
        """Count that this generation is about to be applied, and return which attempt it is, this one included."""
        former = self._read("attempt", _Attempt)
        count = former.count + 1 if former is not None and former.generation == generation else 1
        self._write("attempt", _Attempt(generation, count))
        return count

    def accept(self, policy: EffectivePolicy) -> None:
        """Put `policy` in force: every module has accepted it."""
        self._write("in-force", policy)
        self.in_force = policy
        self._remove("refusal")
        self._remove("attempt")
        self.refusal = None

    def refuse(self, generation: int, error: str) -> None:
        """Note that a generation will not be in force; the former one stays."""
        refusal = Refusal(generation, error, self._agent_version)
        self._write("refusal", refusal)
        self._remove("attempt")
        self.refusal = refusal

    def refuse_unreadable(self, generation: int, error: str) -> None:
        """Note a generation that could not even be read: it is not asked for again."""
        self._remove("received")
        self.received = None
        self.refuse(generation, error)

    def _read(self, name: str, type_: type[T]) -> T | None:
        path = os.path.join(self._directory, name)
        content = read_if_there(path)
        if content is None:
            return None
        try:
            return msgspec.msgpack.decode(content, type=type_)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.damage = f"{path} cannot be read and is ignored: {error}"
            return None

    def _write(self, name: str, value: msgspec.Struct) -> None:
        write_durably(os.path.join(self._directory, name), msgspec.msgpack.encode(value))

    def _remove(self, name: str) -> None:
        try:
            os.unlink(os.path.join(self._directory, name))
        except FileNotFoundError:
            return
