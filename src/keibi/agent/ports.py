"""What the agent's processes say to each other, and what the core asks of its parts.

Every worker is a child of the core with one socket (its standard input) on which both sides write frames (`contract.codec.frame`)
holding one of the unions below. The sensor's `Observed` frames are passed on to each worker that asked for them by `Watch`.
"""

from enum import StrEnum

import msgspec

from keibi.contract.commands import Command, CommandResult
from keibi.contract.events import Actor, Event
from keibi.contract.policy import ModulePolicy
from keibi.contract.status import Capability, ModuleStatus


class Happening(StrEnum):
    """What the kernel said happened to a path, a process or a port."""

    CREATED = "created"
    MODIFIED = "modified"  # content; told when the writer closes, or at each write of a file that stays open
    ATTRIBUTES = "attributes"
    DELETED = "deleted"
    RENAMED = "renamed"
    PROCESS_STARTED = "process_started"
    PROCESS_ENDED = "process_ended"
    PORT_OPENED = "port_opened"
    PORT_CLOSED = "port_closed"


class Observation(msgspec.Struct, frozen=True, array_like=True):
    """One thing that happened. `path` is the raw path of a file, or the entity key of a process or port."""

    happening: Happening
    path: bytes
    at: float
    is_directory: bool = False
    old_path: bytes = b""
    actor: Actor = Actor()


# --- core to worker


class Configure(msgspec.Struct, frozen=True, tag=True):
    """Run this policy from now on, whole; the worker answers with `Applied`."""

    generation: int
    policy: ModulePolicy


class Run(msgspec.Struct, frozen=True, tag=True):
    """Carry out a command; answered by one or more `Answer`."""

    command: Command


class Stored(msgspec.Struct, frozen=True, tag=True):
    """The core has every emitted event up to this sequence number on disk: the worker may forget them."""

    through: int


class WatchRoots(msgspec.Struct, frozen=True, tag=True):
    """To the sensor: the union of what workers watch. Paths outside are not reported."""

    roots: list[bytes]  # absolute directories or files
    wants_processes: bool = False
    wants_ports: bool = False


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Finish what is half done and end within the deadline."""


# --- worker to core


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First frame of a worker: it is up, and what it found it can do."""

    worker: str
    pid: int
    capabilities: list[Capability] = []


class Applied(msgspec.Struct, frozen=True, tag=True):
    """The policy of this generation is in force, or was refused (then the former one still is)."""

    generation: int
    error: str = ""


class Emit(msgspec.Struct, frozen=True, tag=True):
    """Events to be spooled. `sequence` grows; 0 means that the worker keeps no copy and wants no `Stored`."""

    sequence: int
    events: list[Event]


class Report(msgspec.Struct, frozen=True, tag=True):
    """The module's state changed."""

    status: ModuleStatus


class Answer(msgspec.Struct, frozen=True, tag=True):
    """Progress or outcome of a command."""

    result: CommandResult


class Watch(msgspec.Struct, frozen=True, tag=True):
    """What this worker wants observed; replaces what it asked before."""

    roots: list[bytes]
    wants_processes: bool = False
    wants_ports: bool = False


# --- sensor to core to workers


class Observed(msgspec.Struct, frozen=True, tag=True):
    """A batch of observations, oldest first."""

    observations: list[Observation]


class Overflowed(msgspec.Struct, frozen=True, tag=True):
    """Observations between these times may be missing: look at the watched roots again."""

    since: float
    until: float
    reason: str


ToWorker = Configure | Run | Stored | WatchRoots | Stop | Observed | Overflowed
FromWorker = Hello | Applied | Emit | Report | Answer | Watch | Observed | Overflowed
