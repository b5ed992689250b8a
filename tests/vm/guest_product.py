"""Inside a test machine: the shipped gate, guard and application control worker over the whole computer, and attacks."""

import json
import mmap
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.vm.attempts import ATTEMPTS, Agent
from tests.vm.reporting import MEMFD, PYTHON, ran, say

DIRECTORY = "/var/lib/keibi"
CGROUP = "/sys/fs/cgroup/agent"
MATERIAL = pathlib.Path("/samples/material")
PLACE = "/root/place"


class Product:
    """The agent's processes as the core program runs them, and what they have said."""

    def __init__(self, *options: str) -> None:
        self.frames: list[dict[str, Any]] = []
        os.makedirs(DIRECTORY, exist_ok=True)
        os.makedirs(CGROUP, exist_ok=True)
        join = f"echo $$ >{CGROUP}/cgroup.procs && exec {PYTHON} -m tests.vm.core_program {DIRECTORY} {' '.join(options)}"
        self.process = subprocess.Popen(["/bin/sh", "-c", join], stdout=subprocess.PIPE)
        threading.Thread(target=self._read, daemon=True).start()
        self.pids: dict[str, int] = self.wait(lambda: self.said("pids"), 200, "the worker")[0]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.frames.append(json.loads(line))

    def said(self, what: str) -> list[Any]:
        """Return what it said under a name."""
        return [frame[what] for frame in list(self.frames) if what in frame]

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Return what the condition returns once that is true."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > until:
                raise TimeoutError(f"{what}: not within {seconds} s; it said {self.frames[-5:]}")
            time.sleep(0.05)
        return found

    def capabilities(self) -> dict[str, bool]:
        """Return what the gate can do here, as it told the core."""
        hellos = [frame for frame in self.said("gate") if frame["type"] == "Hello"]
        return {one["name"]: one["is_available"] for one in hellos[-1]["capabilities"]} if hellos else {}

    def tampering(self) -> list[dict[str, Any]]:
        """Return what the gate told the core of attempts against the agent."""
        emits = [frame for frame in self.said("gate") if frame["type"] == "Emit"]
        return [event["details"] for frame in emits for event in frame["events"] if event["kind"] == "gate.tampering"]

    def enforce(self) -> None:
        """Wait until the guard is there and refuses."""
        self.wait(lambda: "kernel_guard_level_a" in self.capabilities(), 60, "the guard")
        self.wait(lambda: not ran(PYTHON, "-c", MEMFD), 30, "the guard refuses")


def main() -> None:
    """Try everything; each case is reported."""
    # Before protection begins: then what nobody knows cannot be opened any more.
    material = {name: (MATERIAL / name).read_bytes() for name in ("good", "bad", "good.so", "bad.so")}
    early = os.open(_place("before.so", material["bad.so"]), os.O_RDONLY)
    product = Product()
    product.enforce()
    say(capabilities=product.capabilities())
    _code(product, material, early)
    _floor()
    _agent(product)
    _stop(product)
    _deaf()


def _place(name: str, content: bytes) -> str:
    """Write a file where everything is judged; root's alone, as a package manager leaves it."""
    os.makedirs(PLACE, exist_ok=True)
    path = f"{PLACE}/{name}"
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, 0o755)
    return path


def _loads(library: str) -> bool:
    return ran(PYTHON, "-c", f"import ctypes; ctypes.CDLL({library!r})")


