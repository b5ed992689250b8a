"""Known ways round application control, as real attacks on a private mount, and what becomes of each.

`expected` is at level C, fanotify alone; `with_guard` at level B where it differs, with the kernel guard beside it; `at_level_a`
where that differs again. Level A is tested in machines of their own (`tests/vm`).

`BYPASSES` is data for the documentation too (`scripts/ways_round.py`). An attack says whether the hostile code ran.
The numbers up to 29 are those of the findings that the design is built on.
"""

import ctypes
import mmap
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from keibi.agent.gate.private import PrivateGate

ALLOWED = "allowed"  # a legitimate run, which must not be blocked
BLOCKED = "blocked"
REPORTED = "reported"
NOT_COVERED = "not covered"

JUDGED = ("software.blocked", "software.would_block", "software.inline_code", "software.changed")
"""The kinds of event that report an attack."""

MARK = b"HOSTILE CODE RAN"
GOOD_MARK = b"good code ran"

PROGRAM = '#include <unistd.h>\nint main(void) {{ write(1, "{mark}\\n", {length}); return 0; }}\n'
LIBRARY = (
    '#include <unistd.h>\n__attribute__((constructor)) static void begin(void) {{ write(1, "{mark}\\n", {length}); }}\n'
    "int answer(void) {{ return {answer}; }}\n"
)


@dataclass(frozen=True)
class Material:
    """Compiled programs and libraries: those that are approved by their content, and those that nobody knows."""

    good: bytes
    bad: bytes
    bad_static: bytes
    good_library: bytes
    bad_library: bytes


def compile_material(directory: pathlib.Path) -> Material:
    """Compile everything that attacks need."""

    def built(name: str, source: str, mark: bytes, *options: str, answer: int = 0) -> bytes:
        text = source.format(mark=mark.decode(), length=len(mark) + 1, answer=answer)
        (directory / f"{name}.c").write_text(text)
        command = ["gcc", "-O1", "-w", *options, "-o", str(directory / name), str(directory / f"{name}.c")]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
        return (directory / name).read_bytes()

    return Material(
        good=built("good", PROGRAM, GOOD_MARK),
        bad=built("bad", PROGRAM, MARK),
        bad_static=built("bad_static", PROGRAM, MARK, "-static"),
        good_library=built("good.so", LIBRARY, GOOD_MARK, "-shared", "-fPIC", answer=1),
        bad_library=built("bad.so", LIBRARY, MARK, "-shared", "-fPIC", answer=2),
    )


RING = r"""
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int count, char **arguments) {
    struct io_uring_params p;
    memset(&p, 0, sizeof p);
    int ring = syscall(__NR_io_uring_setup, 4, &p);
    if (ring < 0) return 77;
    char *submission = mmap(0, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    char *completion = mmap(0, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED,
                            ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *entry = mmap(0, p.sq_entries * sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    memset(entry, 0, sizeof *entry);
    entry->opcode = IORING_OP_OPENAT;
    entry->fd = AT_FDCWD;
    entry->addr = (unsigned long)arguments[1];
    entry->open_flags = O_RDONLY;
    *(unsigned *)(submission + p.sq_off.array) = 0;
    __atomic_store_n((unsigned *)(submission + p.sq_off.tail), 1, __ATOMIC_RELEASE);
    syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0);
    struct io_uring_cqe *done = (struct io_uring_cqe *)(completion + p.cq_off.cqes);
    if (done->res >= 0) puts("HOSTILE CODE RAN");
    return 0;
}
"""


def compile_ring(directory: pathlib.Path) -> str:
    """Compile the program that opens its argument through io_uring; "" where the kernel has none."""
    (directory / "ring.c").write_text(RING)
    program = str(directory / "ring")
    subprocess.run(["gcc", "-O1", "-w", "-o", program, str(directory / "ring.c")], check=True, timeout=60, capture_output=True)
    refused = subprocess.run([program, "/dev/null"], capture_output=True, timeout=10, check=False).returncode == 77
    return "" if refused else program


