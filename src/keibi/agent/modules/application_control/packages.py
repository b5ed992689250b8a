"""Which package a file belongs to, by the databases of dpkg and rpm, kept as a table so that it costs no memory.

dpkg records MD5 only: enough to say where a file came from, not to prove it against whoever made the package.
"""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from keibi.agent.linux.software import dpkg_packages
from keibi.agent.modules.application_control.repositories import Origin, read_origins
from keibi.protection.application_control.events import PackageRecord
from keibi.protection.base import escape_name

_SCHEMA = """
CREATE TABLE IF NOT EXISTS package_list (name TEXT PRIMARY KEY, changed_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS package_file (
    path BLOB NOT NULL, list TEXT NOT NULL, owner TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (path, owner)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS package_file_by_owner ON package_file (owner);
CREATE TABLE IF NOT EXISTS package (
    owner TEXT PRIMARY KEY, list TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, origin TEXT NOT NULL,
    signer TEXT NOT NULL) WITHOUT ROWID;
"""
_RPM_LIST = "rpm"
_RPM_FORMAT = (
    "[%{=NAME}\\t%{=EPOCHNUM}:%{=VERSION}-%{=RELEASE}\\t%{=VENDOR}\\t%{=RSAHEADER:pgpsig}\\t%{FILEDIGESTS}\\t%{FILENAMES}\\n]"
)


@dataclass(frozen=True, slots=True)
class Packaged:
    """What a package database says of a file."""

    package: PackageRecord
    digest: str
    algorithm: str  # "md5" or "sha256"


