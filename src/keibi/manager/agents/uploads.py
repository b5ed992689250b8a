"""Files that agents send because somebody asked for them with a command, kept for a day.

Theory of operation. A command that asks for a file (`FETCHING`) opens one place for it, `{directory}/{tenant}/{command}`, and
closes it when it ends. Parts are appended to `{command}.part` in order; a part that does not begin where the file ends is not
written, and the answer says where to go on. Only the last part gives the file its name. The content is hostile: it is written and
streamed, never looked at.
"""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator

from keibi.contract.commands import CommandKind, CommandState
from keibi.contract.uploads import MAX_UPLOAD_BYTES, UploadReceipt
from keibi.errors import InputError, RefusedError, TryLaterError
from keibi.manager.agents.access_tokens import Claims
from keibi.manager.agents.tables import CommandRecord
from keibi.manager.database import Database, Scope

FETCHING = frozenset({CommandKind.FETCH_QUARANTINED.value})
KEPT_SECONDS = 86400.0
SPARE_BYTES = 512 * 1024 * 1024
"""Left free on the disk, for database and events."""
_READ_BYTES = 256 * 1024
_ID = re.compile(r"[0-9a-f]{32}")
_PART = ".part"


class Uploads:
    """The files of one manager. Calls block: use a worker thread."""

    def __init__(
        self,
        directory: str,
        database: Database,
        *,
        max_bytes: int = MAX_UPLOAD_BYTES,
        spare_bytes: int = SPARE_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._database = database
        self._max_bytes = max_bytes
        self._spare_bytes = spare_bytes
        self._clock = clock
        self._lock = threading.Lock()

    def check(self, claims: Claims, command_id: str) -> None:
        """Do nothing when this computer may send a file for that command now.

        Raises:
            InputError: there is no such command of this computer that asks for a file, or it has ended.
        """
        with self._database.session(Scope(frozenset({claims.tenant_id}), f"agent:{claims.computer_id}"), writes=False) as session:
            record = session.get(CommandRecord, command_id) if _ID.fullmatch(command_id) else None
            if record is None or record.computer_id != claims.computer_id or record.kind not in FETCHING:
                raise InputError("command_not_found", "no command of this computer asks for this file")
            is_open = record.state in (CommandState.SENT.value, CommandState.RUNNING.value) and record.expires_at > self._clock()
            if not is_open:
                raise InputError("command_conflict", f"the command has ended ({record.state}): nobody waits for this file")

    def take(self, claims: Claims, command_id: str, offset: int, body: bytes, *, is_final: bool) -> UploadReceipt:
        """Keep one part and return how much there is; a part that begins elsewhere is not written.

        Raises:
            InputError: as `check`. RefusedError: the file would be too large. TryLaterError: the disk is full or broken.
        """
        self.check(claims, command_id)
        if offset < 0 or offset + len(body) > self._max_bytes:
            self._forget(claims.tenant_id, command_id)
            raise RefusedError("body_too_large", f"the file has more than {self._max_bytes} bytes", where=command_id)
        path = self._path(claims.tenant_id, command_id)
        try:
            with self._lock:
                if os.path.exists(path):
                    return UploadReceipt(os.path.getsize(path), is_complete=True)
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                if shutil.disk_usage(self._directory).free < self._spare_bytes + len(body):
                    raise TryLaterError("uploads_full", "the manager's disk is nearly full", retry_after_seconds=60.0)
                return self._append(path, offset, body, is_final=is_final)
        except OSError as error:
            raise TryLaterError("uploads_unwritable", f"the part cannot be kept: {error.strerror}") from error

    def size_of(self, tenant_id: str, command_id: str) -> int | None:
        """Return the size of a file that has come whole; None when there is none, or it is deleted by now."""
        try:
            return os.path.getsize(self._path(tenant_id, command_id))
        except OSError:
            return None

    def stream(self, tenant_id: str, command_id: str) -> Iterator[bytes]:
        """Return the file's content in blocks.

        Raises:
            InputError: it has not come whole, or is deleted by now.
        """
        try:
            # Opened here and not at the first block: what is missing must become an answer, and not a broken download.
            descriptor = os.open(self._path(tenant_id, command_id), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise InputError(
                "upload_not_found", "the file is not at the manager", hint="fetch it from the computer; it is kept for a day"
            ) from error
        return _blocks(descriptor)

    def expire(self) -> int:
        """Delete files and parts older than a day; returns how many. For a background task."""
        count = 0
        edge = self._clock() - KEPT_SECONDS
        for folder, _, names in os.walk(self._directory):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    if os.path.getmtime(path) < edge:
                        os.unlink(path)
                        count += 1
                except OSError:
                    continue  # another one deleted it meanwhile
        return count

    def _append(self, path: str, offset: int, body: bytes, *, is_final: bool) -> UploadReceipt:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path + _PART, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if offset != size:
                return UploadReceipt(size)
            written = 0
            try:
                while written < len(body):
                    written += os.write(descriptor, body[written:])
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)  # half a part would make the agent go on in the wrong place
                raise
            size += written
        finally:
            os.close(descriptor)
        if is_final:
            os.rename(path + _PART, path)
        return UploadReceipt(size, is_complete=is_final)

    def _forget(self, tenant_id: str, command_id: str) -> None:
        with self._lock:
            try:
                os.unlink(self._path(tenant_id, command_id) + _PART)
            except OSError:
                return

    def _path(self, tenant_id: str, command_id: str) -> str:
        if not _ID.fullmatch(tenant_id) or not _ID.fullmatch(command_id):
            raise InputError("upload_not_found", "the file is not at the manager")
        return os.path.join(self._directory, tenant_id, command_id)


def _blocks(descriptor: int) -> Iterator[bytes]:
    with open(descriptor, "rb") as file:
        while block := file.read(_READ_BYTES):
            yield block
