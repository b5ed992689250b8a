"""The inventory: which software there is, what it holds, where it came from and whether it is trusted. One SQLite database.

Trust belongs to content: a trusted file may be renamed, linked or copied. A path that was known with another content is
*changed*. Rows that a private gate brought (a proof, a test) are kept apart and trust nothing outside of it.
The content of a known threat is never trusted, whoever puts it in; what was scanned is the table of `examined.py`.
"""

import os
import sqlite3
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from keibi.agent.gate.judging import FileKey
from keibi.agent.outbox import Outbox
from keibi.errors import RefusedError, TryLaterError
from keibi.protection.application_control.engine import Standing
from keibi.protection.application_control.events import FileKind, PackageRecord, ReasonCode

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS software (
    path BLOB NOT NULL, is_proof INTEGER NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL, changed_ns INTEGER NOT NULL, sha256 BLOB NOT NULL, kind TEXT NOT NULL,
    is_trusted INTEGER NOT NULL, trusted_by TEXT NOT NULL, package TEXT NOT NULL, version TEXT NOT NULL, origin TEXT NOT NULL,
    signer TEXT NOT NULL, first_seen_at REAL NOT NULL, user TEXT NOT NULL, process TEXT NOT NULL, previous BLOB NOT NULL,
    PRIMARY KEY (path, is_proof)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS software_by_inode ON software (inode, device);
CREATE INDEX IF NOT EXISTS software_by_content ON software (sha256, is_trusted, is_proof);
CREATE TABLE IF NOT EXISTS examined (
    sha256 BLOB PRIMARY KEY, threat TEXT NOT NULL, gap TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS examined_threats ON examined (at) WHERE threat<>'';
CREATE VIEW IF NOT EXISTS to_examine AS SELECT path, sha256, size, is_trusted FROM software
    WHERE is_proof=0 AND package='' AND trusted_by IN ('inventory', 'maintenance')
    AND NOT EXISTS (SELECT 1 FROM examined e WHERE e.sha256=software.sha256);
CREATE VIEW IF NOT EXISTS with_threat AS SELECT path, sha256, size, is_trusted FROM software
    WHERE is_proof=0 AND sha256 IN (SELECT sha256 FROM examined WHERE threat<>'');
"""
_FROM_FIRST = "UPDATE software SET trusted_by='unrecognised' WHERE is_trusted=0"
"""Schema 1 said nothing by it where a file was not trusted."""

_PUT = "INSERT OR REPLACE INTO software VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """One file of the inventory."""

    path: bytes
    key: FileKey
    sha256: str
    kind: FileKind
    is_trusted: bool
    trusted_by: ReasonCode = ReasonCode.INVENTORY
    package: PackageRecord | None = None
    first_seen_at: float = 0.0
    user: str = ""
    process: str = ""
    previous_sha256: str = ""  # what the path held before, when that was trusted and this is not
    is_proof: bool = False
    threat: str = ""  # that its content is known to hold; no column

    @property
    def is_held_back(self) -> bool:
        """Whether it would be trusted, but holds a threat or waits to be scanned."""
        return not self.is_trusted and self.trusted_by is not ReasonCode.UNRECOGNISED


class Inventory:
    """The database. Every method may be called by any thread; `transaction` makes several of them one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.lock = threading.RLock()
        self.connection = connection
        connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-4000;")
        # Else it is done by whichever commit comes next, and a held process would wait for the disk (`checkpoint`).
        connection.execute("PRAGMA wal_autocheckpoint=0")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, 1, SCHEMA_VERSION):
            raise RefusedError("inventory_foreign", f"the inventory has schema {version}, and this agent knows {SCHEMA_VERSION}")
        connection.executescript(_SCHEMA)
        if version == 1:
            connection.execute(_FROM_FIRST)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        # A proof that did not end in order left nothing worth keeping.
        connection.execute("DELETE FROM software WHERE is_proof=1")
        self.outbox = Outbox(connection)
        self._checkpointed = 0  # after how many changes
        self._counted: tuple[int, int, int] | None = None  # after how many changes, and what
        (self.path,) = connection.execute("SELECT file FROM pragma_database_list WHERE name='main'").fetchone()
        rows = connection.execute("SELECT sha256, threat FROM examined WHERE threat<>''").fetchall()
        self._threats: dict[str, str] = {sha256.hex(): threat for sha256, threat in rows}

    @classmethod
    def open(cls, path: str) -> tuple["Inventory", str]:
        """Open or make the database; also return what was wrong with a former one that had to be moved aside.

        Raises:
            TryLaterError: the disk is full or cannot be written.
        """
        try:
            return cls(connect(path)), ""
        except (sqlite3.DatabaseError, RefusedError) as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise TryLaterError("inventory_not_writable", f"the inventory cannot be opened: {error}", where=path) from error
            aside = f"{path}.damaged"
            os.replace(path, aside)
            for suffix in ("-wal", "-shm"):
                if os.path.exists(path + suffix):
                    os.unlink(path + suffix)
            return cls(connect(path)), f"the inventory was damaged ({error}), lies at {aside} now and is built anew"

    def close(self) -> None:
        """Close the database."""
        with self.lock:
            self.connection.close()

    def checkpoint(self) -> None:
        """Bring what was written from the log into the database; by another connection, so that nobody waits for the disk."""
        with self.lock:
            changes = self.connection.total_changes
        if changes != self._checkpointed:
            self._checkpointed = changes
            with closing(connect(self.path)) as other:
                other.execute("PRAGMA wal_checkpoint(PASSIVE)")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make everything in the body durable together, or nothing of it."""
        with self.lock:
            if self.connection.in_transaction:
                yield
                return
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    # --- settings

    def setting(self, name: str) -> bytes | None:
        """Return a value that was kept, or None."""
        with self.lock:
            row = self.connection.execute("SELECT value FROM setting WHERE name=?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def put_setting(self, name: str, value: bytes) -> None:
        """Keep a value."""
        with self.lock:
            self.connection.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    # --- looking up

    def at(self, path: bytes, *, is_proof: bool = False) -> Software | None:
        """Return what is known at a path; to a proof the rest of the inventory is known too."""
        with self.lock:
            row = self.connection.execute(
                "SELECT * FROM software WHERE path=? AND is_proof<=? ORDER BY is_proof DESC", (path, is_proof)
            ).fetchone()
        return None if row is None else self._software(row)

    def content_of(self, key: FileKey) -> str:
        """Return the SHA-256 of a file that has not changed since it was read; "" when it has or is not known."""
        with self.lock:
            row = self.connection.execute(
                "SELECT sha256 FROM software WHERE inode=? AND device=? AND size=? AND modified_ns=? AND changed_ns=?",
                (_signed(key.inode), _signed(key.device), key.size, key.modified_ns, key.changed_ns),
            ).fetchone()
        return "" if row is None else bytes(row[0]).hex()

    def trusted(self, sha256: str, *, is_proof: bool = False) -> Software | None:
        """Return a trusted file with this content, one of a package first; None when there is none."""
        with self.lock:
            row = self.connection.execute(
                "SELECT * FROM software WHERE sha256=? AND is_trusted=1 AND is_proof<=? ORDER BY package='' LIMIT 1",
                (bytes.fromhex(sha256), is_proof),
            ).fetchone()
        return None if row is None else self._software(row)

    def standing(self, path: bytes, sha256: str, *, is_proof: bool = False) -> tuple[Standing, Software | None]:
        """Return what is known of a content at a path, and the file that makes it known."""
        if not sha256:
            return Standing.UNKNOWN, None
        if sha256 in self._threats:
            return Standing.MALICIOUS, self.at(path, is_proof=is_proof)
        if (known := self.trusted(sha256, is_proof=is_proof)) is not None:
            return Standing.TRUSTED, known
        here = self.at(path, is_proof=is_proof)
        if here is None:
            return Standing.UNKNOWN, None
        if here.sha256 != sha256:
            return Standing.CHANGED if here.is_trusted else Standing.UNRECOGNISED, here
        return Standing.CHANGED if here.previous_sha256 else Standing.UNRECOGNISED, here

    def threat_of(self, sha256: str) -> str:
        """Return the threat that a content is known to hold; "" for none."""
        return self._threats.get(sha256, "")

    @property
    def threat_count(self) -> int:
        """How many contents are known to hold a threat."""
        return len(self._threats)

    def set_threat(self, sha256: str, threat: str) -> None:
        """Judge a content by this threat from now on, "" for none; its row in `examined` is the caller's."""
        if threat:
            self._threats[sha256] = threat
        else:
            self._threats.pop(sha256, None)

    def files_of(self, sha256: str) -> list[Software]:
        """Return files with a content, without those of private gates."""
        with self.lock:
            rows = self.connection.execute(
                "SELECT * FROM software WHERE sha256=? AND is_proof=0 LIMIT 100", (bytes.fromhex(sha256),)
            ).fetchall()
        return [self._software(row) for row in rows]

    def paths_of(self, sha256: str) -> list[bytes]:
        """Return where a content lies, the files of private gates with it."""
        with self.lock:
            rows = self.connection.execute("SELECT path FROM software WHERE sha256=? LIMIT 100", (bytes.fromhex(sha256),))
            return [path for (path,) in rows]

    def has_unrecognised(self, sha256: str) -> bool:
        """Whether a file with this content was seen that nobody trusts."""
        with self.lock:
            row = self.connection.execute(
                "SELECT 1 FROM software WHERE sha256=? AND is_trusted=0 LIMIT 1", (bytes.fromhex(sha256),)
            ).fetchone()
        return row is not None

    def count(self) -> tuple[int, int]:
        """Return how many files there are, and how many of them somebody has to decide about; holds up nobody who judges.

        What waits for its scan is not trusted yet, and is nothing to decide about.
        """
        with self.lock:
            changes = self.connection.total_changes
        if self._counted is None or self._counted[0] != changes:
            with closing(connect(self.path)) as reader:
                total, unrecognised = reader.execute(
                    "SELECT count(*), coalesce(sum(is_trusted=0 AND (trusted_by='unrecognised' OR EXISTS "
                    "(SELECT 1 FROM examined e WHERE e.sha256=software.sha256 AND e.threat<>''))), 0) "
                    "FROM software WHERE is_proof=0"
                ).fetchone()
            self._counted = (changes, int(total), int(unrecognised))
        return self._counted[1:]

    def page(self, text: str, after: bytes, limit: int) -> list[Software]:
        """Return files after a path, in order, whose path, package or content holds `text`."""
        raw = text.encode("utf-8", "surrogateescape")
        with self.lock:
            rows = self.connection.execute(
                "SELECT * FROM software WHERE is_proof=0 AND path>? AND "
                "(?='' OR instr(path, ?) OR instr(package, ?) OR hex(sha256) LIKE ?) ORDER BY path LIMIT ?",
                (after, text, raw, text, f"{text}%", limit),
            ).fetchall()
        return [self._software(row) for row in rows]

    # --- changing

    def put(self, files: Sequence[Software]) -> None:
        """Add files, in place of what was at their paths. One with the content of a threat is not trusted, whatever it says."""
        rows = [_row(file, is_trusted=file.is_trusted and file.sha256 not in self._threats) for file in files]
        with self.lock:
            self.connection.executemany(_PUT, rows)

    def remove(self, path: bytes, *, is_proof: bool = False) -> None:
        """Forget what is at a path."""
        with self.lock:
            self.connection.execute("DELETE FROM software WHERE path=? AND is_proof=?", (path, is_proof))

    def fingerprints(self) -> dict[int, int]:
        """Return `fingerprint_of` path -> key of every file, twice as small as the paths themselves."""
        with self.lock:
            rows = self.connection.execute(
                "SELECT path, device, inode, size, modified_ns, changed_ns, is_trusted FROM software WHERE is_proof=0"
            ).fetchall()
        return {
            hash(path): fingerprint_of(FileKey(_unsigned(device), _unsigned(inode), size, modified, changed), bool(is_trusted))
            for path, device, inode, size, modified, changed, is_trusted in rows
        }

    def paths(self, fingerprints: Container[int]) -> list[bytes]:
        """Return the paths with these fingerprints."""
        with self.lock:
            rows = self.connection.execute("SELECT path FROM software WHERE is_proof=0")
            return [path for (path,) in rows if hash(path) in fingerprints]

    def forget_proofs(self) -> None:
        """Forget what private gates brought."""
        with self.lock:
            self.connection.execute("DELETE FROM software WHERE is_proof=1")

    def put_package(self, path: bytes, package: PackageRecord) -> None:
        """Note which package a file belongs to."""
        with self.lock:
            self.connection.execute(
                "UPDATE software SET package=?, version=?, origin=?, signer=? WHERE path=? AND is_proof=0",
                (package.name, package.version, package.origin, package.signer, path),
            )

    def without_package(self, limit: int) -> list[Software]:
        """Return files that a trusted updater brought and whose package was not known yet."""
        with self.lock:
            rows = self.connection.execute(
                "SELECT * FROM software WHERE trusted_by=? AND package='' AND is_proof=0 LIMIT ?",
                (str(ReasonCode.TRUSTED_UPDATER), limit),
            ).fetchall()
        return [self._software(row) for row in rows]

    def _software(self, row: tuple[Any, ...]) -> Software:
        return _software(row, self._threats)


def fingerprint_of(key: FileKey, is_trusted: bool) -> int:
    """Return what stands for a file's key within this process, and in its last bit for whether it is trusted."""
    return hash(key) << 1 | is_trusted


def connect(path: str) -> sqlite3.Connection:
    """Return a connection of one's own, which waits for no lock of this process."""
    return sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)


