"""A small Debian on a tmpfs of its own, in mount and process namespaces of its own, for benchmarks that hold up files.

Nothing of the computer's own file systems is mounted in it, so no mark that is set in it can hold up anything outside. The
agent in it may not load anything into the kernel (seccomp), and all programs end with the box.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

TREE_PACKAGES = ("python3", "gcc", "make", "libc6-dev", "libssl3", "libbpf1", "ca-certificates", "procps", "mount")
SUITE = "bookworm"
PYTHON = (3, 11)
KEIBI = "opt/keibi"
LEFT_OUT = frozenset({"chdb-core", "pyarrow", "pandas", "numpy", "granian", "psycopg-binary", "setuptools", "wheel"})
"""What the manager needs and the agent does not, and what is large."""
USERS = ("keibi-agent", "keibi-scan")
_INIT = """
mount -t tmpfs -o size=12g,nr_inodes=2m,mode=0755 box "$1"
cd "$1"
tar -xf "$2"
mkdir -p .former
mount -t proc proc proc
pivot_root . .former
umount -l /.former
rmdir /.former
cd /
trap '' CHLD
echo ready
exec cat
"""
_WITHOUT_KERNEL_PROGRAMS = (
    "import runpy, sys; from keibi.agent.linux.sandbox import forbid_system_calls; forbid_system_calls(['bpf']); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


class Box:
    """A running box. `pid` is its first process, as the computer numbers it."""

    def __init__(self, process: "subprocess.Popen[bytes]", pid: int) -> None:
        self._process = process
        self.pid = pid

    @property
    def root(self) -> pathlib.Path:
        """Where its files are reached from outside."""
        return pathlib.Path(f"/proc/{self.pid}/root")

    @property
    def device(self) -> int:
        """The number of its file system."""
        return os.stat(self.root).st_dev

    def command(self, *argv: str, directory: str = "/root", variables: Sequence[str] = ()) -> list[str]:
        """Return the command line that runs a program in it."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root", f"--wdns={directory}", "--"]
        settings = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
        return [*enter, "/usr/bin/env", "-i", *settings, *variables, *argv]

    def run(self, *argv: str, directory: str = "/root", timeout_seconds: float = 300.0) -> str:
        """Run a program in it to its end; returns what it wrote. When it takes longer, the box is ended: something holds it up.

        Raises:
            SystemExit: it failed or took longer.
        """
        with self.limited(timeout_seconds):
            command = self.command(*argv, directory=directory)
            done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"in the box, {' '.join(argv)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """End the box, and so whoever is held up in it, unless the body is over in time."""
        timer = threading.Timer(seconds, self.end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def agent_command(self, module: str, *arguments: str) -> list[str]:
        """Return the command line that runs a program of Keibi in it, without the right to load programs into the kernel."""
        return self.command("/usr/bin/python3", "-c", _WITHOUT_KERNEL_PROGRAMS, module, *arguments)

    def end(self) -> None:
        """End everything in it."""
        self._process.kill()


def make_tree(tar: pathlib.Path) -> None:
    """Make the archive of the box's files by mmdebstrap, from the sources that this computer's apt uses."""
    sources = tar.with_suffix(".sources")
    sources.write_text(_sources())
    command = ["mmdebstrap", "--variant=apt", f"--include={','.join(TREE_PACKAGES)}", "--skip=cleanup/apt/lists"]
    done = subprocess.run([*command, SUITE, str(tar), str(sources)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"mmdebstrap could not make a Debian tree:\n{done.stderr[-2000:]}")


def _sources() -> str:
    texts = []
    for path in sorted(pathlib.Path("/etc/apt/sources.list.d").glob("*.sources")):
        text = re.sub(r"(?m)^#.*\n", "", path.read_text())
        texts += [re.sub(r"(?m)^Types:.*$", "Types: deb deb-src", part) for part in text.split("\n\n") if f" {SUITE}" in part]
    if not texts:
        sys.exit(f"no Debian {SUITE} in /etc/apt/sources.list.d/*.sources: the box cannot be made here")
    return "\n\n".join(part.strip() for part in texts) + "\n"


@contextlib.contextmanager
def running_box(directory: pathlib.Path, tar: pathlib.Path) -> Iterator[Box]:
    """Give a box made of a tree, with Keibi's agent in it and nothing running."""
    if sys.version_info[:2] != PYTHON:
        sys.exit(f"the box's Python is {PYTHON}, and Keibi's compiled parts here are for {sys.version_info[:2]}")
    point = directory / "box"
    point.mkdir()
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    process = subprocess.Popen(
        [*namespaces, "sh", "-ec", _INIT, "sh", str(point), str(tar)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            sys.exit("the box did not start: this needs root")
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        box = Box(process, int(children[0]))
        _install(box)
        yield box
    finally:
        process.kill()
        process.communicate()


def _install(box: Box) -> None:
    shutil.copyfile("/etc/resolv.conf", box.root / "etc/resolv.conf")
    (box.root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    sources = pathlib.Path(__file__).resolve().parents[1] / "src/keibi"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(sources, box.root / KEIBI / "src/keibi", ignore=ignored)
    libraries = box.root / KEIBI / "lib"
    for name in (*_needed(), "keibi"):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            is_wanted = file.parts[0] != ".." and "__pycache__" not in file.parts
            if is_wanted and (name != "keibi" or file.parts[0].endswith(".dist-info")):
                target = libraries / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(distribution.locate_file(file)), target)
    (box.root / f"usr/local/lib/python{PYTHON[0]}.{PYTHON[1]}/dist-packages/keibi.pth").write_text(
        f"/{KEIBI}/src\n/{KEIBI}/lib\n"
    )
    for user in USERS:
        box.run("useradd", "--system", "--user-group", "--no-create-home", "--shell=/usr/sbin/nologin", user)
    box.run("python3", "-m", "compileall", "-q", f"/{KEIBI}", directory="/")


def _needed() -> list[str]:
    names = re.findall(r"(?m)^([A-Za-z0-9._-]+)==", (pathlib.Path(__file__).parents[1] / "requirements/run.txt").read_text())
    return [name for name in names if name.lower() not in LEFT_OUT]
