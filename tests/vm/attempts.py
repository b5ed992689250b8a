"""What root tries against the agent itself at level A, and whether it succeeds. Data for the documentation too."""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass

from keibi.agent.gate.guard_maps import map_id

_BPF = {"x86_64": 321, "aarch64": 280}
_MAP_GET_NEXT_ID, _MAP_GET_FD_BY_ID = 12, 14
_PTRACE_SEIZE = 0x4206  # does not stop whom it traces


@dataclass(frozen=True)
class Agent:
    """A running agent: its processes, and the folder that it keeps its state in."""

    core: int
    gate: int
    decider: int
    worker: int
    state: str

    @property
    def inventory(self) -> str:
        """A file that only the agent writes to."""
        return os.path.join(self.state, "application_control/inventory.db")


@dataclass(frozen=True)
class Attempt:
    """One attempt; `act` raises OSError where it fails."""

    identity: str
    what: str
    act: Callable[[Agent], object]
    is_possible: bool = False

    def works(self, agent: Agent) -> bool:
        """Try it."""
        with contextlib.suppress(OSError):
            self.act(agent)
            return True
        return False


def _trace(agent: Agent) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_SEIZE, agent.gate, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o600))


def _switch_cgroup(agent: Agent, name: str) -> None:
    with open(f"/proc/{agent.gate}/cgroup") as file:
        place = file.read().rpartition("::")[2].strip()
    _open(f"/sys/fs/cgroup{place}/{name}", os.O_WRONLY)


def _take_guards_maps(agent: Agent) -> None:
    del agent
    if not any(_is_taken(one) for one in _map_ids()):
        raise PermissionError("none of the kernel's maps")


def _bpf(command: int, attributes: bytearray) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    call = (ctypes.c_long(_BPF[platform.machine()]), ctypes.c_long(command), buffer, ctypes.c_long(len(attributes)))
    return int(libc.syscall(*call))


def _map_ids() -> list[int]:
    found, last = [], 0
    while True:
        attributes = bytearray(struct.pack("=III", last, 0, 0))
        if _bpf(_MAP_GET_NEXT_ID, attributes) < 0:
            return found
        last = struct.unpack_from("=I", attributes, 4)[0]
        found.append(last)


def _is_taken(identity: int) -> bool:
    descriptor = _bpf(_MAP_GET_FD_BY_ID, bytearray(struct.pack("=III", identity, 0, 0)))
    if descriptor < 0:
        return False
    try:
        return map_id(descriptor) == identity
    finally:
        os.close(descriptor)


ATTEMPTS: tuple[Attempt, ...] = (
    Attempt("a1", "SIGKILL to the core", lambda agent: os.kill(agent.core, signal.SIGKILL)),
    Attempt("a2", "SIGKILL to the gate's warden", lambda agent: os.kill(agent.gate, signal.SIGKILL)),
    Attempt("a3", "SIGKILL to the gate's decider", lambda agent: os.kill(agent.decider, signal.SIGKILL)),
    Attempt("a4", "SIGKILL to a module's worker", lambda agent: os.kill(agent.worker, signal.SIGKILL)),
    Attempt("a5", "SIGSTOP to the decider", lambda agent: os.kill(agent.decider, signal.SIGSTOP)),
    Attempt("a6", "SIGTERM to the warden", lambda agent: os.kill(agent.gate, signal.SIGTERM)),
    Attempt("a7", "tracing the warden (ptrace)", _trace),
    Attempt("a8", "opening the decider's memory (/proc/PID/mem)", lambda agent: _open(f"/proc/{agent.decider}/mem", os.O_RDWR)),
    Attempt("a9", "a limit of processor time for the core", lambda agent: resource.prlimit(agent.core, 0, (1, 1))),
    Attempt("a10", "ending its control group by cgroup.kill", lambda agent: _switch_cgroup(agent, "cgroup.kill")),
    Attempt("a11", "freezing its control group", lambda agent: _switch_cgroup(agent, "cgroup.freeze")),
    Attempt("a12", "taking the guard's own maps by bpf(2)", _take_guards_maps),
    Attempt("a13", "reading a file of its state", lambda agent: _open(agent.inventory, os.O_RDONLY), is_possible=True),
    Attempt("a14", "opening a file of its state for writing", lambda agent: _open(agent.inventory, os.O_RDWR)),
    Attempt("a15", "cutting such a file", lambda agent: os.truncate(agent.inventory, 0)),
    Attempt("a16", "deleting such a file", lambda agent: os.unlink(agent.inventory)),
    Attempt("a17", "moving such a file away", lambda agent: os.rename(agent.inventory, "/root/moved")),
    Attempt("a18", "moving its state directory away", lambda agent: os.rename(agent.state, "/root/moved")),
    Attempt("a19", "a new file in its state directory", lambda agent: _open(f"{agent.state}/x", os.O_WRONLY | os.O_CREAT)),
)