@dataclass
class Ground:
    """Where attacks happen: a private mount under control, in prevent mode, with inline code of interpreters blocked there."""

    gate: PrivateGate
    material: Material
    ring: str  # a program outside of the mount that opens its argument through io_uring
    count: int = 0

    @property
    def mount(self) -> str:
        """The private mount, as its own namespace sees it."""
        return self.gate.directory

    def place(self, content: bytes, suffix: str = "", mode: int = 0o755) -> str:
        """Write a fresh file on the mount."""
        self.count += 1
        return self.gate.write(f"file{self.count}{suffix}", content, mode=mode)

    def fresh(self, suffix: str = "") -> str:
        """Return a name on the mount that nothing has."""
        self.count += 1
        return os.path.join(self.mount, f"file{self.count}{suffix}")

    def runs(self, *argv: str, mark: bytes = MARK, **more: object) -> bool:
        """Run a program in the namespace; return whether the marked code ran."""
        return mark in self.gate.run(list(argv), **more).stdout  # type: ignore[arg-type]

    def inside(self, function: Callable[[], object]) -> object:
        """Run Python in the namespace; an OSError counts as nothing."""
        try:
            return self.gate.enter(function)
        except OSError:
            return None

    def approved(self) -> str:
        """Place the approved program and run it, so that whatever is remembered of it is."""
        path = self.place(self.material.good)
        assert self.runs(path, mark=GOOD_MARK), "the approved program does not run"
        return path


def _approved_runs(ground: Ground) -> bool:
    return ground.runs(ground.place(ground.material.good), mark=GOOD_MARK)


def _direct(ground: Ground) -> bool:
    return ground.runs(ground.place(ground.material.bad))


def _static(ground: Ground) -> bool:
    return ground.runs(ground.place(ground.material.bad_static))


def _hard_link_of_approved(ground: Ground) -> bool:
    path, name = ground.approved(), ground.fresh()
    ground.inside(lambda: os.link(path, name))
    return ground.runs(name, mark=GOOD_MARK)


def _rename_of_approved(ground: Ground) -> bool:
    path, name = ground.approved(), ground.fresh()
    ground.inside(lambda: os.rename(path, name))
    return ground.runs(name, mark=GOOD_MARK)


