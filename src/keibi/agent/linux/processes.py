"""Running processes as entities, read from /proc. One entity for each executable: a process id is not worth a baseline row.

Kernel threads have no executable and are left out. A process that ends while it is read is left out too.
"""

import os
from typing import Any

from keibi.agent.linux.accounts import AccountNames
from keibi.protection.base import escape_name


def collect(names: AccountNames, proc: str = "/proc") -> dict[str, dict[str, Any]]:
    """Return executables that run now: path -> attributes of the entity type "process".

    `user`, `group` and `parent` name all that run or started it, sorted and joined by a comma; `pid`, `command_line` and
    `started_at` (clock ticks since boot) are those of the oldest.
    """
    found: dict[str, list[tuple[int, int, str, str, str, str]]] = {}
    executables: dict[int, str] = {}
    for entry in os.listdir(proc):
        if not entry.isdigit():
            continue
        try:
            executable = escape_name(os.readlink(os.fsencode(f"{proc}/{entry}/exe")))
        except OSError:
            continue
        executables[int(entry)] = executable
        try:
            with open(f"{proc}/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
            with open(f"{proc}/{entry}/status", "rb") as file:
                uid, gid = _real_ids(file.read())
            with open(f"{proc}/{entry}/cmdline", "rb") as file:
                command_line = escape_name(file.read(4096).replace(b"\0", b" ").strip())
        except (OSError, IndexError, ValueError):
            continue
        parent, started = int(fields[1]), int(fields[19])
        found.setdefault(executable, []).append(
            (started, int(entry), names.user(uid), names.group(gid), command_line, str(parent))
        )
    return {executable: _entity(processes, executables) for executable, processes in found.items()}


def _entity(processes: list[tuple[int, int, str, str, str, str]], executables: dict[int, str]) -> dict[str, Any]:
    started, pid, _, _, command_line, _ = min(processes)
    parents = {executables.get(int(process[5]), "") for process in processes}
    return {
        "user": ",".join(sorted({process[2] for process in processes})),
        "group": ",".join(sorted({process[3] for process in processes})),
        "parent": ",".join(sorted(parents - {""})),
        "command_line": command_line,
        "pid": pid,
        "started_at": started,
    }


def _real_ids(status: bytes) -> tuple[int, int]:
    uid = status[status.index(b"\nUid:") + 5 :].split(None, 1)[0]
    gid = status[status.index(b"\nGid:") + 5 :].split(None, 1)[0]
    return int(uid), int(gid)
