"""Finds, when the worker starts, what must never be blocked on this computer: the agent, the login path and their libraries."""

import glob
import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

import keibi
from keibi.agent.modules.application_control.contents import sha256_of
from keibi.agent.modules.application_control.inventory import Inventory
from keibi.protection.application_control.floor import LOGIN_AND_PACKAGES, Floor

_LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-linux.so.2")
_LISTED = re.compile(rb"(/\S+) \(0x")
_LIST_SECONDS = 5.0


def find_floor(inventory: Inventory, *, is_inventory_there: bool) -> Floor:
    """Return the floor of this computer.

    What lies there now counts as its own content only when the inventory trusts it; at the first start there is none to ask.
    """
    programs = set(_programs())
    programs.add(os.path.realpath(sys.executable).encode())
    needed = set(programs)
    for program in programs:
        needed.update(_libraries(program))
    for pid in (1, os.getpid(), os.getppid()):
        needed.update(_mapped(pid))
    contents = set()
    for path in needed:
        content = _content(path)
        if content and (not is_inventory_there or inventory.trusted(content) is not None):
            contents.add(content)
    return Floor(agent_directories=_agent_directories(), needed=needed, contents_at_start=contents)


def _agent_directories() -> list[bytes]:
    directories = {os.path.dirname(os.path.realpath(keibi.__file__)), sys.prefix, sysconfig.get_path("stdlib")}
    return [os.fsencode(os.path.realpath(directory)) for directory in directories]


def _programs() -> Iterator[bytes]:
    for pattern in LOGIN_AND_PACKAGES:
        if pattern.endswith("/**"):
            continue  # covered by the pattern itself; what lies there needs libraries that PID 1 has too
        for path in glob.iglob(pattern):
            found = os.path.realpath(path)
            try:
                if stat.S_ISREG(os.stat(found).st_mode):
                    yield os.fsencode(found)
            except OSError:
                continue


def _libraries(program: bytes) -> Iterator[bytes]:
    """Yield what the dynamic loader would load for a program. It only lists: no line of the program runs."""
    loader = next((path for path in _LOADERS if os.path.exists(path)), "")
    if not loader:
        return
    try:
        listing = subprocess.run([loader, "--list", program], capture_output=True, timeout=_LIST_SECONDS, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return
    for found in _LISTED.finditer(listing):
        yield os.path.realpath(found[1])


def _mapped(pid: int) -> Iterator[bytes]:
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                fields = line.split(None, 5)
                if len(fields) == 6 and fields[5].startswith(b"/") and b"x" in fields[1]:
                    yield fields[5].rstrip(b"\n")
    except OSError:
        return


def _content(path: bytes) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return sha256_of(descriptor, os.fstat(descriptor).st_size)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