def _overwrite(path: str, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()


def _written_in_place(ground: Ground) -> bool:
    path, bad = ground.approved(), ground.material.bad
    ground.inside(lambda: _overwrite(path, bad))
    return ground.runs(path)


def _written_with_time_restored(ground: Ground) -> bool:
    path, bad = ground.approved(), ground.material.bad

    def attack() -> None:
        before = os.stat(path)
        _overwrite(path, bad)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    ground.inside(attack)
    return ground.runs(path)


def _written_through_mapping(ground: Ground) -> bool:
    bad, good = ground.material.bad, ground.material.good
    path = ground.place(good.ljust(len(bad), b"\0"))
    # Bytes after an ELF file change nothing of what runs, but they make another file: approved is the plain one.
    os.truncate(f"/proc/{ground.gate.pid}/root{path}", len(good))
    assert ground.runs(path, mark=GOOD_MARK)

    def attack() -> None:
        descriptor = os.open(path, os.O_RDWR)
        os.ftruncate(descriptor, max(len(bad), len(good)))
        with mmap.mmap(descriptor, 0) as shared:
            os.close(descriptor)
            shared[: len(bad)] = bad

    ground.inside(attack)
    return ground.runs(path)


def _writer_stays(ground: Ground) -> bool:
    path, bad = ground.approved(), ground.material.bad

    def attack() -> bool:
        descriptor = os.open(path, os.O_RDWR)
        try:
            # Judged while it is the approved content, then exchanged: the kernel refuses to run what has a writer.
            ran = _output_of([path])
            os.pwrite(descriptor, bad, 0)
            os.ftruncate(descriptor, len(bad))
            return MARK in ran or MARK in _output_of([path])
        finally:
            os.close(descriptor)

    return bool(ground.inside(attack))


def _writer_of_library_stays(ground: Ground) -> bool:
    path, bad, good = ground.place(ground.material.good_library, ".so"), ground.material.bad_library, ground.material.good_library

    def attack() -> bool:
        descriptor = os.open(path, os.O_RDWR)
        with mmap.mmap(descriptor, len(good)) as shared:
            os.close(descriptor)
            first = _output_of(["/usr/bin/python3", "-c", f"import ctypes; ctypes.CDLL({path!r})"])
            shared[:] = bad.ljust(len(good), b"\0")[: len(good)]
            return GOOD_MARK in first

    return bool(ground.inside(attack))


def _output_of(argv: list[str], **more: object) -> bytes:
    try:
        return subprocess.run(argv, capture_output=True, timeout=10, check=False, **more).stdout  # type: ignore[call-overload, no-any-return]
    except OSError:
        return b""


def _replaced_by_rename(ground: Ground) -> bool:
    path, other = ground.approved(), ground.place(ground.material.bad)
    ground.inside(lambda: os.rename(other, path))
    return ground.runs(path)


def _inode_used_again(ground: Ground) -> bool:
    path, bad = ground.approved(), ground.material.bad

    def attack() -> None:
        os.unlink(path)
        with open(path, "wb") as file:
            file.write(bad)
        os.chmod(path, 0o755)

    ground.inside(attack)
    return ground.runs(path)


def _new_mount(ground: Ground, *options: str) -> bool:
    source, place = ground.place(ground.material.bad), ground.fresh()
    ground.inside(lambda: os.mkdir(place))
    script = f"mount -t tmpfs none {place} && cp {source} {place}/x && {place}/x"
    return ground.runs("unshare", *options, "sh", "-c", script)


def _new_mount_namespace(ground: Ground) -> bool:
    return _new_mount(ground, "-m")


def _new_user_namespace(ground: Ground) -> bool:
    return _new_mount(ground, "-Urm")


def _memory_file(ground: Ground) -> bool:
    bad = ground.material.bad

    def attack() -> bool:
        descriptor = os.memfd_create("x", 0)
        os.write(descriptor, bad)
        return MARK in _output_of([f"/proc/self/fd/{descriptor}"], pass_fds=(descriptor,))

    return bool(ground.inside(attack))


def _unnamed_file(ground: Ground) -> bool:
    mount, bad = ground.mount, ground.material.bad

    def attack() -> bool:
        writer = os.open(mount, os.O_TMPFILE | os.O_RDWR, 0o755)
        os.write(writer, bad)
        reader = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY)
        os.close(writer)
        return MARK in _output_of([f"/proc/self/fd/{reader}"], pass_fds=(reader,))

    return bool(ground.inside(attack))


def _execveat(ground: Ground) -> bool:
    path = ground.place(ground.material.bad)

    def attack() -> bool:
        descriptor = os.open(path, os.O_PATH)
        return MARK in _output_of([f"/proc/self/fd/{descriptor}"], pass_fds=(descriptor,))

    return bool(ground.inside(attack))


def _loader(ground: Ground) -> bool:
    return ground.runs("/lib64/ld-linux-x86-64.so.2", ground.place(ground.material.bad))


def _preload(ground: Ground, variable: str = "LD_PRELOAD", program: str = "/bin/true") -> bool:
    library = ground.place(ground.material.bad_library, ".so")
    return ground.runs("/usr/bin/env", f"{variable}={library}", program)


def _audit_library(ground: Ground) -> bool:
    return _preload(ground, "LD_AUDIT")


def _preload_into_reader(ground: Ground) -> bool:
    return _preload(ground, "LD_PRELOAD", "/usr/bin/file")


def _dlopen(ground: Ground) -> bool:
    library = ground.place(ground.material.bad_library, ".so")
    return ground.runs("/usr/bin/python3", "-c", f"import ctypes; ctypes.CDLL({library!r})")


def _dlopen_without_suffix(ground: Ground) -> bool:
    library = ground.place(ground.material.bad_library, ".txt", mode=0o644)
    return ground.runs("/usr/bin/python3", "-c", f"import ctypes; ctypes.CDLL({library!r})")


def _mapped_then_executable(ground: Ground) -> bool:
    path = ground.place(ground.material.bad)

    def attack() -> bool:
        descriptor = os.open(path, os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, 0)
        return libc.mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_READ | mmap.PROT_EXEC) == 0

    return bool(ground.inside(attack))


def _code_in_memory(ground: Ground) -> bool:
    def attack() -> int:
        code = b"\xb8\x2a\x00\x00\x00\xc3"  # mov eax, 42; ret
        with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
            memory.write(code)
            view = ctypes.c_char.from_buffer(memory)
            answer = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(view))()
            del view
        return int(answer)

    return ground.inside(attack) == 42