class Packages:
    """The table. Any thread may use it; `refresh` is slow and for one thread."""

    def __init__(self, path: str, *, dpkg: str = "/var/lib/dpkg", apt_lists: str = "/var/lib/apt/lists") -> None:
        self._dpkg = dpkg
        self._apt_lists = apt_lists
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
        # It can be made again from the system's databases at any time, so nothing waits for the disk.
        self._connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA cache_size=-2000; {_SCHEMA}")
        self._seen_ns = -1

    def close(self) -> None:
        """Close the table."""
        with self._lock:
            self._connection.close()

    def refresh(self) -> bool:
        """Take over what changed in the system's databases; return whether anything did."""
        stamps = (_changed_ns(f"{self._dpkg}/info"), _changed_ns(f"{self._dpkg}/status"), _changed_ns("/var/lib/rpm"))
        if hash(stamps) == self._seen_ns:
            return False
        has_changed = self._refresh_dpkg() | self._refresh_rpm()
        self._seen_ns = hash(stamps)
        return has_changed

    def of(self, path: bytes) -> list[Packaged]:
        """Return what the databases say of a path, under any name that a merged /usr gives it."""
        found = []
        with self._lock:
            for alias in aliases(path):
                found += self._connection.execute(
                    "SELECT f.list, f.digest, p.name, p.version, p.origin, p.signer FROM package_file f JOIN package p "
                    "ON p.owner = f.owner WHERE f.path=?",
                    (alias,),
                ).fetchall()
        return [
            Packaged(PackageRecord(*about), digest, "sha256" if list_ == _RPM_LIST else "md5") for list_, digest, *about in found
        ]

    def verified(self, path: bytes, sha256: str, descriptor: int, size: int) -> PackageRecord | None:
        """Return the package whose own, unchanged file this is; None when no package says so."""
        known = self.of(path)
        if not known:
            return None
        md5 = ""
        for one in known:
            if one.algorithm == "md5" and not md5:
                md5 = _md5_of(descriptor, size)
            if one.digest and one.digest == (md5 if one.algorithm == "md5" else sha256):
                return one.package
        return None

    def _refresh_dpkg(self) -> bool:
        lists = _lists(f"{self._dpkg}/info")
        with self._lock:
            known = dict(self._connection.execute("SELECT name, changed_ns FROM package_list"))
        changed = [name for name, at in lists.items() if known.get(name) != at]
        gone = [name for name in known if name not in lists and name != _RPM_LIST]
        if not changed and not gone:
            return False
        for name in changed:
            rows = list(_digests(f"{self._dpkg}/info/{name}"))
            with self._lock:
                self._connection.execute("BEGIN")
                self._connection.execute("DELETE FROM package_file WHERE owner=?", (name,))
                self._connection.executemany(
                    "INSERT OR REPLACE INTO package_file VALUES (?, 'dpkg', ?, ?)",
                    [(path, name, digest) for path, digest in rows],
                )
                self._connection.execute("INSERT OR REPLACE INTO package_list VALUES (?, ?)", (name, lists[name]))
                self._connection.execute("COMMIT")
        with self._lock:
            for name in gone:
                self._connection.execute("DELETE FROM package_file WHERE owner=?", (name,))
                self._connection.execute("DELETE FROM package_list WHERE name=?", (name,))
                self._connection.execute("DELETE FROM package WHERE owner=?", (name,))
        self._take_versions(lists)
        return True

    def _take_versions(self, lists: dict[str, int]) -> None:
        installed = dpkg_packages(f"{self._dpkg}/status")
        versions = {name: str(about["version"]) for name, about in installed.items()}
        wanted = {(name.partition(":")[0], version) for name, version in versions.items()}
        origins = read_origins(self._apt_lists, wanted)
        rows = []
        for list_ in lists:
            package = list_.removesuffix(".md5sums")
            plain = package.partition(":")[0]
            version = versions.get(package, versions.get(plain, ""))
            origin = origins.get((plain, version), Origin("", ""))
            rows.append((list_, plain, version, origin.name, origin.signer))
        with self._lock:
            self._connection.executemany("INSERT OR REPLACE INTO package VALUES (?, 'dpkg', ?, ?, ?, ?)", rows)

    def _refresh_rpm(self) -> bool:
        directories = [path for path in ("/var/lib/rpm", "/usr/lib/sysimage/rpm") if os.path.isdir(path)]
        rpm = shutil.which("rpm")
        if not directories or rpm is None:
            return False
        at = max(_changed_ns(path) for path in directories)
        with self._lock:
            known = self._connection.execute("SELECT changed_ns FROM package_list WHERE name=?", (_RPM_LIST,)).fetchone()
        if known is not None and known[0] == at:
            return False
        try:
            listing = subprocess.run([rpm, "-qa", "--qf", _RPM_FORMAT], capture_output=True, timeout=300, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return False
        with self._lock:
            self._connection.execute("BEGIN")
            self._connection.execute("DELETE FROM package_file WHERE list=?", (_RPM_LIST,))
            self._connection.execute("DELETE FROM package WHERE list=?", (_RPM_LIST,))
            for line in listing.splitlines():
                fields = line.split(b"\t", 5)
                if len(fields) != 6:
                    continue
                name, version, vendor, signature = (escape_name(field) for field in fields[:4])
                package = f"rpm:{name}-{version}"
                signer = signature.rpartition("Key ID ")[2].strip().upper() if "Key ID " in signature else ""
                self._connection.execute(
                    "INSERT OR REPLACE INTO package VALUES (?, 'rpm', ?, ?, ?, ?)",
                    (package, name, version.removeprefix("0:"), vendor, signer),
                )
                digest = fields[4].decode("ascii", "replace")
                if len(digest) == 64:
                    self._connection.execute(
                        "INSERT OR REPLACE INTO package_file VALUES (?, 'rpm', ?, ?)", (fields[5], package, digest)
                    )
            self._connection.execute("INSERT OR REPLACE INTO package_list VALUES (?, ?)", (_RPM_LIST, at))
            self._connection.execute("COMMIT")
        return True


def aliases(path: bytes) -> tuple[bytes, ...]:
    """Return the names that a merged-/usr system may know a path by: lists still say /bin/ls for /usr/bin/ls."""
    if path.startswith(b"/usr/"):
        return (path, path[4:])
    if path.startswith((b"/bin/", b"/sbin/", b"/lib")):
        return (path, b"/usr" + path)
    return (path,)


def _lists(directory: str) -> dict[str, int]:
    try:
        with os.scandir(directory) as entries:
            # The change time: the modification time is that of the package's build, years ago perhaps.
            return {one.name: one.stat().st_ctime_ns for one in entries if one.name.endswith(".md5sums")}
    except OSError:
        return {}


def _digests(path: str) -> Iterator[tuple[bytes, str]]:
    try:
        with open(path, "rb") as file:
            for line in file:
                digest, _, name = line.rstrip(b"\n").partition(b"  ")
                yield b"/" + name, digest.decode("ascii", "replace")
    except OSError:
        return


def _md5_of(descriptor: int, size: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    offset = 0
    while data := os.pread(descriptor, 1024 * 1024, offset):
        digest.update(data)
        offset += len(data)
        if offset > size:
            return ""
    return digest.hexdigest()


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_ctime_ns
    except OSError:
        return -1
