"""Loads the kernel guard, hands its descriptors over and ends: `python -m keibi.agent.linux.bpf.guard_loader`, socket as input.

A process of its own, because libbpf takes 20 MB to read the kernel's types and the gate shall stay tiny. The programs live as
long as anybody holds their links. Answers one JSON packet: `level` ("A", "B" or "" with the `reason`), and `descriptors`, the
names of those that come with it.
"""

import array
import ctypes
import json
import os
import socket
import sys
from typing import Any

from keibi.agent.linux.bpf.build import GUARD_OBJECT
from keibi.agent.linux.libbpf import load_libbpf
from keibi.errors import TryLaterError

MAPS = ("settings", "devices", "files", "epoch", "own", "guarded", "own_maps", "stop_asked", "happenings", "lost")
PROGRAMS = {
    "A": (
        *("refuse_exec", "refuse_map", "refuse_protect", "taint_written"),
        *("refuse_signal", "refuse_limit", "refuse_trace", "refuse_unlink", "refuse_rmdir", "refuse_rename", "refuse_truncate"),
        *("refuse_control", "own_forked", "own_ended"),
    ),
    "B": ("kill_unapproved",),
}


def load(level: str, path: str = GUARD_OBJECT) -> dict[str, int]:
    """Load and attach the programs of a level; returns descriptors by name, those of links as `link.{program}`.

    Raises:
        TryLaterError: the object or libbpf is not there, or the kernel refuses, with its reason.
    """
    libbpf = load_libbpf()
    handle = libbpf.bpf_object__open(os.fsencode(path))
    if not handle:
        raise TryLaterError("bpf_absent", f"the object cannot be read: {os.strerror(ctypes.get_errno())}", where=path)
    programs = {name: libbpf.bpf_object__find_program_by_name(handle, name.encode()) for name in sum(PROGRAMS.values(), ())}
    for name, program in programs.items():
        libbpf.bpf_program__set_autoload(program, name in PROGRAMS[level])
    if (outcome := libbpf.bpf_object__load(handle)) < 0:
        raise TryLaterError("bpf_refused", f"the kernel refuses the programs of level {level}: {os.strerror(-outcome)}")
    found = {name: int(libbpf.bpf_object__find_map_fd_by_name(handle, name.encode())) for name in MAPS}
    for name in PROGRAMS[level]:
        link = libbpf.bpf_program__attach(programs[name])
        if not link:
            raise TryLaterError("bpf_refused", f"{name} cannot be attached: {os.strerror(ctypes.get_errno())}")
        found[f"link.{name}"] = int(libbpf.bpf_link__fd(link))
    return found


def _answer(levels: list[str]) -> tuple[dict[str, Any], list[int]]:
    reasons = []
    for level in levels:
        try:
            descriptors = load(level)
        except TryLaterError as error:
            reasons.append(f"level {level}: {error}")
        else:
            return {"level": level, "reason": "; ".join(reasons), "descriptors": list(descriptors)}, list(descriptors.values())
    return {"level": "", "reason": "; ".join(reasons), "descriptors": []}, []


def main() -> int:
    """Try the levels named as arguments (default A, then B), answer, and return 0."""
    message, descriptors = _answer(sys.argv[1:] or ["A", "B"])
    with socket.socket(fileno=os.dup(0)) as connection:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        connection.sendmsg([json.dumps(message).encode()], rights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