SHELL_SCRIPT = b"#!/bin/sh\necho " + MARK + b"\n"
PLAIN_SHELL = b"echo " + MARK + b"\n"
PYTHON_SCRIPT = b"print('" + MARK + b"')\n"


def _script(ground: Ground) -> bool:
    return ground.runs(ground.place(SHELL_SCRIPT, ".sh"))


def _script_of_shell(ground: Ground) -> bool:
    return ground.runs("/bin/sh", ground.place(SHELL_SCRIPT, ".sh", mode=0o644))


def _script_without_first_line(ground: Ground) -> bool:
    return ground.runs("/bin/sh", "-c", ground.place(PLAIN_SHELL))


def _sourced(ground: Ground) -> bool:
    return ground.runs("/bin/bash", "-c", f"source {ground.place(PLAIN_SHELL, '.sh', mode=0o644)}")


def _python_script(ground: Ground) -> bool:
    return ground.runs("/usr/bin/python3", ground.place(PYTHON_SCRIPT, ".py", mode=0o644))


def _python_module(ground: Ground) -> bool:
    name = os.path.basename(ground.place(PYTHON_SCRIPT, ".py", mode=0o644)).removesuffix(".py")
    return ground.runs("/usr/bin/python3", "-c", f"import sys; sys.path.insert(0, {ground.mount!r}); import {name}")


def _redirected(ground: Ground) -> bool:
    return ground.runs("/bin/sh", "-c", f"python3 < {ground.place(PYTHON_SCRIPT, '.py', mode=0o644)}")


def _interpreter(ground: Ground) -> str:
    """Place a known interpreter on the mount: its execution is asked about there."""
    path = os.path.join(ground.mount, "python3")
    if not os.path.exists(f"/proc/{ground.gate.pid}/root{path}"):
        ground.gate.write("python3", pathlib.Path(os.path.realpath("/usr/bin/python3")).read_bytes(), mode=0o755)
    return path


HOME = {"PYTHONHOME": "/usr", "PATH": "/usr/bin:/bin"}


def _inline(ground: Ground) -> bool:
    return ground.runs(_interpreter(ground), "-c", PYTHON_SCRIPT.decode(), environment=HOME)


def _from_standard_input(ground: Ground) -> bool:
    return ground.runs(_interpreter(ground), input_=PYTHON_SCRIPT, environment=HOME)


def _odd_name(ground: Ground) -> bool:
    return ground.runs(_interpreter(ground), ground.place(PYTHON_SCRIPT, ".dat", mode=0o644), environment=HOME)


def _renamed_interpreter(ground: Ground) -> bool:
    path, name = _interpreter(ground), ground.fresh()
    ground.gate.run(["/bin/cp", path, name])
    ground.gate.run(["/bin/chmod", "755", name])
    return ground.runs(name, ground.place(PYTHON_SCRIPT, ".py", mode=0o644), environment=HOME)


def _renamed_interpreter_inline(ground: Ground) -> bool:
    path, name = _interpreter(ground), ground.fresh()
    ground.gate.run(["/bin/cp", path, name])
    ground.gate.run(["/bin/chmod", "755", name])
    return ground.runs(name, "-c", PYTHON_SCRIPT.decode(), environment=HOME)


def _ring(ground: Ground) -> bool:
    return ground.runs(ground.ring, ground.place(ground.material.bad_library, ".so"))


def _mounted_over_a_reader(ground: Ground) -> bool:
    library = ground.place(ground.material.bad_library, ".so")
    script = f"mount --bind /usr/bin/python3 /usr/bin/tar && /usr/bin/tar -c 'import ctypes; ctypes.CDLL(\"{library}\")'"
    return ground.runs("unshare", "-Urm", "sh", "-c", script, environment=HOME)


def _unnamed_interpreter(ground: Ground) -> bool:
    code = b'BEGIN { print "' + MARK + b'" }\n'
    return ground.runs("/usr/bin/awk", "-f", ground.place(code, ".awk", mode=0o644))


def _known_module(ground: Ground) -> bool:
    output = ground.gate.run([_interpreter(ground), "-m", "this"], environment=HOME).stdout
    return b"Zen of Python" in output


