"""The baseline: the reference state of everything watched, in one SQLite database that survives a kill at any moment.

Files lie in *pages* (see `file_pages`); other entities are rows of type, key and attributes. Every change is written under
a *version* and logged with what was before and after, so that two versions can be compared. Nothing here decides what a
change means: rolling and approval are the caller's.

The caller may keep tables of its own in the same file (`connection`), so that a change of the baseline and the event that
tells of it are one transaction.
"""

import contextlib
import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

import msgspec

from keibi.agent.linux.files import FileState
from keibi.agent.modules.integrity_monitoring.file_pages import Page, PageEditor, pages_of, split_path
from keibi.errors import InputError, RefusedError, TryLaterError

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS version (
    version INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, started_at REAL NOT NULL, finished_at REAL,
    entry_count INTEGER NOT NULL DEFAULT 0, change_count INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS page (
    directory BLOB NOT NULL, first BLOB NOT NULL, count INTEGER NOT NULL, names BLOB NOT NULL, states BLOB NOT NULL,
    wishes BLOB NOT NULL, outcomes BLOB NOT NULL, digests BLOB NOT NULL, extras BLOB NOT NULL,
    PRIMARY KEY (directory, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entity (
    type TEXT NOT NULL, key BLOB NOT NULL, attributes BLOB NOT NULL, PRIMARY KEY (type, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS change (
    version INTEGER NOT NULL REFERENCES version ON DELETE CASCADE, type TEXT NOT NULL, key BLOB NOT NULL,
    before BLOB, after BLOB, PRIMARY KEY (version, type, key)) WITHOUT ROWID;
"""

FILE = "file"
"""Type under which the change log names everything that lies in pages, directories too."""


class VersionKind(StrEnum):
    """What made a version."""

    BUILD = "build"
    SCAN = "scan"
    REAL_TIME = "real_time"
    REBUILD = "rebuild"
    APPROVE = "approve"


@dataclass(frozen=True, slots=True)
class Version:
    """One numbered state of the baseline. `finished_at` is None while it is being made, and after a crash in mid-build."""

    version: int
    kind: VersionKind
    started_at: float
    finished_at: float | None
    entry_count: int
    change_count: int
    note: str


@dataclass(frozen=True, slots=True)
class FileChange:
    """One path: what the baseline has, and what is now. None stands for absent; not both are None."""

    path: bytes
    before: FileState | None
    after: FileState | None


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """What one entity was in the older of two versions and is in the newer; None stands for absent."""

    type: str
    key: bytes
    before: FileState | dict[str, Any] | None
    after: FileState | dict[str, Any] | None


class Baseline:
    """One baseline database. One thread uses it at a time; other threads open the same file again."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self.connection = connection
        self.path = path

    @classmethod
    def open(cls, path: str, *, is_checked: bool = True) -> "Baseline":
        """Open the database, or make it. `is_checked=False` skips the look for damage, for further connections.

        Raises:
            RefusedError: `baseline_corrupt`: it was damaged and is moved aside (the message says where to); `open`
                again makes an empty one.
            InputError: `baseline_newer`: written by a newer Keibi.
            TryLaterError: `baseline_unavailable`: the directory is missing, full or read-only, or somebody holds a lock.
        """
        try:
            connection = _connect(path)
        except sqlite3.OperationalError as error:
            raise TryLaterError("baseline_unavailable", f"the baseline cannot be opened: {error}", where=path) from error
        except sqlite3.DatabaseError as error:
            raise _set_aside(path, str(error)) from error
        if is_checked and (damage := _damage_of(connection)):
            connection.close()
            raise _set_aside(path, damage)
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA_VERSION:
            connection.close()
            raise InputError(
                "baseline_newer",
                f"the baseline has schema {found}, newer than {SCHEMA_VERSION}",
                where=path,
                hint="install the newer agent again, or move the file away to start a new baseline",
            )
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return cls(connection, path)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the body in one write transaction: all of it is on disk at the end, or none of it after an exception."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
        except BaseException:
            if self.connection.in_transaction:  # a full disk makes SQLite roll back by itself
                self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    # --- settings: small facts about the baseline, such as the hash algorithm

    def setting(self, name: str) -> bytes | None:
        """Return what was last put under the name."""
        row = self.connection.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def put_setting(self, name: str, value: bytes) -> None:
        """Keep a small fact beside the baseline."""
        self.connection.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    # --- versions

    def begin_version(self, kind: VersionKind, *, note: str = "", at: float | None = None) -> int:
        """Return the number of a new version that the following changes are logged under."""
        cursor = self.connection.execute(
            "INSERT INTO version (kind, started_at, note) VALUES (?, ?, ?)", (kind, time.time() if at is None else at, note)
        )
        return int(cursor.lastrowid or 0)

    def finish_version(self, version: int, *, at: float | None = None) -> None:
        """Mark a version as whole and count its entries and changes."""
        self.connection.execute(
            "UPDATE version SET finished_at = ?, entry_count = ?,"
            " change_count = (SELECT count(*) FROM change WHERE change.version = version.version) WHERE version = ?",
            (time.time() if at is None else at, self.count(), version),
        )

    def versions(self) -> list[Version]:
        """Return all kept versions, oldest first."""
        rows = self.connection.execute(
            "SELECT version, kind, started_at, finished_at, entry_count, change_count, note FROM version ORDER BY version"
        )
        return [Version(row[0], VersionKind(row[1]), *row[2:]) for row in rows]

    def forget_empty_version(self, version: int) -> None:
        """Forget a version under which nothing was logged."""
        self.connection.execute(
            "DELETE FROM version WHERE version = ? AND NOT EXISTS (SELECT 1 FROM change WHERE change.version = version.version)",
            (version,),
        )

    def keep_versions(self, count: int) -> int:
        """Forget all but the newest `count` versions and what they changed; return how many were forgotten."""
        cursor = self.connection.execute(
            "DELETE FROM version WHERE version NOT IN (SELECT version FROM version ORDER BY version DESC LIMIT ?)", (count,)
        )
        return cursor.rowcount

    def changes_between(self, older: int, newer: int) -> Iterator[LoggedChange]:
        """Yield what differs between two versions, by type and key; what was changed and changed back is left out.

        Raises:
            InputError: `version_unknown`: a version is not kept (any more).
        """
        for version in (older, newer):
            if not self.connection.execute("SELECT 1 FROM version WHERE version = ?", (version,)).fetchone():
                raise InputError("version_unknown", f"baseline version {version} is not kept")
        rows = self.connection.execute(
            "SELECT type, key, before, after FROM change WHERE version > ? AND version <= ? ORDER BY type, key, version",
            (older, newer),
        )
        for (type_, key), group in groupby(rows, key=lambda row: (row[0], bytes(row[1]))):
            changes = list(group)
            before, after = changes[0][2], changes[-1][3]
            if before != after:
                yield LoggedChange(type_, key, _unlog(type_, before), _unlog(type_, after))

    # --- files

    def count(self) -> int:
        """Return how many entries there are, of all types."""
        files = self.connection.execute("SELECT coalesce(sum(count), 0) FROM page").fetchone()[0]
        return int(files + self.connection.execute("SELECT count(*) FROM entity").fetchone()[0])

    def pages(self, directory: bytes) -> list[Page]:
        """Return the pages of one directory, in order of their entries' names."""
        rows = self.connection.execute(
            "SELECT directory, names, states, wishes, outcomes, digests, extras FROM page WHERE directory = ? ORDER BY first",
            (directory,),
        )
        return [Page(*row) for row in rows.fetchall()]

    def file(self, path: bytes) -> FileState | None:
        """Return what the baseline has for one path."""
        directory, name = split_path(path)
        row = self.connection.execute(
            "SELECT directory, names, states, wishes, outcomes, digests, extras FROM page"
            " WHERE directory = ? AND first <= ? ORDER BY first DESC LIMIT 1",
            (directory, name),
        ).fetchone()
        return Page(*row).entry(name) if row else None

    def files_under(self, directory: bytes) -> Iterator[FileState]:
        """Yield every entry below a directory (not the directory's own), in no order that is promised."""
        for found in self.directories_under(directory):
            for page in self.pages(found):
                yield from page.entries()

    def directories_under(self, directory: bytes) -> list[bytes]:
        """Return the directory itself and all below it that have entries in the baseline."""
        below = b"/" if directory == b"/" else directory + b"/"
        rows = self.connection.execute(
            "SELECT DISTINCT directory FROM page WHERE directory = ? OR (directory >= ? AND directory < ?) ORDER BY directory",
            (directory, below, below[:-1] + b"0"),
        )
        return [row[0] for row in rows.fetchall()]

    def all_directories(self) -> list[bytes]:
        """Return every directory that has entries in the baseline."""
        return [row[0] for row in self.connection.execute("SELECT DISTINCT directory FROM page ORDER BY directory")]

    def forget_files(self) -> None:
        """Drop all pages, without logging."""
        self.connection.execute("DELETE FROM page")

    def put_pages(self, directory: bytes, pages: Iterable[Page]) -> None:
        """Replace all entries of a directory, without logging."""
        self.connection.execute("DELETE FROM page WHERE directory = ?", (directory,))
        self.add_pages(pages)

    def add_pages(self, pages: Iterable[Page]) -> None:
        """Add pages, without logging: for a build, where there is nothing to compare with."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (page.directory, page.first, page.count, page.names, page.states, page.wishes, page.outcomes, page.digests,
                 page.extras)
                for page in pages
            ],
        )  # fmt: skip

    def store_files(self, version: int, changes: Sequence[FileChange], *, is_logged: bool = True) -> None:
        """Make `after` of every change the baseline, inside the caller's transaction. `before` is not looked at.

        `is_logged=False` is for what no rule watches (a directory's time): it is kept, so that the next scan finds it
        unchanged, and stays out of the comparison of versions.
        """
        ordered = deque(sorted(changes, key=lambda change: split_path(change.path)))
        while ordered:
            directory, name = split_path(ordered[0].path)
            first, upper = self._page_bounds(directory, name)
            page = self._page(directory, first)
            editor = PageEditor(directory, page)
            while ordered:
                next_directory, next_name = split_path(ordered[0].path)
                if next_directory != directory or (upper is not None and next_name >= upper):
                    break
                change = ordered.popleft()
                if is_logged:
                    before = page.entry(next_name) if page else None
                    self._log(version, FILE, change.path, _logged(before), _logged(change.after))
                if change.after is None:
                    editor.remove(next_name)
                else:
                    editor.put(change.after)
            self.connection.execute("DELETE FROM page WHERE directory = ? AND first = ?", (directory, first))
            self.add_pages(editor.pages())

    def _page_bounds(self, directory: bytes, name: bytes) -> tuple[bytes, bytes | None]:
        """Return the first name of the page that a name belongs to, and that of the page after it (None: there is none)."""
        row = self.connection.execute(
            "SELECT max(first) FROM page WHERE directory = ? AND first <= ?", (directory, name)
        ).fetchone()
        first = row[0]
        if first is None:  # it sorts before all others: it goes to the first page
            first = self.connection.execute("SELECT min(first) FROM page WHERE directory = ?", (directory,)).fetchone()[0]
        if first is None:
            return b"", None
        upper = self.connection.execute(
            "SELECT min(first) FROM page WHERE directory = ? AND first > ?", (directory, first)
        ).fetchone()[0]
        return first, upper

    def _page(self, directory: bytes, first: bytes) -> Page | None:
        row = self.connection.execute(
            "SELECT directory, names, states, wishes, outcomes, digests, extras FROM page WHERE directory = ? AND first = ?",
            (directory, first),
        ).fetchone()
        return Page(*row) if row else None

    # --- other entities

    def entity(self, type_: str, key: bytes) -> dict[str, Any] | None:
        """Return the attributes that the baseline has for one entity."""
        row = self.connection.execute("SELECT attributes FROM entity WHERE type = ? AND key = ?", (type_, key)).fetchone()
        return msgspec.json.decode(row[0], type=dict[str, Any]) if row else None

    def entities(self, type_: str) -> dict[bytes, dict[str, Any]]:
        """Return all entities of a type, by key."""
        rows = self.connection.execute("SELECT key, attributes FROM entity WHERE type = ? ORDER BY key", (type_,))
        return {row[0]: msgspec.json.decode(row[1], type=dict[str, Any]) for row in rows.fetchall()}

    def store_entity(
        self, version: int, type_: str, key: bytes, attributes: dict[str, Any] | None, *, is_logged: bool = True
    ) -> None:
        """Make these attributes the baseline of one entity (None: it is gone), inside the caller's transaction."""
        encoded = None if attributes is None else msgspec.json.encode(attributes, order="deterministic")
        if is_logged:
            row = self.connection.execute("SELECT attributes FROM entity WHERE type = ? AND key = ?", (type_, key)).fetchone()
            self._log(version, type_, key, row[0] if row else None, encoded)
        if encoded is None:
            self.connection.execute("DELETE FROM entity WHERE type = ? AND key = ?", (type_, key))
        else:
            self.connection.execute("INSERT OR REPLACE INTO entity VALUES (?, ?, ?)", (type_, key, encoded))

    def _log(self, version: int, type_: str, key: bytes, before: bytes | None, after: bytes | None) -> None:
        self.connection.execute(
            "INSERT INTO change VALUES (?, ?, ?, ?, ?) ON CONFLICT (version, type, key) DO UPDATE SET after = excluded.after",
            (version, type_, key, before, after),
        )


_page_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes])


def _logged(state: FileState | None) -> bytes | None:
    if state is None:
        return None
    directory, _ = split_path(state.path)
    page = pages_of(directory, [state])[0]
    return msgspec.msgpack.encode(
        (page.directory, page.names, page.states, page.wishes, page.outcomes, page.digests, page.extras)
    )


def _unlog(type_: str, logged: bytes | None) -> FileState | dict[str, Any] | None:
    if logged is None:
        return None
    if type_ == FILE:
        return next(Page(*_page_decoder.decode(logged)).entries())
    return msgspec.json.decode(logged, type=dict[str, Any])


def _connect(path: str) -> sqlite3.Connection:
    with contextlib.suppress(OSError):  # SQLite says better what is wrong
        # SQLite would make it readable for all; it tells what is watched and holds paths of private files.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _damage_of(connection: sqlite3.Connection) -> str:
    """Return what is wrong with the database's structure, or ""."""
    try:
        answer = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if answer == "ok" else answer.removeprefix("*** in database main ***\n")


def _set_aside(path: str, damage: str) -> RefusedError:
    """Move a damaged database out of the way, and return the error that says so."""
    aside = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    os.replace(path, aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path + suffix, aside + suffix)
    return RefusedError(
        "baseline_corrupt",
        f"the baseline database is damaged ({damage}); it was moved to {aside}",
        where=path,
        hint="changes since the last good baseline cannot be told; a new baseline must be built",
    )
