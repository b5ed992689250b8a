"""What the agent knows of its computer without being told, from files of the kernel and the distribution only."""

import os
import platform
import re
import socket

from keibi.contract.enrolment import ComputerFacts
from keibi.protection.base import escape_name

_AZURE_CHASSIS_TAG = "7783-7084-3265-9085-8269-3286-77"  # the same on every Azure machine


def collect_facts(root: str = "/") -> ComputerFacts:
    """Return the facts of this computer; what a computer does not tell is empty. `root` is where its files are."""
    release = _os_release(root)
    cloud, instance = _cloud(root)
    return ComputerFacts(
        hostname=escape_name(socket.gethostname()),
        machine_id=read_machine_id(root),
        os_name=release.get("ID", "linux"),
        os_version=release.get("VERSION_ID", ""),
        os_pretty_name=release.get("PRETTY_NAME", "Linux"),
        kernel=platform.release(),
        architecture=platform.machine(),
        cpu_count=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(root),
        addresses=_addresses(root),
        cloud=cloud,
        cloud_instance_id=instance,
    )


def read_machine_id(root: str = "/") -> str:
    """Return the id that systemd or D-Bus gave this installation, or "" where neither did."""
    for path in ("etc/machine-id", "var/lib/dbus/machine-id"):
        text = _read(root, path).strip()
        if re.fullmatch(r"[0-9a-f]{32}", text):
            return text
    return ""


def read_boot_id(root: str = "/") -> str:
    """Return the kernel's id of this boot, "" where there is none."""
    return _read(root, "proc/sys/kernel/random/boot_id").strip()


def _os_release(root: str) -> dict[str, str]:
    text = _read(root, "etc/os-release") or _read(root, "usr/lib/os-release")
    found = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not name.startswith("#"):
            found[name.strip()] = escape_name(value.strip().strip("\"'"))
    return found


def _memory_bytes(root: str) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB", _read(root, "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _addresses(root: str) -> list[str]:
    """Return the computer's own addresses except loopback and link-local ones, sorted."""
    found = set()
    previous = ""
    for line in _read(root, "proc/net/fib_trie").splitlines():
        # An address of the computer stands as "|-- A" followed by "/32 host LOCAL".
        if line.strip().startswith("/32 host LOCAL"):
            found.add(previous.rpartition("|--")[2].strip())
        previous = line
    for line in _read(root, "proc/net/if_inet6").splitlines():
        fields = line.split()
        if len(fields) >= 4 and fields[3] == "00":  # scope global
            found.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0])))
    return sorted(address for address in found if address and not address.startswith("127."))


def _cloud(root: str) -> tuple[str, str]:
    """Return the cloud and the instance id, from what the firmware says; asks no metadata service."""
    firmware = {
        name: _read(root, f"sys/class/dmi/id/{name}").strip()
        for name in ("sys_vendor", "product_name", "board_asset_tag", "chassis_asset_tag", "product_uuid")
    }
    if firmware["sys_vendor"] == "Amazon EC2":
        tag = firmware["board_asset_tag"]
        return "aws", tag if tag.startswith("i-") else ""
    if firmware["product_name"] == "Google Compute Engine":
        return "gcp", ""
    if firmware["chassis_asset_tag"] == _AZURE_CHASSIS_TAG:
        return "azure", firmware["product_uuid"].lower()
    return "", ""


def _read(root: str, path: str) -> str:
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="surrogateescape") as file:
            return file.read(1024 * 1024)
    except OSError:
        return ""
