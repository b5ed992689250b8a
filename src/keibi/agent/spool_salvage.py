"""What to do with a spool that SQLite calls corrupt: out of the way, and whatever can still be read out of it."""

import contextlib
import glob
import os
import sqlite3
import time
from collections.abc import Iterator

KEPT_ASIDE = 2
MAX_DAMAGED_PLACES = 1000


def move_aside(path: str) -> str:
    """Rename the spool and its log, remove all but the newest such files, and return the new path."""
    aside = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path + suffix, aside + suffix)
    for old in sorted(name for name in glob.glob(glob.escape(path) + ".corrupt-*") if name.endswith("Z"))[:-KEPT_ASIDE]:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(old + suffix)
    return aside


def read_what_can_be_read(path: str) -> Iterator[bytes]:
    """Give the bodies of the events in a corrupt spool, oldest first, as far as they can be read."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        behind = -1
        failures = 0
        while failures < MAX_DAMAGED_PLACES:
            try:
                found = connection.execute(
                    "SELECT seq, body FROM events WHERE seq > ? ORDER BY seq LIMIT 1", (behind,)
                ).fetchone()
            except sqlite3.DatabaseError:
                # Step over the damaged place; rows behind it may be whole.
                behind += 1
                failures += 1
                continue
            if found is None:
                return
            behind, body = found
            if isinstance(body, bytes):
                yield body
    finally:
        connection.close()
