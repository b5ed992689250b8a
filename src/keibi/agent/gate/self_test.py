"""Proof, on a mount that nobody else sees, that this kernel holds an opening and does as it is told."""

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Final

from keibi.agent.gate import fanotify, hardening

_POINT: Final = b"/tmp"
_SECONDS: Final = 3.0


def run_self_test() -> str:
    """Return why permission events cannot be used on this computer, or "" when they can. This process must have one thread."""
    said = _run(_test)
    return "" if said == "passed" else f"the self-test failed: {said or 'it ended without a word'}"


def layers_are_told() -> bool:
    """Return whether opening a file of an overlay is told as opening that of its layer too. This process must have one thread.

    Where it is, an overlay and its layers may not both be marked: the kernel opens the file for the gate, tells the gate
    of the layer's file that it opens for that, and waits for ever. Older kernels do not tell (6.1).
    """
    return _run(_tell_of_layers) == "told"


def _run(test: Callable[[], str]) -> str:
    """Return what a test says that is carried out by a child, or why there is no answer."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    tester = os.fork()
    if tester == 0:
        os._exit(_say_outcome(test, theirs))
    os.close(theirs)
    try:
        if not select.select([ours], [], [], 2 * _SECONDS)[0]:
            os.kill(tester, signal.SIGKILL)
            return f"the self-test did not end within {2 * _SECONDS:.0f} s"
        return os.read(ours, 4096).decode("utf-8", "replace").strip()
    finally:
        os.close(ours)
        os.waitpid(tester, 0)


def _say_outcome(test: Callable[[], str], answers: int) -> int:
    try:
        hardening.die_with_parent()
        failure = test()
    except OSError as error:
        failure = str(error)
    os.write(answers, (failure or "passed").encode())
    return 0


def _tell_of_layers() -> str:
    hardening.enter_own_mounts()
    hardening.mount_memory(_POINT, b"size=1m,mode=0700")
    for name in (b"lower", b"upper", b"work", b"merged"):
        os.mkdir(os.path.join(_POINT, name))
    with open(os.path.join(_POINT, b"lower", b"x"), "wb") as file:
        file.write(b"x")
    hardening.mount_overlay(_POINT)
    group = fanotify.Group(asks_permission=True)
    root = os.open(_POINT, os.O_PATH | os.O_CLOEXEC)
    group.mark_filesystem(root, fanotify.OPEN_PERMISSION)
    child = os.fork()
    if child == 0:
        os.close(os.open(os.path.join(_POINT, b"merged", b"x"), os.O_RDONLY))
        os._exit(0)
    is_told = False
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until and not os.waitpid(child, os.WNOHANG)[0]:
        if select.select([group.fd], [], [], 0.02)[0]:
            for _, descriptor, _ in group.read():
                is_told = True
                group.answer(descriptor, is_allowed=True)
                os.close(descriptor)
    group.close()
    return "told" if is_told else "not told"


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
