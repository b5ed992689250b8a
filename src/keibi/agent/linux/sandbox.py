"""Taking power away from a process: user and capabilities, file writes (Landlock), system calls (seccomp), resources.

Own ctypes calls: the packages for this are unmaintained or pre-releases. Each function either takes the power away or raises;
the caller decides whether going on without is acceptable, and says so in the status.
"""

import ctypes
import os
import platform
import pwd
import resource
import struct
from collections.abc import Iterable

CAPABILITY_NUMBERS = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_FOWNER": 3, "CAP_FSETID": 4, "CAP_KILL": 5,
    "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_LINUX_IMMUTABLE": 9, "CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21, "CAP_SYS_NICE": 23, "CAP_LEASE": 28, "CAP_SETFCAP": 31,
}  # fmt: skip
"""From linux/capability.h."""

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 8, 22, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
_SECCOMP_MODE_FILTER = 2
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446  # same on all 64-bit architectures
_LANDLOCK_RULE_PATH_BENEATH = 1
# linux/landlock.h: WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_*, then REFER (ABI 2) and TRUNCATE (ABI 3).
_LANDLOCK_WRITES = (1 << 1) | sum(1 << bit for bit in range(4, 13))
_LANDLOCK_READS = (1 << 0) | (1 << 2) | (1 << 3)
_LANDLOCK_REFER, _LANDLOCK_TRUNCATE = 1 << 13, 1 << 14
_LANDLOCK_TCP = (1 << 0) | (1 << 1)  # BIND_TCP, CONNECT_TCP
_LANDLOCK_FILE_ONLY = (1 << 0) | (1 << 1) | (1 << 2) | _LANDLOCK_TRUNCATE

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SYSTEM_CALLS = {
    "x86_64": {
        "ptrace": 101, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "init_module": 175, "delete_module": 176,
        "kexec_load": 246, "keyctl": 250, "unshare": 272, "process_vm_readv": 310, "process_vm_writev": 311,
        "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "socket": 41,
        "execve": 59, "execveat": 322, "perf_event_open": 298, "setns": 308, "open_by_handle_at": 304,
        "openat": 257, "openat2": 437, "open": 2, "creat": 85, "connect": 42, "bind": 49, "socketpair": 53, "kill": 62,
    },
    "aarch64": {
        "ptrace": 117, "mount": 40, "umount2": 39, "swapon": 224, "reboot": 142, "init_module": 105, "delete_module": 106,
        "kexec_load": 104, "keyctl": 219, "unshare": 97, "process_vm_readv": 270, "process_vm_writev": 271,
        "finit_module": 273, "kexec_file_load": 294, "bpf": 280, "userfaultfd": 282, "io_uring_setup": 425, "socket": 198,
        "execve": 221, "execveat": 281, "perf_event_open": 241, "setns": 268, "open_by_handle_at": 265,
        "openat": 56, "openat2": 437, "connect": 203, "bind": 200, "socketpair": 199, "kill": 129,
    },
}  # fmt: skip
NEVER_NEEDED = (
    "ptrace", "mount", "umount2", "swapon", "reboot", "init_module", "delete_module", "kexec_load", "keyctl", "unshare",
    "process_vm_readv", "process_vm_writev", "finit_module", "kexec_file_load", "bpf", "userfaultfd", "io_uring_setup",
    "perf_event_open", "setns", "open_by_handle_at",
)  # fmt: skip
"""System calls that no worker which only reads and judges needs."""

