"""Installed software as entities, from the databases of dpkg and rpm, and which package a file came from."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from keibi.protection.base import escape_name

_RPM_FORMAT = "%{NAME}\\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\\t%{ARCH}\\t%{VENDOR}\\n"


def collect(root: str = "") -> dict[str, dict[str, Any]]:
    """Return installed packages: name -> attributes of the entity type "software".

    A second architecture of the same package has the key "name:architecture". `status` is dpkg's ("install ok installed");
    for rpm it is "installed".
    """
    return dpkg_packages(f"{root}/var/lib/dpkg/status") | rpm_packages(root)


def dpkg_packages(status_file: str) -> dict[str, dict[str, Any]]:
    """Return what dpkg has installed; nothing where there is no dpkg."""
    packages: dict[str, dict[str, Any]] = {}
    try:
        with open(status_file, "rb") as file:
            content = file.read()
    except OSError:
        return {}
    for paragraph in content.split(b"\n\n"):
        fields = dict(
            line.split(b": ", 1) for line in paragraph.split(b"\n") if b": " in line and not line.startswith((b" ", b"\t"))
        )
        name, status = fields.get(b"Package", b""), fields.get(b"Status", b"")
        if not name or status.endswith((b" not-installed", b" config-files")):
            continue
        architecture = escape_name(fields.get(b"Architecture", b""))
        key = escape_name(name)
        if key in packages:
            key = f"{key}:{architecture}"
        packages[key] = {
            "version": escape_name(fields.get(b"Version", b"")),
            "architecture": architecture,
            "vendor": escape_name(fields.get(b"Maintainer", b"")),
            "status": escape_name(status),
        }
    return packages


def rpm_packages(root: str = "") -> dict[str, dict[str, Any]]:
    """Return what rpm has installed, by asking rpm; nothing where there is no rpm or no database."""
    databases = (f"{root}/var/lib/rpm", f"{root}/usr/lib/sysimage/rpm")
    if not any(os.path.isdir(path) and os.listdir(path) for path in databases) or not (rpm := shutil.which("rpm")):
        return {}
    command = [rpm, "-qa", "--qf", _RPM_FORMAT, *(["--root", root] if root else [])]
    try:
        listing = subprocess.run(command, capture_output=True, timeout=120, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    packages: dict[str, dict[str, Any]] = {}
    for line in listing.splitlines():
        name, version, architecture, vendor = (escape_name(part) for part in line.split(b"\t", 3))
        if name == "gpg-pubkey":
            continue
        key = f"{name}:{architecture}" if name in packages else name
        packages[key] = {
            "version": version.removeprefix("0:"),
            "architecture": architecture,
            "vendor": vendor,
            "status": "installed",
        }
    return packages


@dataclass(frozen=True, slots=True)
class PackageFile:
    """What the package database says of a file."""

    package: str
    version: str
    digest: str  # hexadecimal; "" for a configuration file without one
    algorithm: str  # "md5" (dpkg) or "sha256" (rpm)


class DpkgFiles:
    """Which installed package a file belongs to, and the MD5 that dpkg recorded for it.

    A hint of origin, not a proof: MD5 collides and root can edit the list. Only packages whose lists are newer than `since`
    are read, so a look during an upgrade costs the upgraded packages and not all of them.
    """

    def __init__(self, directory: str = "/var/lib/dpkg") -> None:
        self._directory = directory

    def lookup(self, paths: set[bytes], *, since: float = 0.0) -> dict[bytes, PackageFile]:
        """Return the package file of each path that a list changed after `since` names."""
        wanted = {alias: path for path in paths for alias in _aliases(path)}
        versions: dict[str, dict[str, Any]] | None = None
        found: dict[bytes, PackageFile] = {}
        info = f"{self._directory}/info"
        try:
            lists = [entry for entry in os.scandir(info) if entry.name.endswith(".md5sums") and entry.stat().st_mtime >= since]
        except OSError:
            return {}
        for entry in lists:
            package = entry.name.removesuffix(".md5sums")
            with open(entry.path, "rb") as file:
                for line in file:
                    digest, _, path = line.rstrip(b"\n").partition(b"  ")
                    if (original := wanted.get(b"/" + path)) is not None:
                        versions = dpkg_packages(f"{self._directory}/status") if versions is None else versions
                        name = package.partition(":")[0]
                        version = versions.get(package, versions.get(name, {})).get("version", "")
                        found[original] = PackageFile(name, str(version), digest.decode("ascii", "replace"), "md5")
        return found

    def is_busy(self) -> bool:
        """Return whether dpkg or apt holds the database at this moment."""
        import fcntl

        try:
            descriptor = os.open(f"{self._directory}/lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False


def _aliases(path: bytes) -> tuple[bytes, ...]:
    """Return the names that a merged-/usr system may know a path by: lists still say /bin/ls for /usr/bin/ls."""
    if path.startswith(b"/usr/"):
        return (path, path[4:])
    if path.startswith((b"/bin/", b"/sbin/", b"/lib")):
        return (path, b"/usr" + path)
    return (path,)
