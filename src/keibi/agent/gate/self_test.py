"""Proof, on a mount that nobody else sees, that this kernel holds an opening and does as it is told.

Run as `python -m keibi.agent.gate.self_test`; the last line it writes is empty, or why permission events cannot be used here.
"""

import os
import select
import sys
import time
from typing import Final

from keibi.agent.gate import fanotify, hardening

_POINT: Final = b"/tmp"
_SECONDS: Final = 3.0


def main() -> int:
    """Run the test; returns 0 when it passed."""
    hardening.die_with_parent()
    try:
        failure = _test()
    except OSError as error:
        failure = str(error)
    os.write(1, failure.encode() + b"\n")
    return 1 if failure else 0


def _test() -> str:
    hardening.enter_own_mounts()
    hardening.mount_memory(_POINT, b"size=1m,mode=0700")
    paths = [os.path.join(_POINT, name) for name in (b"allowed", b"denied")]
    for path in paths:
        with open(path, "wb") as file:
            file.write(b"x")
    group = fanotify.Group(asks_permission=True)
    root = os.open(_POINT, os.O_PATH | os.O_CLOEXEC)
    group.mark_filesystem(root, fanotify.PERMISSIONS | fanotify.CLOSE_WRITE)
    child = os.fork()
    if child == 0:
        os._exit(_outcome(paths))
    try:
        return _answer_until_ended(group, child)
    finally:
        # Whatever the child still waits for is allowed from here on, so it ends.
        group.close()
        os.close(root)


def _outcome(paths: list[bytes]) -> int:
    for path in paths:
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError:
            return 0 if path == paths[1] else 2
        except OSError:
            return 3
    return 1


def _answer_until_ended(group: fanotify.Group, child: int) -> str:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        if select.select([group.fd], [], [], 0.02)[0]:
            for mask, descriptor, _ in group.read():
                if mask & fanotify.PERMISSIONS:
                    is_allowed = not os.readlink(f"/proc/self/fd/{descriptor}").endswith("denied")
                    group.answer(descriptor, is_allowed=is_allowed)
                os.close(descriptor)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return {
                0: "",
                1: "the kernel let a file be opened that was denied",
                2: "the kernel refused to open a file that was allowed",
            }.get(code, f"the test's process ended with {code}")
    return f"the kernel did not go on within {_SECONDS} s"


if __name__ == "__main__":
    sys.exit(main())