NEVER_NEEDED_BY_ENGINES = (
    *NEVER_NEEDED, "socket", "socketpair", "connect", "bind", "execve", "execveat", "open", "openat", "openat2", "creat", "kill",
)  # fmt: skip
"""What a process does not need either that is handed all it reads as descriptors."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def drop_privileges(user: str, keep: Iterable[str] = (), *, for_children: bool = False) -> None:
    """Become `user` for good, keeping only the capabilities named in `keep`, and never gain any again.

    With `for_children` the programs that it starts keep them too; else they have none.

    Must be called before other threads exist: capabilities belong to threads.

    Raises:
        KeyError: no such user.
        OSError: the kernel refuses (not root).
    """
    account = pwd.getpwnam(user)
    numbers = [CAPABILITY_NUMBERS[name] for name in keep]
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    _set_capabilities(numbers, is_inheritable=for_children)
    if for_children:
        for number in numbers:
            _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0), "prctl ambient")
    forbid_new_privileges()


def keep_capabilities(keep: Iterable[str]) -> None:
    """Stay root, with only the capabilities named in `keep`; programs that this process starts never have others either.

    Must be called before other threads exist.

    Raises:
        OSError: the kernel refuses (not root).
    """
    numbers = {CAPABILITY_NUMBERS[name] for name in keep}
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    for number in range(last + 1):
        if number not in numbers:
            _prctl(_PR_CAPBSET_DROP, number)
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl ambient")
    _set_capabilities(numbers, is_inheritable=False)
    forbid_new_privileges()


def drop_capabilities() -> None:
    """Give up every capability, also those inherited from the parent."""
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl ambient")
    _set_capabilities([], is_inheritable=False)


def _set_capabilities(numbers: Iterable[int], *, is_inheritable: bool) -> None:
    kept = sum(1 << number for number in numbers)
    inherited = kept if is_inheritable else 0
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    low, high = [kept & 0xFFFFFFFF] * 2 + [inherited & 0xFFFFFFFF], [kept >> 32] * 2 + [inherited >> 32]
    _check(_libc.capset(header, struct.pack("=6I", *low, *high)), "capset")


def forbid_new_privileges() -> None:
    """Make setuid programs and file capabilities powerless for this process and its children."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(signal: int) -> None:
    """Ask the kernel to send this signal when the parent thread ends."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def restrict_files(writable: Iterable[str] = (), *, readable: Iterable[str] | None = None) -> int:
    """Confine file access by Landlock: writing only beneath `writable`; reading anywhere, or only beneath `readable` if given.

    Returns the Landlock ABI in force.

    Raises:
        OSError: this kernel has no Landlock (before 5.13, or switched off).
    """
    forbid_new_privileges()
    abi = _syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    write = _LANDLOCK_WRITES | (_LANDLOCK_REFER if abi >= 2 else 0) | (_LANDLOCK_TRUNCATE if abi >= 3 else 0)
    handled = write | (_LANDLOCK_READS if readable is not None else 0)
    attributes = struct.pack("=Q", handled)
    ruleset = _syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for paths, access in ((writable, handled), (readable or (), _LANDLOCK_READS & handled)):
            for path in paths:
                _allow_beneath(ruleset, path, access)
        _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def restrict_tcp() -> None:
    """Forbid listening at and connecting to TCP ports, by Landlock.

    Raises:
        OSError: this kernel's Landlock cannot (before 6.7).
    """
    forbid_new_privileges()
    attributes = struct.pack("=QQ", 0, _LANDLOCK_TCP)
    ruleset = _syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow_beneath(ruleset: int, path: str, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            access &= _LANDLOCK_FILE_ONLY
        rule = struct.pack("=Qi", access, descriptor)
        _syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def forbid_system_calls(names: Iterable[str] = NEVER_NEEDED) -> None:
    """Make the named system calls fail with EPERM from now on, here and in children; foreign architectures are killed.

    Raises:
        OSError: the kernel has no seccomp filters.
        KeyError: a name that is not in the table, or a machine that is not.
    """
    machine = platform.machine()
    # Newer architectures never had the old calls that a newer one replaces.
    left_out = {"open", "creat"} if machine != "x86_64" else set()
    numbers = sorted(_SYSTEM_CALLS[machine][name] for name in set(names) - left_out)
    load_word, jump_equal, jump_at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    program = [
        (load_word, 0, 0, 4),  # seccomp_data.arch
        (jump_equal, 1, 0, _AUDIT_ARCHITECTURES[machine]),
        (give, 0, 0, kill),
        (load_word, 0, 0, 0),  # seccomp_data.nr
    ]
    if machine == "x86_64":
        # The x32 numbers would be a second name for each call.
        program += [(jump_at_least, 0, 1, 0x40000000), (give, 0, 0, refuse)]
    for index, number in enumerate(numbers):
        program.append((jump_equal, len(numbers) - index, 0, number))
    program += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    filter_ = struct.pack("=HxxxxxxQ", len(program), ctypes.addressof(code))
    forbid_new_privileges()
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0), "seccomp")


def limit_resources(*, memory_bytes: int | None = None, cpu_seconds: int | None = None, file_bytes: int | None = None) -> None:
    """Bound this process: address space, processor time (then SIGKILL), and the size of files that it writes."""
    for kind, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
    ):
        if value is not None:
            resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_engine(*, data_bytes: int, open_files: int, processes: int) -> None:
    """Bound a process that judges hostile bytes: memory that it may write, open files, processes of its user.

    Not the address space: compiled rules reserve far more of it than they ever touch.
    """
    for kind, value in (
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), f"prctl {option}")


def _syscall(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *converted), f"system call {number}")


def _check(outcome: int, what: str) -> int:
    if outcome < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return int(outcome)
