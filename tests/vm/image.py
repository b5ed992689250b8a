"""Builds what a test machine boots: a stock Debian kernel, and a file system in memory with Python and this source tree.

Everything comes from Debian packages, unpacked and not installed, through whatever mirror this machine's apt uses.
"""

import pathlib
import shutil
import subprocess
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = (
    "busybox-static", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "zlib1g", "libexpat1",
    "libssl3", "libffi8", "libbpf1", "libelf1", "liblzma5", "libbz2-1.0", "libuuid1", "libcrypt1",
)  # fmt: skip
FILES = (
    "src/keibi/__init__.py", "src/keibi/errors.py", "src/keibi/agent/__init__.py", "src/keibi/agent/judge_server.py",
    "src/keibi/agent/linux/__init__.py", "src/keibi/agent/linux/libbpf.py", "src/keibi/agent/linux/permission_events.py",
    "src/keibi/agent/gate", "src/keibi/agent/linux/bpf",
)  # fmt: skip
INIT = """#!/bin/busybox sh
busybox mkdir -p /proc /sys /dev /tmp /run /mnt /root
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs run /run
busybox mount -t tmpfs tmp /tmp
busybox mkdir -p /sys/fs/cgroup
busybox mount -t cgroup2 cgroup /sys/fs/cgroup
busybox --install -s /bin
export PATH=/bin:/usr/bin:/sbin:/usr/sbin PYTHONPATH=/keibi/src PYTHONDONTWRITEBYTECODE=1
stty -F /dev/ttyS1 -opost 2>/dev/null
python3.11 -u /keibi/tests/vm/guest.py >/dev/ttyS1 2>/dev/ttyS0
sync
reboot -f
"""


@dataclass(frozen=True)
class Image:
    """What a machine boots."""

    kernel: pathlib.Path
    file_system: pathlib.Path


def newest_kernel(pattern: str) -> str | None:
    """Return the newest package of stock cloud kernels whose name matches, such as "6.1.0"; None where apt knows none."""
    found = subprocess.run(
        ["apt-cache", "search", "--names-only", f"^linux-image-{pattern}.*-cloud-amd64$"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = sorted((line.split()[0] for line in found.stdout.splitlines()), key=_by_numbers)
    return names[-1] if names else None


def build(kernel_package: str, directory: pathlib.Path) -> Image:
    """Return an image in `directory`, which keeps the downloaded packages for the next time."""
    packages = directory / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    kernel_tree = _unpacked([kernel_package], packages, directory / kernel_package)
    [kernel] = (kernel_tree / "boot").glob("vmlinuz-*")
    tree = directory / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    _unpacked(PACKAGES, packages, tree)
    for name in FILES:
        source, target = ROOT / name, tree / "keibi" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)
    (tree / "keibi/tests/vm").mkdir(parents=True)
    shutil.copy(ROOT / "tests/vm/guest.py", tree / "keibi/tests/vm/guest.py")
    _compile_samples(tree / "samples")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    for unused in (
        "usr/share/doc",
        "usr/share/locale",
        "usr/share/man",
        "usr/lib/python3.11/test",
        "usr/lib/x86_64-linux-gnu/gconv",
    ):
        shutil.rmtree(tree / unused, ignore_errors=True)
    archive = directory / "machine.cpio"
    with open(archive, "wb") as file:
        names = subprocess.run(["find", ".", "-print0"], cwd=tree, capture_output=True, check=True).stdout
        subprocess.run(
            ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"],
            cwd=tree,
            input=names,
            stdout=file,
            check=True,
        )
    return Image(kernel, archive)


def _unpacked(names: tuple[str, ...] | list[str], packages: pathlib.Path, tree: pathlib.Path) -> pathlib.Path:
    missing = [name for name in names if not list(packages.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", "-q", *missing], cwd=packages, check=True, capture_output=True)
    tree.mkdir(parents=True, exist_ok=True)
    for name in names:
        [package] = packages.glob(f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, tree], check=True)
    return tree


def _compile_samples(directory: pathlib.Path) -> None:
    """Programs and a library that do nothing but say that they ran."""
    directory.mkdir()
    source = directory / "sample.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("ran"); return 0; }\n')
    library = directory / "library.c"
    library.write_text(
        '#include <stdio.h>\n__attribute__((constructor)) static void ran(void) { puts("loaded"); fflush(stdout); }\n'
    )
    subprocess.run(["gcc", "-O1", "-o", directory / "program", source], check=True)
    subprocess.run(["gcc", "-O1", "-static", "-o", directory / "static", source], check=True)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", directory / "library.so", library], check=True)


def _by_numbers(name: str) -> list[int]:
    return [int(part) for part in "".join(character if character.isdigit() else " " for character in name).split()]
