"""What the agent's processes say to each other, and what the core asks of its parts.

Every worker is a child of the core with one socket (its standard input) on which both sides write frames (`contract.codec.frame`)
holding one of the unions below. The sensor's `Observed` frames are passed on to each worker that asked for them by `Watch`.
What the module that trusts software asks of the one that knows malware, and its answers, are passed on too (`agent/peers.py`).
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


class Alive(msgspec.Struct, frozen=True, tag=True):
    """A worker that is ended when it says nothing for long has nothing else to say (`WorkerSpec.silent_seconds`)."""


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


# --- from the module that trusts software, through the core, to the one that examines it for malware


class FileToExamine(msgspec.Struct, frozen=True, array_like=True):
    """One content, and paths at which it was seen; the first that still holds it is scanned."""

    sha256: str
    paths: list[bytes]


class Examine(msgspec.Struct, frozen=True, tag=True):
    """Scan these files for malware, when nothing more urgent is to be done; answered by one `Examined` of the same number."""

    number: int
    files: list[FileToExamine]


class FollowThreats(msgspec.Struct, frozen=True, tag=True):
    """Tell which contents are threats, and go on telling: those noted after `since`. What was told before is had."""

    since: int


# --- and back


class ExaminerState(StrEnum):
    """Whether files can be examined for malware."""

    READY = "ready"
    OFF = "off"  # the policy does not want the module
    AWAY = "away"  # it starts, has no policy yet, or has failed: it may come


class ExaminerIs(msgspec.Struct, frozen=True, tag=True):
    """How the examiner is; told when that changes, and by the core to each worker that may ask when it starts."""

    state: ExaminerState
    reason: str = ""  # why it is not ready


class FileExamined(msgspec.Struct, frozen=True, array_like=True):
    """What was found in a content. Neither threat nor gap: all of it was looked at, and it is clean."""

    sha256: str
    threat: str = ""  # that nobody has allowed, and that the policy does not leave in place
    gap: str = ""  # why it was not, or not fully, scanned
    is_gone: bool = False  # none of the paths holds this content any more


class Examined(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Examine`. Files that are not in it were not looked at, because of `trouble`."""

    number: int
    files: list[FileExamined]
    trouble: str = ""


class ThreatNote(msgspec.Struct, frozen=True, array_like=True):
    """A content is a threat, or with "" none any more: somebody has allowed it, or what found it does not find it now."""

    sha256: str
    threat: str = ""


class ThreatsNoted(msgspec.Struct, frozen=True, tag=True):
    """The next notes, oldest first; more follow once `FollowThreats` says that these are had."""

    notes: list[ThreatNote]
    through: int


# --- sensor to core to workers


class Observed(msgspec.Struct, frozen=True, tag=True):
    """A batch of observations, oldest first."""

    observations: list[Observation]


class Overflowed(msgspec.Struct, frozen=True, tag=True):
    """Observations between these times may be missing: look at the watched roots again."""

    since: float
    until: float
    reason: str


ToExaminer = Examine | FollowThreats
FromExaminer = ExaminerIs | Examined | ThreatsNoted
ToWorker = Configure | Run | Stored | WatchRoots | Stop | Observed | Overflowed | ToExaminer | FromExaminer
FromWorker = Hello | Alive | Applied | Emit | Report | Answer | Watch | Observed | Overflowed | ToExaminer | FromExaminer