def _row(file: Software, *, is_trusted: bool) -> tuple[object, ...]:
    package = file.package or PackageRecord("")
    key = file.key
    return (
        file.path, file.is_proof, _signed(key.device), _signed(key.inode), key.size, key.modified_ns, key.changed_ns,
        bytes.fromhex(file.sha256), str(file.kind), is_trusted, str(file.trusted_by), package.name, package.version,
        package.origin, package.signer, file.first_seen_at, file.user, file.process, bytes.fromhex(file.previous_sha256),
    )  # fmt: skip


def _software(row: tuple[Any, ...], threats: Mapping[str, str]) -> Software:
    (path, is_proof, device, inode, size, modified, changed, sha256, kind, is_trusted, trusted_by, package, version, origin,
     signer, first_seen_at, user, process, previous) = row  # fmt: skip
    return Software(
        path=path,
        key=FileKey(_unsigned(device), _unsigned(inode), size, modified, changed),
        sha256=sha256.hex(),
        kind=FileKind(kind),
        is_trusted=bool(is_trusted),
        trusted_by=ReasonCode(trusted_by),
        package=PackageRecord(package, version, origin, signer) if package else None,
        first_seen_at=first_seen_at,
        user=user,
        process=process,
        previous_sha256=previous.hex(),
        is_proof=bool(is_proof),
        threat=threats.get(sha256.hex(), ""),
    )


def _signed(number: int) -> int:
    """Return an unsigned 64-bit number as SQLite can hold it."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _unsigned(number: int) -> int:
    return number + (1 << 64) if number < 0 else number
