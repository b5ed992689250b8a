"""FETCH_QUARANTINED: the module's worker writes a file, the core sends it to the manager and deletes it.

The worker, which has no network, answers `Run(FETCH_QUARANTINED)` with state DONE and the file's path as `upload`; that stays
inside the agent. Only a plain file in `{state}/uploads` or in the worker's own state directory is sent: a worker that hostile
content has taken over could otherwise have any file of the computer sent. Parts go on where the manager says that it is, so an
interruption costs one part.
"""

import asyncio
import os
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from keibi.agent.config import AgentConfig
from keibi.agent.doctor import endpoint_for
from keibi.agent.facts import read_machine_id
from keibi.agent.identity import IdentityStore
from keibi.agent.lane import Lane
from keibi.agent.session import AccessTokens, ManagerSession
from keibi.agent.transport import Backoff
from keibi.contract.commands import Command, CommandResult, CommandState
from keibi.contract.uploads import MAX_UPLOAD_BYTES, PART_BYTES, UploadReceipt
from keibi.errors import InputError, RefusedError, TryLaterError

DIRECTORY = "uploads"
RESULT_KEY = "upload"
GIVE_UP_SECONDS = 1800.0
LEFT_BEHIND_SECONDS = 86400.0
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW

Task = Callable[[Command], Awaitable[CommandResult]]
SendPart = Callable[[str, int, bytes, bool], UploadReceipt]
"""Called with command id, offset, part, and whether it is the last; raises KeibiError by who must act."""


def fetching(config: AgentConfig, lane: Lane) -> Callable[[Task], Task]:
    """Return what makes the core's FETCH_QUARANTINED task, given the way to ask the worker."""
    sender = _Sender(config)

    def make(ask_worker: Task) -> Task:
        async def fetch(command: Command) -> CommandResult:
            await lane.run(_clean, os.path.join(config.state_directory, DIRECTORY))
            answer = await ask_worker(command)
            if answer.state is not CommandState.DONE:
                return answer
            path = answer.result.get(RESULT_KEY)
            if not isinstance(path, str) or not path:
                raise RefusedError("upload_unclear", "the worker did not say which file to send")
            file = await lane.run(open_upload, path, allowed_directories(config.state_directory, command))
            try:
                await _send(lane, sender.send_part, command.command_id, file)
            finally:
                await lane.run(file.remove)
                await lane.run(sender.close)
            told = {name: value for name, value in answer.result.items() if name != RESULT_KEY}
            return msgspec.structs.replace(answer, result={**told, "bytes": file.size}, at=time.time())

        return fetch

    return make


def allowed_directories(state_directory: str, command: Command) -> tuple[str, ...]:
    """Return where a file may lie that a command's worker wants to be sent."""
    names = (DIRECTORY, str(command.module)) if command.module else (DIRECTORY,)
    return tuple(os.path.join(state_directory, name) for name in names)


@dataclass
class OpenUpload:
    """A file that may be sent, held open with its directory; `remove` deletes it and closes both."""

    name: str
    descriptor: int
    directory: int
    size: int

    def read(self, offset: int) -> bytes:
        """Return the part that begins at `offset`."""
        return os.pread(self.descriptor, min(PART_BYTES, self.size - offset), offset)

    def remove(self) -> None:
        """Delete the file; what is open of it is closed."""
        try:
            os.unlink(self.name, dir_fd=self.directory)
        except FileNotFoundError:
            pass
        finally:
            os.close(self.descriptor)
            os.close(self.directory)


def open_upload(path: str, directories: tuple[str, ...]) -> OpenUpload:
    """Return the file at `path`, opened without following a link, if it lies in one of the directories.

    Raises:
        RefusedError: it lies elsewhere, a link is on the way, or it is no plain file with one name.
        InputError: it is larger than may be sent. TryLaterError: it cannot be opened.
    """
    for allowed in directories:
        relative = os.path.relpath(path, allowed) if os.path.isabs(path) else os.pardir
        parts = relative.split(os.sep)
        if os.path.join(allowed, relative) == path and os.pardir not in parts and os.curdir not in parts:
            return _open_below(allowed, parts)
    raise RefusedError("upload_elsewhere", f"the worker wants {path[:200]!r} to be sent, which is none of its files")


def _open_below(directory: str, parts: list[str]) -> OpenUpload:
    try:
        # The state directory itself is ours; below it each step must be a real directory, whatever happens meanwhile.
        current = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TryLaterError("upload_unreadable", f"the file cannot be opened: {error.strerror}", where=directory) from error
    descriptor = -1
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=current)
            os.close(current)
            current = inner
        descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=current)
        return OpenUpload(parts[-1], descriptor, current, _sendable_size(descriptor))
    except BaseException as error:
        os.close(current)
        if descriptor >= 0:
            os.close(descriptor)
        if isinstance(error, OSError):
            raise RefusedError("upload_no_file", f"the worker's file cannot be opened: {error.strerror}") from error
        raise


def _sendable_size(descriptor: int) -> int:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise RefusedError("upload_no_file", "the worker wants something to be sent that is no plain file of one name")
    if found.st_size > MAX_UPLOAD_BYTES:
        raise InputError(
            "upload_too_large",
            f"the archive has {found.st_size} bytes, more than {MAX_UPLOAD_BYTES} can be sent",
            hint="take it from the computer itself",
        )
    return found.st_size


async def _send(lane: Lane, send_part: SendPart, command_id: str, file: OpenUpload) -> None:
    """Send the file, again and again from where the manager is, until it has all of it or half an hour has passed.

    Raises:
        KeibiError: the manager does not take it, or was away for too long.
    """
    offset, backoff = 0, Backoff()
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while True:
        part = await lane.run(file.read, offset)
        try:
            receipt = await lane.run(send_part, command_id, offset, part, offset + len(part) >= file.size)
        except TryLaterError as error:
            if time.monotonic() > give_up_at:
                raise
            await asyncio.sleep(backoff.failed(error))
            continue
        backoff.succeeded()
        if receipt.is_complete:
            return
        if not 0 <= receipt.received_bytes <= file.size or (receipt.received_bytes == file.size and offset == file.size):
            raise RefusedError("upload_confused", f"the manager says that it has {receipt.received_bytes} bytes of {file.size}")
        offset = receipt.received_bytes


class _Sender:
    """A connection of its own for one upload at a time: a file must hold up neither heartbeats nor events. Used in one lane."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._session: ManagerSession | None = None

    def send_part(self, command_id: str, offset: int, body: bytes, is_final: bool) -> UploadReceipt:
        """Send one part.

        Raises:
            KeibiError: of the family that says who must act.
        """
        if self._session is None:
            identity = IdentityStore(self._config.state_directory).load(read_machine_id())
            if identity is None:
                raise TryLaterError("not_enrolled", "this computer belongs to no manager now")
            self._session = ManagerSession(endpoint_for(self._config, identity), AccessTokens(identity))
        return self._session.put(f"/agent/v1/uploads/{command_id}?offset={offset}&final={int(is_final)}", body, UploadReceipt)

    def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            self._session.close()
            self._session = None


def _clean(directory: str) -> None:
    """Delete what a killed agent left behind."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        edge = time.time() - LEFT_BEHIND_SECONDS
        for entry in os.scandir(directory):
            if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < edge:
                os.unlink(entry.path)
    except OSError as error:
        raise TryLaterError("upload_unwritable", f"the directory cannot be used: {error.strerror}", where=directory) from error
