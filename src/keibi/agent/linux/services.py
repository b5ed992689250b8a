"""Services as entities: systemd units (service, timer, socket) from their files, with their state where systemd runs."""

import os
import subprocess
from typing import Any

from keibi.protection.base import escape_name

UNIT_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
"""Where units come from, first wins (systemd.unit(5))."""
_SUFFIXES = (".service", ".timer", ".socket")
_MAX_UNIT_BYTES = 1024 * 1024


def collect(directories: tuple[str, ...] = UNIT_DIRECTORIES, *, with_state: bool | None = None) -> dict[str, dict[str, Any]]:
    """Return units: name -> attributes of the entity type "service".

    `start_type` is "enabled", "disabled", "static" or "masked", as the links on disk say; `command` holds all Exec lines and
    `user` the User of the unit with its drop-ins. `state` ("active", "failed", …) is there only where systemd is running.
    """
    units: dict[str, dict[str, Any]] = {}
    enabled: set[str] = set()
    for directory in directories:
        for name in _names(directory):
            path = f"{directory}/{name}"
            if name.endswith((".wants", ".requires")):
                enabled.update(_names(path))
            elif name.endswith(_SUFFIXES) and name not in units:
                units[name] = _unit(path)
    for name, unit in units.items():
        for directory in directories:
            for drop_in in _names(f"{directory}/{name}.d"):
                if drop_in.endswith(".conf"):
                    _merge(unit, f"{directory}/{name}.d/{drop_in}")
        if unit["start_type"] == "installable":
            unit["start_type"] = "enabled" if name in enabled else "disabled"
        elif unit["start_type"] == "static" and name in enabled:
            unit["start_type"] = "enabled"
    if with_state if with_state is not None else os.path.isdir("/run/systemd/system"):
        for name, state in _states().items():
            if name in units:
                units[name]["state"] = state
    return {escape_name(name): unit for name, unit in units.items()}


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _unit(path: str) -> dict[str, Any]:
    unit: dict[str, Any] = {"path": escape_name(os.fsencode(path)), "start_type": "static", "command": [], "user": ""}
    if os.path.islink(path):
        target = os.path.realpath(path)
        if target == "/dev/null":
            return unit | {"start_type": "masked"}
        unit["path"] = escape_name(os.fsencode(target))
    _merge(unit, path)
    return unit


def _merge(unit: dict[str, Any], path: str) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(_MAX_UNIT_BYTES)
    section = b""
    for line in content.replace(b"\\\n", b" ").splitlines():
        line = line.strip()
        if line.startswith(b"["):
            section = line
            continue
        key, separator, value = line.partition(b"=")
        key, text = key.strip(), escape_name(value.strip())
        if not separator or line.startswith((b"#", b";")):
            continue
        if key.startswith(b"Exec"):
            # An empty assignment clears the list, which is how a drop-in replaces a command.
            unit["command"] = [*unit["command"], f"{key.decode()}={text}"] if text else _without(unit["command"], key.decode())
        elif key == b"User" and section == b"[Service]":
            unit["user"] = text
        elif section == b"[Install]" and key in (b"WantedBy", b"RequiredBy", b"Also", b"Alias") and text:
            unit["start_type"] = "installable"


def _without(commands: list[str], key: str) -> list[str]:
    return [command for command in commands if not command.startswith(f"{key}=")]


def _states() -> dict[str, str]:
    try:
        listing = subprocess.run(
            ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "--type=service,timer,socket"],
            capture_output=True,
            text=True,
            timeout=15,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    states = {}
    for line in listing.splitlines():
        fields = line.split(None, 4)
        if len(fields) >= 4:
            states[fields[0]] = fields[2]
    return states
