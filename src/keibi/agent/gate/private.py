"""A gate on a mount of its own, for tests and `keibi prove`: it asks the same judges, and holds up nobody else.

Its processes live in a mount namespace of their own, where a fresh tmpfs lies at the given directory; the permission marks
are on that tmpfs alone. Nothing outside this namespace sees the tmpfs, so nothing outside can be held up.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, Final, Self

from keibi.agent.gate import hardening
from keibi.agent.gate.remembering import SETTLED_SECONDS

READY_SECONDS: Final = 15.0
SETTLE_SECONDS: Final = 10.0


class PrivateGate:
    """A context manager; on leaving, gate, mount and everything in it are gone."""

    def __init__(
        self,
        directory: str,
        judges_directory: str,
        *,
        options: str = "size=64m,mode=0755",
        excluded: tuple[str, ...] = (),
        is_proof: bool = True,
        settled_seconds: float = SETTLED_SECONDS,
        guard_scope: str = "",
    ) -> None:
        """Prepare a gate at `directory` (which must exist) that asks every judge listening in `judges_directory`.

        It asks as if policies prevented; without `is_proof`, what the terms say. A test may have verdicts remembered sooner after
        a file's last change than is safe, by `settled_seconds`. `guard_scope` is a cgroup directory that the kernel guard shall
        look at; without one it is not loaded.
        """
        self.directory = os.path.realpath(directory)
        self._judges_directory = judges_directory
        self._options = options
        self._excluded = excluded
        self._is_proof = is_proof
        self._settled_seconds = settled_seconds
        self._guard_scope = guard_scope
        self._process: subprocess.Popen[bytes] | None = None
        self._news = threading.Condition()
        self._has_ended = False
        self._listener: threading.Thread | None = None
        self.state: dict[str, Any] = {}
        """The last state that the gate told."""
        self.happenings: list[dict[str, Any]] = []
        """What the gate told besides, oldest first: {"what": "closed", "reason": …}."""

    def __enter__(self) -> Self:
        """Start it, and wait until every judge that listens has told its terms and the mount is marked.

        Raises:
            TimeoutError: it did not come up.
            OSError: not root, or no permission events on this kernel.
        """
        argv = [sys.executable, "-m", "keibi.agent.gate", "--judges", self._judges_directory, "--private", self.directory]
        argv += ["--options", self._options]
        argv += ["--settled", str(self._settled_seconds)]
        if self._guard_scope:
            argv += ["--guard-scope", self._guard_scope]
        if not self._is_proof:
            argv.append("--plain")
        for directory in self._excluded:
            argv += ["--exclude", directory]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._process.stdout is not None:
            self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), name="private gate", daemon=True)
            self._listener.start()
        try:
            self.wait_for(self._is_ready, READY_SECONDS, "the private gate did not come up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._listener is not None:
            self._listener.join(5.0)
        if process.stdout is not None:
            process.stdout.close()

    @property
    def pid(self) -> int:
        """The warden's process id; its mount namespace shows the tmpfs."""
        if self._process is None:
            raise ValueError("the private gate does not run")
        return self._process.pid

    @property
    def decider_pid(self) -> int:
        """The decider's process id, 0 when none runs."""
        return int(self.state.get("pid", 0))

    def run(
        self,
        argv: list[str],
        *,
        timeout_seconds: float = 20.0,
        input_: bytes | None = None,
        environment: Mapping[str, str] | None = None,
        user: str | int | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program inside the namespace; the working directory is the private mount.

        A program that is not allowed gives exit code 126, as in a shell.

        Raises:
            subprocess.TimeoutExpired: it took longer.
        """
        return subprocess.run(
            ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--wdns={self.directory}", "--", *argv],
            input=input_,
            capture_output=True,
            timeout=timeout_seconds,
            env=environment,
            user=user,
            check=False,
        )

    def enter(self, function: Callable[[], Any], *, timeout_seconds: float = 20.0) -> Any:
        """Call a function in a forked child inside the namespace and return what it returns (JSON types only).

        An OSError of the function is raised here again, with its number.

        Raises:
            TimeoutError: it took longer; the child is killed.
            RuntimeError: it raised something else, or ended by itself.
        """
        return call_in_mounts_of(self.pid, function, timeout_seconds)

    def outside(self, path: str) -> str:
        """Return the path by which this process reaches a file of the private mount."""
        return f"/proc/{self.pid}/root{path}"

    def write(self, name: str, content: bytes, *, mode: int = 0o644) -> str:
        """Write a file on the private mount from outside; returns its path inside."""
        path = os.path.join(self.directory, name)
        outside = self.outside(path)
        os.makedirs(os.path.dirname(outside), exist_ok=True)
        with open(outside, "wb") as file:
            file.write(content)
        os.chmod(outside, mode)
        return path

    def refresh(self) -> dict[str, Any]:
        """Return the state as the gate last told it; it does so five times a second."""
        return self.state

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], within_seconds: float, what: str) -> dict[str, Any]:
        """Return the state once a condition on it holds.

        Raises:
            TimeoutError: it does not in time.
        """
        with self._news:
            if not self._news.wait_for(lambda: condition(self.state) or self._has_ended, within_seconds) or self._has_ended:
                ended = f"; its process ended after {self.happenings}" if self._has_ended else ""
                raise TimeoutError(f"{what}: not within {within_seconds} s; it says {self.state}{ended}")
            return self.state

    def _is_ready(self, state: dict[str, Any]) -> bool:
        if not state:
            return False
        listening = {name[:-5] for name in os.listdir(self._judges_directory) if name.endswith(".sock")}
        known = {name for name, generation in state["judges"].items() if generation >= 0}
        is_marked = any(mount[2] != "none" for mount in state["mounts"])
        if state["wants_holding"]:
            is_settled = state["is_enforcing"] or bool(state["reason"])
        else:
            is_settled = is_marked or not state["wants_watching"]
        return bool(state["mounts"]) and listening <= known and is_settled

    def _listen(self, lines: IO[bytes]) -> None:
        for line in lines:
            if not line.endswith(b"\n"):
                break  # it ended in the middle of a word
            message = json.loads(line)
            with self._news:
                if message["what"] == "state":
                    self.state = message["of"]
                else:
                    self.happenings.append({"what": message["what"], **message["of"]})
                self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()


def call_in_mounts_of(pid: int, function: Callable[[], Any], timeout_seconds: float) -> Any:
    """Call a function in a forked child inside another process's mount namespace; see `PrivateGate.enter`."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os._exit(_in_child(pid, function, theirs))
    os.close(theirs)
    try:
        data = _read_all(ours, timeout_seconds)
    finally:
        os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not data:
        raise RuntimeError("the child ended without an answer")
    answer = json.loads(data)
    if "errno" in answer:
        raise OSError(answer["errno"], answer["error"])
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["value"]


def _in_child(pid: int, function: Callable[[], Any], answers: int) -> int:
    try:
        hardening.join_mounts_of(pid)
        answer: dict[str, Any] = {"value": function()}
    except OSError as error:
        answer = {"errno": error.errno or 0, "error": str(error)}
    except BaseException as error:  # noqa: BLE001 -- the parent raises it
        answer = {"error": repr(error)}
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(answers, data) :]
    return 0


def _read_all(descriptor: int, timeout_seconds: float) -> bytes:
    until = time.monotonic() + timeout_seconds
    parts: list[bytes] = []
    while True:
        if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError(f"no answer within {timeout_seconds} s")
        part = os.read(descriptor, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)