def _overlay(ground: Ground, content: bytes, layer: str, mark: bytes, *, tries: int = 1) -> bool:
    base = ground.fresh()
    for name in ("lower", "upper", "work", "merged"):
        os.makedirs(f"/proc/{ground.gate.pid}/root{base}/{name}")
    ground.gate.write(f"{os.path.basename(base)}/{layer}/x", content, mode=0o755)
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    again = f"for n in $(seq {tries}); do {base}/merged/x && break; sleep 0.3; done"
    script = f"mount -t overlay none -o {options} {base}/merged && ({again})"
    return ground.runs("unshare", "-m", "sh", "-c", script, mark=mark, timeout_seconds=20.0 + tries)


def _overlay_of_approved(ground: Ground) -> bool:
    # The kernel guard lets nothing run on a file system before the gate has seen it.
    return _overlay(ground, ground.material.good, "lower", GOOD_MARK, tries=60)


def _overlay_upper(ground: Ground) -> bool:
    return _overlay(ground, ground.material.bad, "upper", MARK)


def _bind_mount(ground: Ground) -> bool:
    path, other = ground.place(ground.material.bad), ground.place(ground.material.good)
    return ground.runs("unshare", "-m", "sh", "-c", f"mount --bind {path} {other} && {other}")


def _setuid_copy(ground: Ground) -> bool:
    path, other = ground.place(ground.material.bad), ground.fresh()
    ground.gate.run(["/bin/cp", path, other])
    ground.gate.run(["/bin/chmod", "4755", other])
    return ground.runs(other)


def _user_namespace(ground: Ground) -> bool:
    return ground.runs("unshare", "-Ur", ground.place(ground.material.bad))


def _changed_root(ground: Ground) -> bool:
    path = ground.place(ground.material.bad_static)
    return ground.runs("chroot", ground.mount, "/" + os.path.basename(path))


def _symlink(ground: Ground) -> bool:
    path, name = ground.place(ground.material.bad), ground.fresh()
    ground.inside(lambda: os.symlink(path, name))
    return ground.runs(name)


def _link_then_written(ground: Ground) -> bool:
    path, name, bad = ground.approved(), ground.fresh(), ground.material.bad

    def attack() -> None:
        os.link(path, name)
        _overwrite(name, bad)

    ground.inside(attack)
    return ground.runs(path)


def _copied_by_kernel(ground: Ground) -> bool:
    path, other = ground.approved(), ground.place(ground.material.bad)

    def attack() -> None:
        # A reader may open what it does not run; here the approved file gets other content without a write call.
        with open(path, "r+b") as target:
            target.truncate(0)
        shutil.copyfile(other, path)

    ground.inside(attack)
    ground.gate.run(["/bin/cp", other, path])
    return ground.runs(path)


def _library_changed_while_loaded(ground: Ground) -> bool:
    path, bad = ground.place(ground.material.good_library, ".so"), ground.material.bad_library

    def attack() -> bool:
        library = ctypes.CDLL(path)
        assert library.answer() == 1
        _overwrite(path, bad)
        return int(library.answer()) == 2

    try:
        return bool(ground.gate.enter(attack))
    except RuntimeError:
        return True  # the process died in changed code: that it ran is bad enough
    except OSError:
        return False


def _library_on_new_mount(ground: Ground) -> bool:
    source, place = ground.place(ground.material.bad_library, ".so"), ground.fresh()
    ground.inside(lambda: os.mkdir(place))
    script = f"mount -t tmpfs none {place} && cp {source} {place}/x.so && LD_PRELOAD={place}/x.so /bin/true"
    return ground.runs("unshare", "-m", "sh", "-c", script)


def _library_in_memory(ground: Ground) -> bool:
    bad = ground.material.bad_library

    def attack() -> bool:
        descriptor = os.memfd_create("x", 0)
        os.write(descriptor, bad)
        code = f"import ctypes; ctypes.CDLL('/proc/self/fd/{descriptor}')"
        return MARK in _output_of(["/usr/bin/python3", "-c", code], pass_fds=(descriptor,))

    return bool(ground.inside(attack))


