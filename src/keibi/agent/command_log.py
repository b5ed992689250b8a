"""Which commands were taken up and what came of them, on disk, so that each runs once even when the agent is killed.

A command is written down before it runs. What was running when the agent ended is `unfinished` at the next start: it may have
done its work, and must not do it twice. Only of one that its module goes on with is more kept than the id, since arguments may
hold what is not for a disk. A result stays until a heartbeat has delivered it.

Not thread-safe: all calls come from one `Lane`.
"""

import os
import sqlite3
import time

import msgspec

from keibi.contract.commands import Command, CommandResult
from keibi.errors import TryLaterError

KEPT_SECONDS = 90 * 86400.0
MAX_RESULTS_BYTES = 4 * 1024 * 1024
_SCHEMA = """
CREATE TABLE IF NOT EXISTS commands (
    command_id TEXT PRIMARY KEY, taken_up_at REAL NOT NULL, result BLOB, is_delivered INTEGER NOT NULL DEFAULT 0, command BLOB
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS commands_to_deliver ON commands (is_delivered, command_id);
"""


class CommandLog:
    """The commands in one SQLite file."""

    def __init__(self, path: str) -> None:
        """Open the log; a corrupt file is moved aside, one of an older agent gets what it lacks.

        Raises:
            TryLaterError: the disk is full, read-only or broken.
        """
        self._path = path
        self.corruption = ""
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            try:
                self._connection = _open(path)
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                self.corruption = f"the command log was corrupt ({error}) and was moved aside"
                for suffix in ("", "-wal", "-shm"):
                    if os.path.exists(path + suffix):
                        os.replace(path + suffix, path + ".corrupt" + suffix)
                self._connection = _open(path)
        except (sqlite3.Error, OSError) as error:
            raise self._trouble(error) from error

    def take_up(self, command_id: str, command: Command | None = None) -> bool:
        """Write down that this command is about to run; False when it was taken up before, and must not run again.

        `command` is kept until it is finished, for `unfinished` to return.

        Raises:
            TryLaterError: it cannot be written down, so it must not run now.
        """
        try:
            inserted = self._connection.execute(
                "INSERT OR IGNORE INTO commands (command_id, taken_up_at, command) VALUES (?, ?, ?)",
                (command_id, time.time(), None if command is None else msgspec.msgpack.encode(command)),
            )
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        return inserted.rowcount == 1

    def finish(self, result: CommandResult) -> None:
        """Keep the final result until it is delivered; a second one for the same command is ignored.

        Raises:
            TryLaterError: it cannot be written.
        """
        try:
            self._connection.execute(
                "UPDATE commands SET result = ?, command = NULL WHERE command_id = ? AND result IS NULL",
                (msgspec.msgpack.encode(result), result.command_id),
            )
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def unfinished(self) -> list[tuple[str, Command | None]]:
        """Return the ids that were taken up and not finished, oldest first, with the command where it was kept.

        Raises:
            TryLaterError: the file cannot be read.
        """
        try:
            rows = self._connection.execute("SELECT command_id, command FROM commands WHERE result IS NULL ORDER BY taken_up_at")
            return [(command_id, _read_command(body)) for command_id, body in rows]
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def undelivered(self) -> list[CommandResult]:
        """Return the results that the manager does not have yet, oldest first, about as many as fit one heartbeat.

        Raises:
            TryLaterError: the file cannot be read.
        """
        results: list[CommandResult] = []
        total = 0
        try:
            rows = self._connection.execute(
                "SELECT result FROM commands WHERE is_delivered = 0 AND result IS NOT NULL ORDER BY command_id"
            )
            for (body,) in rows:
                total += len(body)
                if results and total > MAX_RESULTS_BYTES:
                    break
                results.append(msgspec.msgpack.decode(body, type=CommandResult))
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        return results

    def delivered(self, command_ids: list[str]) -> None:
        """Note that the manager has these results; their content is forgotten, their ids are not.

        Raises:
            TryLaterError: it cannot be written; they will be delivered again, which does no harm.
        """
        try:
            self._connection.executemany(
                "UPDATE commands SET is_delivered = 1, result = x'' WHERE command_id = ?", [(item,) for item in command_ids]
            )
            self._connection.execute(
                "DELETE FROM commands WHERE is_delivered = 1 AND taken_up_at < ?", (time.time() - KEPT_SECONDS,)
            )
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _trouble(self, error: Exception) -> TryLaterError:
        return TryLaterError(
            "state_not_writable",
            f"the command log cannot be used: {error}",
            where=self._path,
            hint=f"make room on the disk of {os.path.dirname(self._path)}",
        )


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        os.chmod(path, 0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
        if "command" not in [row[1] for row in connection.execute("PRAGMA table_info(commands)")]:
            connection.execute("ALTER TABLE commands ADD COLUMN command BLOB")
    except BaseException:
        connection.close()
        raise
    return connection


def _read_command(body: bytes | None) -> Command | None:
    """Return the command that was kept; None when there is none, or it is of a kind that this agent does not know."""
    if body is None:
        return None
    try:
        return msgspec.msgpack.decode(body, type=Command)
    except msgspec.DecodeError:
        return None
