"""RESTORE: the module's worker, which may read but not write, says what a file shall be; the core, which is root, writes it.

The worker answers `Run(RESTORE)` with state DONE and a `FileToRestore` as its result; that stays inside the agent.
Any other state is the answer to whoever asked. The path must be the one that the command names as `key` (escaped): a worker
that hostile content has taken over could otherwise have any file written. The worker gets no second word: what changed it
sees like any other change.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from keibi.agent.lane import Lane
from keibi.contract.commands import Command, CommandResult, CommandState
from keibi.errors import RefusedError
from keibi.protection.base import escape_name


class FileToRestore(msgspec.Struct, frozen=True):
    """What a file shall be. `content` None leaves the content as it is; `expected_hash` as in `RestoresFiles`."""

    path: bytes
    content: bytes | None
    mode: int
    uid: int
    gid: int
    expected_hash: str | None
    algorithm: str = "sha256"


class RestoresFiles(Protocol):
    """Writes a file as root; see `modules.integrity_monitoring.restore.restore_file`."""

    def __call__(
        self,
        path: bytes,
        *,
        content: bytes | None,
        mode: int,
        uid: int,
        gid: int,
        expected_hash: str | None,
        algorithm: str = "sha256",
    ) -> None:
        """Make the file so, if what is there has `expected_hash` ("": nothing is there; None: whatever is there)."""


def restoration(
    restore_file: RestoresFiles, lane: Lane
) -> Callable[[Callable[[Command], Awaitable[CommandResult]]], Callable[[Command], Awaitable[CommandResult]]]:
    """Return what makes the core's RESTORE task, given the way to ask the worker."""

    def make(ask_worker: Callable[[Command], Awaitable[CommandResult]]) -> Callable[[Command], Awaitable[CommandResult]]:
        async def restore(command: Command) -> CommandResult:
            answer = await ask_worker(command)
            if answer.state is not CommandState.DONE:
                return answer
            try:
                wanted = msgspec.convert(answer.result, FileToRestore)
            except msgspec.ValidationError as error:
                raise RefusedError("restore_unclear", f"the worker did not say what to restore: {error}") from error
            name = escape_name(wanted.path)
            if name != command.arguments.get("key"):
                raise RefusedError(
                    "restore_other_path",
                    f"the worker wants to write {name}, which is not what was asked for",
                    where=command.module or "",
                )
            await lane.run(
                restore_file,
                wanted.path,
                content=wanted.content,
                mode=wanted.mode,
                uid=wanted.uid,
                gid=wanted.gid,
                expected_hash=wanted.expected_hash,
                algorithm=wanted.algorithm,
            )
            what = "content, owner and mode" if wanted.content is not None else "owner and mode"
            return CommandResult(
                command.command_id, CommandState.DONE, message=f"restored {what} of {name}", result={"path": name}
            )

        return restore

    return make