def _library_with_a_mapping_that_stays(ground: Ground) -> bool:
    path, bad = ground.place(ground.material.good_library, ".so"), ground.material.bad_library
    load = ["/usr/bin/python3", "-c", f"import ctypes; ctypes.CDLL({path!r})"]

    def attack() -> bool:
        time.sleep(2.1)  # until the gate lets the kernel answer for the file by itself
        assert all(GOOD_MARK in _output_of(load) for _ in range(2))
        descriptor = os.open(path, os.O_RDWR)
        with mmap.mmap(descriptor, 0) as shared:
            os.close(descriptor)
            shared[:] = bad.ljust(len(shared), b"\0")[: len(shared)]
            return MARK in _output_of(load)

    return bool(ground.inside(attack))


def _raw_code_in_a_file(ground: Ground) -> bool:
    path = ground.fresh(".dat")

    def attack() -> int:
        with open(path, "w+b") as file:
            file.write(b"\xb8\x2a\x00\x00\x00\xc3".ljust(4096, b"\0"))  # mov eax, 42; ret
            file.flush()
            with mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
                view = ctypes.c_char.from_buffer(memory)
                answer = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(view))()
                del view
        return int(answer)

    return ground.inside(attack) == 42


@dataclass(frozen=True)
class Bypass:
    """One way round, and what becomes of it."""

    identity: str
    what: str
    expected: str
    attack: Callable[[Ground], bool]
    note: str = ""
    with_guard: str = ""
    at_level_a: str = ""

    def expected_at(self, level: str) -> str:
        """Return what becomes of it at level "C", "B" or "A"."""
        at_b = self.with_guard or self.expected
        return {"C": self.expected, "B": at_b, "A": self.at_level_a or at_b}[level]


INLINE_NOTE = "with the policy that blocks inline code; else it runs and can be reported"
NEW_MOUNT_NOTE = "with the kernel guard once the gate has seen the new mount, within a second"
SENSITIVE_NOTE = "a gate on the computer marks new mounts as they appear, which takes a moment; see also user.max_user_namespaces"