def _works(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:
        return False
    return True


def _code(product: Product, material: dict[str, bytes], early: int) -> None:
    """What must not run, and what must."""
    say(case="product: approved program", ran=ran(_place("good", material["good"])), expected=True)
    say(case="product: unknown program", ran=ran(_place("bad", material["bad"])), expected=False)
    say(case="product: unknown library", ran=_loads(f"{PLACE}/before.so"), expected=False)
    mapped = _works(lambda: mmap.mmap(early, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
    say(case="product: refused library by a descriptor from before", ran=mapped, expected=False)
    fresh = f"mount -t tmpfs fresh /mnt && cp {MATERIAL}/bad.so /mnt && LD_PRELOAD=/mnt/bad.so /bin/true"
    say(case="product: library on a new file system", ran=ran("unshare", "-m", "sh", "-c", fresh), expected=False)
    product.wait(lambda: any(event["reason"] == "out_of_sight" for event in product.said("event")), 15, "told of it")

    approved = _place("good.so", material["good.so"])
    time.sleep(2.2)  # until its last change is old enough for marks in the kernel
    say(case="product: approved library", ran=_loads(approved) and _loads(approved), expected=True)
    with open(approved, "r+b") as file, mmap.mmap(file.fileno(), 0):
        say(case="product: approved library that somebody may store into", ran=_loads(approved), expected=False)
    product.wait(lambda: _loads(approved), 15, "the library is judged anew when its writer has closed")


def _floor() -> None:
    """Nothing locks anybody out."""
    with open(os.path.realpath("/lib/x86_64-linux-gnu/libc.so.6"), "r+b"):
        say(case="floor: the C library has a writer", ran=ran("/bin/bash", "-c", "echo ran"), expected=True)
    with open("/usr/bin/dash", "rb") as old, open("/usr/bin/dash.new", "wb") as new:
        new.write(old.read())
    os.chmod("/usr/bin/dash.new", 0o755)
    os.rename("/usr/bin/dash.new", "/usr/bin/dash")
    say(case="floor: a shell replaced as a package manager does", ran=ran("/bin/sh", "-c", "echo ran"), expected=True)


def _agent(product: Product) -> None:
    """The agent's processes and what they keep."""
    pids = product.pids
    with open(f"/proc/{pids['gate']}/task/{pids['gate']}/children") as file:
        decider = int(file.read().split()[0])
    agent = Agent(pids["core"], pids["gate"], decider, pids["worker"], f"{DIRECTORY}/state")
    for attempt in ATTEMPTS:
        say(case=f"{attempt.identity} {attempt.what}", ran=attempt.works(agent), expected=attempt.is_possible)
    alive = all(os.path.exists(f"/proc/{pid}") for pid in (agent.core, agent.gate, agent.decider, agent.worker))
    say(case="the agent lives on", ran=alive, expected=True)
    kinds = {"signal", "trace", "write", "control"}
    product.wait(lambda: {told["what"] for told in product.tampering()} >= kinds, 10, "all of it told")
    say(case="who tried is told", ran={told["program"] for told in product.tampering()} == {PYTHON}, expected=True)


def _stop(product: Product) -> None:
    """The orderly way to stop the agent, as `keibi down` and systemd do."""
    os.kill(product.pids["core"], signal.SIGTERM)
    product.wait(lambda: product.said("stopped"), 30, "stopped")
    product.process.wait(10)
    asked = [told for told in product.tampering() if not told["was_refused"] and told["signal"] == signal.SIGTERM]
    say(case="SIGTERM to the core stops the agent, and is told", ran=bool(asked), expected=True)
    say(case="after the agent: program in memory", ran=ran(PYTHON, "-c", MEMFD), expected=True)


def _deaf() -> None:
    """A core that hangs must be possible to end, and all of the agent with it."""
    product = Product("--deaf")
    product.enforce()
    core = product.pids["core"]
    os.kill(core, signal.SIGTERM)
    say(case="SIGKILL to a core that was just asked to stop", ran=_works(lambda: os.kill(core, signal.SIGKILL)), expected=False)
    product.wait(lambda: _works(lambda: os.kill(core, signal.SIGKILL)), 30, "the core can be killed in the end")
    product.process.wait(10)
    rest = [pid for name, pid in product.pids.items() if name != "core"]
    product.wait(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in rest), 15, "all of the agent ends with it")
    product.wait(lambda: ran(PYTHON, "-c", MEMFD), 15, "everything runs")
