"""What runs inside a test machine: the guard alone, the shipped agent, all ways round it; one JSON object for each case."""

import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable

from keibi.agent.gate.guard import ENFORCE, GATED, MEMORY, Guard, memory_device
from keibi.agent.gate.guard_maps import APPROVED, REFUSED
from tests.vm import guest_product, guest_ways_round
from tests.vm.reporting import MEMFD, PYTHON, SAMPLES, ran, say

PLACE = "/mnt/place"
MAP = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
mmap.mmap(descriptor, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
print("ran")
"""
PROTECT = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
descriptor = os.open(sys.argv[1], os.O_RDONLY)
address = libc.mmap(None, 4096, 1, 2, descriptor, 0)
if libc.mprotect(address, 4096, 5) == 0:
    print("ran")
"""


def place(name: str, sample: str) -> str:
    path = f"{PLACE}/{name}"
    shutil.copy(f"{SAMPLES}/{sample}", path)
    os.chmod(path, 0o755)
    return path


def prepare() -> tuple[str, str, str]:
    """Make the place, and return a known program, a program and a library that shall be refused."""
    os.makedirs(PLACE)
    subprocess.run(["mount", "-t", "tmpfs", "place", PLACE], check=True)
    return place("known", "program"), place("refused", "program"), place("library.so", "library.so")


def attacks(known: str, refused: str, library: str) -> list[tuple[str, Callable[[], bool]]]:
    """Return what must not work under the guard, and does without it."""
    fresh = f"mount -t tmpfs fresh /mnt && cp {SAMPLES}/static /mnt/fresh && /mnt/fresh"
    return [
        ("refused program", lambda: ran(refused)),
        ("refused program by way of the loader", lambda: ran("/lib64/ld-linux-x86-64.so.2", refused)),
        ("refused library preloaded", lambda: ran(PYTHON, "-c", "print()", environment={"LD_PRELOAD": library})),
        ("refused library opened by a program", lambda: ran(PYTHON, "-c", f"import ctypes; ctypes.CDLL({library!r})")),
        ("refused file mapped as code", lambda: ran(PYTHON, "-c", MAP, library)),
        ("refused file mapped, then made code", lambda: ran(PYTHON, "-c", PROTECT, library)),
        ("program in memory", lambda: ran(PYTHON, "-c", MEMFD)),
        ("program on a new file system in a namespace", lambda: ran("unshare", "-m", "sh", "-c", fresh)),
        ("program on a new file system in a user namespace", lambda: ran("unshare", "-r", "-m", "sh", "-c", fresh)),
        ("approved program opened for writing meanwhile", lambda: ran(known)),
    ]


def main() -> int:
    """Carry out the parts; each that fails says so, and the others go on."""
    say(kernel=platform.release())
    for part in (guard_alone, guest_product.main, guest_ways_round.main):
        started = time.monotonic()
        try:
            part()
        except Exception:  # noqa: BLE001 -- the other parts have something to say too
            say(failed=traceback.format_exc())
        say(**{f"seconds_{part.__module__}": round(time.monotonic() - started, 1)})
    say(finished=True)
    return 0


def guard_alone() -> None:
    """The guard without a gate: what its maps mean."""
    known, refused, library = prepare()
    cases = attacks(known, refused, library)
    for name, attack in cases:
        say(case=name, guard="none", ran=attack(), expected=True)
    guard, reason = Guard.load()
    say(level=guard.level if guard else "", reason=reason)
    if guard is None:
        return

    def state(path: str, value: int) -> None:
        status = os.stat(path)
        guard.files.set(status.st_dev, status.st_ino, value)

    for path in ("/", PLACE, "/tmp", "/run"):
        guard.set_device(os.stat(path).st_dev, GATED)
    guard.set_device(memory_device(), MEMORY)
    guard.configure(ENFORCE, judges_maps=True, protects=False)
    say(case="program on a gated file system", guard="on", ran=ran(known), expected=True)
    say(case="library", guard="on", ran=ran(PYTHON, "-c", "print()", environment={"LD_PRELOAD": library}), expected=True)
    state(known, APPROVED)
    say(case="approved program", guard="on", ran=ran(known), expected=True)
    state(refused, REFUSED)
    state(library, REFUSED)
    with open(known, "r+b"):
        say(case="refused program copied", guard="on", ran=bool(shutil.copyfile(refused, f"{PLACE}/copy")), expected=True)
    for name, attack in cases:
        guard.keep_alive()
        say(case=name, guard="on", ran=attack(), expected=False)
    state(known, APPROVED)
    say(case="program approved anew", guard="on", ran=ran(known), expected=True)
    told = [refusal.kind for refusal in guard.take_refusals()]
    say(refusals={kind: told.count(kind) for kind in sorted(set(told))})

    deadline = time.monotonic() + 15
    while not ran(PYTHON, "-c", MEMFD) and time.monotonic() < deadline:
        time.sleep(0.2)
    say(case="program in memory when the agent is dead", guard="stale", ran=time.monotonic() < deadline, expected=True)
    guard.keep_alive()
    guard.close()
    say(case="program in memory when the guard is gone", guard="gone", ran=ran(PYTHON, "-c", MEMFD), expected=True)


if __name__ == "__main__":
    sys.exit(main())