BYPASSES: tuple[Bypass, ...] = (
    Bypass("00", "an approved program", ALLOWED, _approved_runs),
    Bypass("01", "an unknown program, executed directly", BLOCKED, _direct),
    Bypass("02", "an unknown static program", BLOCKED, _static),
    Bypass("03", "a hard link of an approved program", ALLOWED, _hard_link_of_approved),
    Bypass("04", "an approved program under another name", ALLOWED, _rename_of_approved),
    Bypass("05", "written to after it was approved", BLOCKED, _written_in_place),
    Bypass("06", "the same, with the modification time restored", BLOCKED, _written_with_time_restored),
    Bypass("07", "written through a shared mapping after it was approved", BLOCKED, _written_through_mapping),
    Bypass("08", "a writer holds the program open while it is judged", BLOCKED, _writer_stays),
    Bypass("09", "a writer has the library mapped while it is judged", BLOCKED, _writer_of_library_stays),
    Bypass("10", "replaced by rename()", BLOCKED, _replaced_by_rename),
    Bypass("11", "deleted and made anew, perhaps with the same inode", BLOCKED, _inode_used_again),
    Bypass("12", "a fresh tmpfs in a new mount namespace", NOT_COVERED, _new_mount_namespace, SENSITIVE_NOTE, BLOCKED),
    Bypass("13", "a fresh tmpfs in a new user namespace", NOT_COVERED, _new_user_namespace, SENSITIVE_NOTE, BLOCKED),
    Bypass("14", "memfd_create, then execute", NOT_COVERED, _memory_file, "vm.memfd_noexec=2 closes it too (Linux 6.3)", BLOCKED),
    Bypass("15", "an unnamed file (O_TMPFILE), then execute", BLOCKED, _unnamed_file),
    Bypass("16", "ld.so ./unknown", BLOCKED, _loader),
    Bypass("17", "LD_PRELOAD=unknown.so", BLOCKED, _preload),
    Bypass("18", "dlopen of an unknown library", BLOCKED, _dlopen),
    Bypass("19", "mapped for reading, then made executable", BLOCKED, _mapped_then_executable),
    Bypass("20", "code written into anonymous memory", NOT_COVERED, _code_in_memory, "no file is involved"),
    Bypass("21", "./unknown.sh with #!", BLOCKED, _script),
    Bypass("22", "sh unknown.sh", BLOCKED, _script_of_shell),
    Bypass("23", "python3 unknown.py", BLOCKED, _python_script),
    Bypass("24", "python3 < unknown.py", BLOCKED, _redirected, "the shell that opens it is an interpreter too"),
    Bypass("25", "python3 -c code", BLOCKED, _inline, INLINE_NOTE),
    Bypass("26", "python3 unknown.dat", BLOCKED, _odd_name, INLINE_NOTE),
    Bypass("27", "an approved program in the lower layer of an overlay", ALLOWED, _overlay_of_approved, NEW_MOUNT_NOTE),
    Bypass(
        "28",
        "an unknown program in the upper layer of an overlay",
        BLOCKED,
        _overlay_upper,
        "before Linux 6.12 only once the gate has seen the new mount",
    ),
    Bypass("29", "an unknown program through a bind mount", BLOCKED, _bind_mount),
    Bypass("30", "code from standard input", BLOCKED, _from_standard_input, INLINE_NOTE),
    Bypass("31", "a module that the interpreter finds itself", ALLOWED, _known_module),
    Bypass("32", "executed by its descriptor (execveat)", BLOCKED, _execveat),
    Bypass("33", "in a user namespace", BLOCKED, _user_namespace),
    Bypass("34", "under another root directory", BLOCKED, _changed_root),
    Bypass("35", "through a symbolic link", BLOCKED, _symlink),
    Bypass("36", "a copy with the set-user-id bit", BLOCKED, _setuid_copy),
    Bypass("37", "a script with an execute bit and no #!", BLOCKED, _script_without_first_line),
    Bypass("38", "source unknown.sh", BLOCKED, _sourced),
    Bypass("39", "import of an unknown Python module", BLOCKED, _python_module),
    Bypass("40", "LD_AUDIT=unknown.so", BLOCKED, _audit_library),
    Bypass("41", "LD_PRELOAD into a program that may open anything", BLOCKED, _preload_into_reader),
    Bypass("42", "dlopen of an unknown library called .txt", BLOCKED, _dlopen_without_suffix),
    Bypass("43", "a hard link of an approved program, written to", BLOCKED, _link_then_written),
    Bypass("44", "filled by a copying program after it was approved", BLOCKED, _copied_by_kernel),
    Bypass(
        "45",
        "an approved library changed while a process has it loaded",
        REPORTED,
        _library_changed_while_loaded,
        "software.changed; needs the right to write to the library",
    ),
    Bypass("46", "a copy of an interpreter under another name, with a script", BLOCKED, _renamed_interpreter),
    Bypass("47", "a copy of an interpreter under another name, with -c", BLOCKED, _renamed_interpreter_inline, INLINE_NOTE),
    Bypass("48", "an unknown library opened through io_uring", BLOCKED, _ring),
    Bypass("49", "an interpreter mounted over a program that may open anything", BLOCKED, _mounted_over_a_reader),
    Bypass(
        "50",
        "code of an interpreter that the policy does not name (awk -f)",
        NOT_COVERED,
        _unnamed_interpreter,
        "name it among the interpreters, and its suffix among the names of scripts",
    ),
    Bypass(
        "51",
        "a library on a fresh tmpfs in a new mount namespace",
        NOT_COVERED,
        _library_on_new_mount,
        SENSITIVE_NOTE,
        at_level_a=BLOCKED,
    ),
    Bypass(
        "52",
        "a library in memory (memfd), loaded",
        NOT_COVERED,
        _library_in_memory,
        "honest runtimes map code from memory too: as 20; needs a program that runs already",
    ),
    Bypass(
        "53",
        "an approved library, stored into through a mapping that stays open",
        BLOCKED,
        _library_with_a_mapping_that_stays,
        "where root alone may write to the file and its folder, at level A only, else when the mapping ends",
    ),
    Bypass("54", "raw code in a file of data that a program maps itself", NOT_COVERED, _raw_code_in_a_file, "as 20"),
)

KERNEL_REFUSES = {"08": "the kernel itself runs nothing that has a writer"}
"""Attacks that do not work where nobody judges either."""
