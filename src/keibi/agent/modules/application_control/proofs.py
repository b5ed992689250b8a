"""Which file systems belong to a proof: what happens there is the private gate's to tell, and no drift of the computer.

The computer's own gate follows mounts of other namespaces, and so meets those of a proof too.
"""

import os
from collections.abc import Iterable

from keibi.agent.gate.judging import GateState


def devices_of_proofs(states: Iterable[GateState]) -> frozenset[int]:
    """Return the devices (st_dev) of the mounts that private gates watch, without any that the computer itself has mounted.

    Only root can be a gate; and a gate that names a file system of the computer's takes nothing out.
    """
    found: set[int] = set()
    for state in states:
        if state.is_proof and state.pid:
            for point, _, how, _ in state.mounts:
                if how != "none":
                    found |= _device_in(state.pid, point)
    return frozenset(found - _mounted_here()) if found else frozenset()


def _device_in(pid: int, point: str) -> set[int]:
    try:
        return {os.stat(f"/proc/{pid}/root{point}").st_dev}
    except OSError:
        return set()


def _mounted_here() -> set[int]:
    with open("/proc/self/mountinfo", "rb") as table:
        pairs = (line.split(b" ", 3)[2].split(b":") for line in table)
        return {os.makedev(int(major), int(minor)) for major, minor in pairs}
