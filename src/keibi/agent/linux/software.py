"""Installed software as entities, from the databases of dpkg and rpm, and which package a file came from."""

import fcntl
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from typing import Any

from keibi.protection.base import escape_name

_FLOCK = struct.Struct("hhqqi4x")
_LOG_TAIL_BYTES = 256 * 1024
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
    are read, each once, so that a look during an upgrade costs the upgraded packages and not all of them. One thread uses it.
    """

    def __init__(self, directory: str = "/var/lib/dpkg", log: str = "/var/log/dpkg.log") -> None:
        self._directory = directory
        self._log = log
        self._listed_at = -1
        self._lists: dict[str, float] = {}
        self._newest_at = 0.0
        self._read: dict[str, tuple[float, dict[bytes, str]]] = {}
        self._versions_at = -1
        self._versions: dict[str, dict[str, Any]] = {}

    def lookup(self, paths: set[bytes], *, since: float = 0.0) -> dict[bytes, PackageFile]:
        """Return the package file of each path that a list changed after `since` names."""
        lists = self._all_lists()
        if not self._read and self._newest_at < since:
            return {}
        recent = {name: at for name, at in lists.items() if at >= since}
        self._read = {name: kept for name, kept in self._read.items() if recent.get(name) == kept[0]}
        found: dict[bytes, PackageFile] = {}
        for name, at in recent.items():
            if name not in self._read:
                self._read[name] = (at, self._digests(name))
            digests = self._read[name][1]
            for path in paths:
                if (digest := next((digests[alias] for alias in _aliases(path) if alias in digests), None)) is not None:
                    package = name.removesuffix(".md5sums")
                    plain = package.partition(":")[0]
                    versions = self._all_versions()
                    version = versions.get(package, versions.get(plain, {})).get("version", "")
                    found[path] = PackageFile(plain, str(version), digest, "md5")
        return found

    def previous_version(self, package: str) -> str:
        """Return which version dpkg's log says the latest upgrade of a package came from; "" when it says nothing."""
        try:
            with open(self._log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return ""
        for line in reversed(lines):
            fields = line.split()  # date, time, "upgrade", package:architecture, old version, new version
            if len(fields) == 6 and fields[2] == b"upgrade" and escape_name(fields[3]).partition(":")[0] == package:
                return escape_name(fields[4])
        return ""

    def is_busy(self) -> bool:
        """Return whether dpkg or apt holds the database at this moment. Needs no more than to read the lock file."""
        try:
            descriptor = os.open(f"{self._directory}/lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # struct flock of fcntl(2) on 64-bit machines: type, whence, start, length, pid.
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            return bool(_FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def _all_lists(self) -> dict[str, float]:
        """Return when each list was written; the folder is read again only when a name in it changed."""
        info = f"{self._directory}/info"
        try:
            changed_at = os.stat(info).st_mtime_ns
            if changed_at != self._listed_at:
                with os.scandir(info) as entries:
                    # The change time: the modification time is that of the package's build, years ago perhaps.
                    self._lists = {one.name: one.stat().st_ctime for one in entries if one.name.endswith(".md5sums")}
                self._listed_at = changed_at
                self._newest_at = max(self._lists.values(), default=0.0)
        except OSError:
            return {}
        return self._lists

    def _digests(self, name: str) -> dict[bytes, str]:
        digests: dict[bytes, str] = {}
        try:
            with open(f"{self._directory}/info/{name}", "rb") as file:
                for line in file:
                    digest, _, path = line.rstrip(b"\n").partition(b"  ")
                    digests[b"/" + path] = digest.decode("ascii", "replace")
        except OSError:
            return {}
        return digests

    def _all_versions(self) -> dict[str, dict[str, Any]]:
        status = f"{self._directory}/status"
        try:
            changed_at = os.stat(status).st_mtime_ns
        except OSError:
            return {}
        if changed_at != self._versions_at:
            self._versions, self._versions_at = dpkg_packages(status), changed_at
        return self._versions


def _aliases(path: bytes) -> tuple[bytes, ...]:
    """Return the names that a merged-/usr system may know a path by: lists still say /bin/ls for /usr/bin/ls."""
    if path.startswith(b"/usr/"):
        return (path, path[4:])
    if path.startswith((b"/bin/", b"/sbin/", b"/lib")):
        return (path, b"/usr" + path)
    return (path,)
