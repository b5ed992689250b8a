"""Builds what a test machine boots: a stock Debian kernel, and a file system in memory with Python and this source tree.

Everything comes from Debian packages, unpacked and not installed, through whatever mirror this machine's apt uses. They are
kept; so is the archive of all that does not come from this source tree. The kernel unpacks several archives one over another.
"""

import hashlib
import lzma
import pathlib
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass

from tests.system.application_control_bypasses import compile_material, compile_ring

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = (
    "busybox-static", "coreutils", "dash", "bash", "util-linux", "mount", "mawk", "tar", "file", "libmagic1", "libmagic-mgc",
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6", "zlib1g",
    "libexpat1", "libssl3", "libffi8", "libbpf1", "libelf1", "liblzma5", "libbz2-1.0", "libuuid1", "libcrypt1", "libsqlite3-0",
    "libtinfo6", "libselinux1", "libpcre2-8-0", "libmount1", "libblkid1", "libsmartcols1", "libacl1", "libattr1", "libgmp10",
    "libcap-ng0",
)  # fmt: skip
PYTHON_PACKAGES = ("msgspec", "zstandard", "blake3", "re2", "typing_extensions.py")
TESTS = ("__init__.py", "system/__init__.py", "system/worker_process.py", "system/application_control_worker.py",
         "system/application_control_bypasses.py", "vm")  # fmt: skip
UNUSED = (
    "usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/info", "usr/lib/python3.11/test",
    "usr/lib/python3.11/lib2to3", "usr/lib/python3.11/idlelib", "usr/lib/python3.11/ensurepip", "usr/lib/x86_64-linux-gnu/gconv",
)  # fmt: skip
MODULES = ("fs/overlayfs/overlay.ko",)
INIT = """#!/bin/busybox sh
busybox mkdir -p /proc /sys /dev /tmp /run /mnt /root /var/lib
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs run /run
busybox mount -t tmpfs tmp /tmp
busybox mkdir -p /sys/fs/cgroup
busybox mount -t cgroup2 cgroup /sys/fs/cgroup
busybox --install -s /bin
export PATH=/bin:/usr/bin:/sbin:/usr/sbin PYTHONPATH=/keibi/src:/keibi:/keibi/packages PYTHONDONTWRITEBYTECODE=1 HOME=/root
for module in /modules/*.ko; do insmod $module; done
stty -F /dev/ttyS1 -opost 2>/dev/null
python3 -u -m tests.vm.guest >/dev/ttyS1 2>/dev/ttyS0
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
    """Return an image in `directory`, which keeps what can be used the next time."""
    packages = directory / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    [kernel_file] = _downloaded([kernel_package], packages)
    kernel_tree = directory / kernel_package
    if not kernel_tree.exists():
        _unpack(kernel_file, kernel_tree)
    [kernel] = (kernel_tree / "boot").glob("vmlinuz-*")
    archive = directory / f"{kernel_package}.cpio"
    parts = (_base(packages, directory), _own(directory), _modules(kernel_tree, directory))
    with open(archive, "wb") as whole:
        whole.writelines(part.read_bytes() for part in parts)
    return Image(kernel, archive)


def _base(packages: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """Return the archive of everything that is Debian's."""
    files = _downloaded(PACKAGES, packages)
    key = hashlib.sha256("\n".join([*(file.name for file in files), INIT, *UNUSED]).encode()).hexdigest()[:16]
    archive = directory / f"base-{key}.cpio"
    if archive.exists():
        return archive
    tree = directory / "base"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for file in files:
        _unpack(file, tree)
    for name in UNUSED:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name, target in (("bin/python3", "python3.11"), ("bin/awk", "mawk")):
        (tree / "usr" / name).symlink_to(target)
    (tree / "etc").mkdir(exist_ok=True)
    (tree / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/bash\nkeibi-agent:x:990:990::/:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
    )
    (tree / "etc/group").write_text("root:x:0:\nkeibi-agent:x:990:\nnogroup:x:65534:\n")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    # Emulated, the machine would need longer to compile Python's library than for all tests.
    _compile_python(tree / "usr/lib/python3.11")
    for old in directory.glob("base-*.cpio"):
        old.unlink()
    _pack(tree, archive)
    return archive


def _own(directory: pathlib.Path) -> pathlib.Path:
    """Return the archive of this source tree, of the Python packages that it needs, and of what the tests attack with."""
    tree = directory / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    place = tree / "keibi"
    leave_out = shutil.ignore_patterns("__pycache__", "manager", "cli", "_cffi*", "backend_cffi*", "*.c")
    shutil.copytree(ROOT / "src/keibi", place / "src/keibi", ignore=leave_out)
    for name in TESTS:
        _copy(ROOT / "tests" / name, place / "tests" / name, leave_out)
    for name in PYTHON_PACKAGES:
        _copy(pathlib.Path(sysconfig.get_paths()["platlib"], name), place / "packages" / name, leave_out)
    _compile_python(place)
    _compile_samples(tree / "samples")
    archive = directory / "own.cpio"
    _pack(tree, archive)
    return archive


def _modules(kernel_tree: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """Return the archive of the kernel's modules that attacks need."""
    tree = directory / "modules"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "modules").mkdir(parents=True)
    for name in MODULES:
        [source] = kernel_tree.glob(f"lib/modules/*/kernel/{name}*")
        content = source.read_bytes()
        content = lzma.decompress(content) if source.suffix == ".xz" else content
        (tree / "modules" / pathlib.Path(name).name).write_bytes(content)
    archive = directory / "modules.cpio"
    _pack(tree, archive)
    return archive


def _copy(source: pathlib.Path, target: pathlib.Path, leave_out: object) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=leave_out)  # type: ignore[arg-type]
    else:
        shutil.copy(source, target)


def _pack(tree: pathlib.Path, archive: pathlib.Path) -> None:
    names = subprocess.run(["find", ".", "-print0"], cwd=tree, capture_output=True, check=True).stdout
    unfinished = archive.with_suffix(".unfinished")
    with open(unfinished, "wb") as file:
        command = ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"]
        subprocess.run(command, cwd=tree, input=names, stdout=file, check=True)
    unfinished.rename(archive)


def _compile_python(tree: pathlib.Path) -> None:
    command = [sys.executable, "-m", "compileall", "-q", "-j", "2", "--invalidation-mode", "unchecked-hash", str(tree)]
    # Files of Python's own that no Python compiles are left as they are.
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


def _downloaded(names: tuple[str, ...] | list[str], packages: pathlib.Path) -> list[pathlib.Path]:
    missing = [name for name in names if not list(packages.glob(f"{name}_*.deb"))]
    if missing:
        fetched = subprocess.run(
            ["apt-get", "download", "-q", *missing], cwd=packages, capture_output=True, text=True, check=False
        )
        assert fetched.returncode == 0, f"apt-get could not fetch {', '.join(missing)}: {fetched.stderr.strip()[-500:]}"
    return [max(packages.glob(f"{name}_*.deb")) for name in names]


def _unpack(package: pathlib.Path, tree: pathlib.Path) -> None:
    tree.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as opened:
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", tree], stdin=opened.stdout, check=True)


def _compile_samples(directory: pathlib.Path) -> None:
    """Programs and a library that do nothing but say that they ran, and the material of the known ways round."""
    (directory / "material").mkdir(parents=True)
    compile_material(directory / "material")
    compile_ring(directory / "material")
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
