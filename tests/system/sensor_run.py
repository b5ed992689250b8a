"""A real sensor process in a mount namespace of its own, as the agent core would run it, for tests and the benchmark."""

import contextlib
import os
import pathlib
import select
import socket
import subprocess
import sys
import time
from typing import Self

import msgspec

from keibi.agent.ports import FromWorker, Happening, Hello, Observation, Observed, Overflowed, Stop, WatchRoots
from keibi.contract.codec import frame

DEADLINE_SECONDS = 20.0


class SensorRun:
    """The sensor sees `mounts` (shell lines run before it, in its namespace); the test reaches them by `reach`."""

    def __init__(
        self, directory: pathlib.Path, *mounts: str, arguments: tuple[str, ...] = (), prefix: tuple[str, ...] = ()
    ) -> None:
        self.point = directory / "watched"
        self.point.mkdir(exist_ok=True)
        self.mounts = mounts or (f"mount -t tmpfs keibi-test {self.point}",)
        self.arguments = arguments
        self.prefix = prefix
        self.start()

    def start(self) -> None:
        self.observations: list[Observation] = []
        self.overflows: list[Overflowed] = []
        self.hellos: list[Hello] = []
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._unread = bytearray()
        self.channel, theirs = socket.socketpair()
        script = "\n".join(["set -e", *self.mounts, 'exec "$@"'])
        program = [*self.prefix, sys.executable, "-m", "keibi.agent.sensor", *self.arguments]
        self.process = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *program], stdin=theirs.fileno()
        )
        theirs.close()
        self.wait_for(lambda: self.hellos)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(DEADLINE_SECONDS)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def reach(self, path: str | bytes | pathlib.Path = "") -> bytes:
        """Return a way for this process to a path in the sensor's namespace; a relative one lies in the watched mount."""
        inside = os.path.join(os.fsencode(self.point), os.fsencode(path)) if path else os.fsencode(self.point)
        return b"/proc/%d/root%s" % (self.process.pid, inside)

    def shown(self, path: str | bytes) -> bytes:
        """Return the path as the sensor tells it."""
        return os.path.join(os.fsencode(self.point), os.fsencode(path))

    def run_inside(self, *command: str, **options) -> None:
        """Run a program in the sensor's mount namespace."""
        enter = ["nsenter", "-t", str(self.process.pid), "-m", f"--wd={os.getcwd()}"]
        subprocess.run([*enter, *command], check=True, timeout=DEADLINE_SECONDS, **options)

    def watch(self, *roots: str | bytes | pathlib.Path, **wants: bool) -> None:
        """Have roots watched, and return when they are."""
        known = len(self.hellos)
        self.channel.sendall(frame(WatchRoots([os.fsencode(root) for root in (roots or (self.point,))], **wants)))
        self.wait_for(lambda: len(self.hellos) > known)

    def stop(self) -> int:
        self.channel.sendall(frame(Stop()))
        return self.process.wait(DEADLINE_SECONDS)

    def receive(self, seconds: float) -> bool:
        """Take frames that come within `seconds`; returns whether any did."""
        if not select.select([self.channel], [], [], seconds)[0]:
            return False
        data = self.channel.recv(1 << 20)
        if not data:
            raise AssertionError(f"the sensor ended with {self.process.wait(5)}")
        self._unread += data
        while len(self._unread) >= 4 and len(self._unread) >= (end := 4 + int.from_bytes(self._unread[:4], "big")):
            match self._decoder.decode(bytes(self._unread[4:end])):
                case Hello() as hello:
                    self.hellos.append(hello)
                case Observed(observations):
                    self.observations += observations
                case Overflowed() as overflow:
                    self.overflows.append(overflow)
            del self._unread[:end]
        return True

    def wait_for(self, condition, what: str = "", seconds: float = DEADLINE_SECONDS):
        """Return the condition's value once it is true."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            left = deadline - time.monotonic()
            assert left > 0, f"{what or 'it'} did not come within {seconds} s; told were {self.observations[-20:]}"
            self.receive(min(left, 0.5))
        return value

    def expect(self, happening: Happening, path: str | bytes) -> Observation:
        """Return the first observation of this kind and path (in the watched mount), waiting for it."""
        wanted = self.shown(path)
        return self.wait_for(lambda: self.find(happening, wanted), f"{happening} {wanted!r}")

    def find(self, happening: Happening, path: bytes) -> Observation | None:
        return next((one for one in self.observations if one.happening is happening and one.path == path), None)

    def settle(self) -> None:
        """Return when everything that happened before this call has been told."""
        name = b"settled-%d" % time.monotonic_ns()
        os.close(os.open(self.reach(name), os.O_CREAT | os.O_WRONLY))
        self.expect(Happening.CREATED, name)

    def capability(self, name: str):
        return next(one for one in self.hellos[-1].capabilities if one.name == name)
