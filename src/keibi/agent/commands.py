"""Runs the manager's commands, each once, and keeps what came of them until a heartbeat has delivered it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from keibi.agent.command_log import CommandLog
from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.ports import Applied, Run
from keibi.agent.worker_link import WorkerLink
from keibi.contract.commands import Command, CommandKind, CommandResult, CommandState
from keibi.contract.names import ModuleId
from keibi.errors import KeibiError, TryLaterError

CoreTask = Callable[[Command], Awaitable[CommandResult]]
"""A command that the core carries out itself; raises KeibiError where it cannot."""
WORKER_UP_SECONDS = 15.0
_FINAL = frozenset({CommandState.DONE, CommandState.FAILED, CommandState.REFUSED, CommandState.EXPIRED})


class UnreadCommand(msgspec.Struct, frozen=True):
    """A command as it came; a newer manager may send kinds and modules that this agent does not know."""

    command_id: str
    kind: str
    module: str | None = None
    arguments: dict[str, object] = {}
    expires_at: float = 0.0


class CommandRunner:
    """Gives commands to whoever can carry them out."""

    def __init__(
        self,
        command_log: CommandLog,
        lane: Lane,
        log: Log,
        *,
        modules: Mapping[ModuleId, frozenset[CommandKind]],
        link_of: Callable[[ModuleId], WorkerLink | None],
        core_tasks: Mapping[CommandKind, CoreTask],
        on_result: Callable[[], None],
        start: Callable[[Awaitable[None]], None],
        worker_up_seconds: float = WORKER_UP_SECONDS,
    ) -> None:
        """`modules` are those with a worker, each with the commands that it goes on with when it is started again."""
        self._command_log = command_log
        self._lane = lane
        self._log = log
        self._modules = modules
        self._link_of = link_of
        self._worker_up_seconds = worker_up_seconds
        self._came_up = asyncio.Event()
        self._core_tasks = core_tasks
        self._on_result = on_result
        self._start = start
        self._running: dict[str, Command] = {}
        self._given: set[str] = set()
        self._progress: dict[str, CommandResult] = {}
        self._asked: dict[str, asyncio.Future[CommandResult]] = {}
        self._watchers: dict[str, Callable[[CommandResult], None]] = {}

    async def go_on(self) -> None:
        """Give out again what its module goes on with, and answer what else the agent's last run left unfinished.

        Raises:
            TryLaterError: what was left cannot be read.
        """
        for command_id, command in await self._lane.run(self._command_log.unfinished):
            if command is not None and self._goes_on(command):
                self._log.info("command goes on", command=command_id, kind=command.kind, module=command.module or "")
                self._running[command_id] = command
                # Until the worker is up, however long that takes: it has the work, begun or not.
                self._given.add(command_id)
            else:
                message = "the agent was restarted while this ran; it may have been done in part and was not run again"
                await self._finish(_result(command_id, CommandState.FAILED, message))

    async def take_up(self, commands: list[UnreadCommand], now: float) -> None:
        """Run the commands that were not run before. `now` is the manager's clock, by which they expire.

        Raises:
            TryLaterError: they cannot be written down, so they do not run now.
        """
        for unread in commands:
            command = _read(unread)
            kept = command if command is not None and self._goes_on(command) else None
            if not await self._lane.run(self._command_log.take_up, unread.command_id, kept):
                continue
            if unread.expires_at and now > unread.expires_at:
                late = now - unread.expires_at
                await self._finish(_result(unread.command_id, CommandState.EXPIRED, f"it came {late:.0f} s after it expired"))
                continue
            if command is None:
                what = f"{unread.kind!r} of {unread.module!r}" if unread.module else repr(unread.kind)
                await self._finish(
                    _result(unread.command_id, CommandState.REFUSED, f"this agent does not know the command {what}")
                )
                continue
            self._log.info("command taken up", command=command.command_id, kind=command.kind, module=command.module or "")
            self._running[command.command_id] = command
            self._dispatch(command)

    def run_local(self, command: Command, watcher: Callable[[CommandResult], None]) -> None:
        """Run a command of a person on this computer: nothing of it goes to the manager, `watcher` gets its results."""
        self._watchers[command.command_id] = watcher
        self._running[command.command_id] = command
        self._dispatch(command)

    def forget_local(self, command_id: str) -> None:
        """Let nobody watch this command any more."""
        self._watchers.pop(command_id, None)

    async def ask_worker(self, command: Command) -> CommandResult:
        """Have the module's worker carry out its part of a command of the core, and return its final answer."""
        link = await self._link_when_up(command.module)
        if link is None:
            return _not_running(command)
        answer: asyncio.Future[CommandResult] = asyncio.get_running_loop().create_future()
        self._asked[command.command_id] = answer
        try:
            self._give_to(link, command)
            return await answer
        finally:
            del self._asked[command.command_id]

    async def results(self) -> list[CommandResult]:
        """Return the results that the manager lacks: final ones until they are delivered, and the latest progress of others."""
        final = await self._lane.run(self._command_log.undelivered)
        return final + list(self._progress.values())

    async def delivered(self, results: list[CommandResult]) -> None:
        """Note that the manager has these results."""
        for result in results:
            if self._progress.get(result.command_id) is result:
                del self._progress[result.command_id]
        final = [result.command_id for result in results if result.state in _FINAL]
        if final:
            await self._lane.run(self._command_log.delivered, final)

    async def answered(self, result: CommandResult) -> None:
        """Take a result, from a worker or from the core itself."""
        command = self._running.get(result.command_id)
        if command is None:
            return  # answered already, or nobody asked
        if result.state in _FINAL:
            self._given.discard(result.command_id)
        asked = self._asked.get(result.command_id)
        if asked is not None and result.state in _FINAL:
            if not asked.done():
                asked.set_result(result)
            return
        if not result.at:
            result = msgspec.structs.replace(result, at=time.time())
        is_final = result.state in _FINAL
        if is_final:
            del self._running[result.command_id]
        watcher = self._watchers.get(result.command_id)
        if watcher is not None:
            watcher(result)
        elif is_final:
            await self._finish(result)
        else:
            self._progress[result.command_id] = result
            self._on_result()

    def module_is_up(self, module: ModuleId, link: WorkerLink) -> None:
        """Let the commands go on that wait for the worker, or that a former run of it had begun."""
        for command in list(self._running.values()):
            if command.module is module and command.command_id in self._given and self._goes_on(command):
                # The worker knows whether it has it already; it may have been killed before it wrote it down.
                self._give_to(link, command)
        self._came_up.set()

    def module_is_down(self, module: ModuleId, how: str) -> None:
        """Answer what the worker can no longer answer."""
        for command in list(self._running.values()):
            if command.module is module and command.command_id in self._given and not self._goes_on(command):
                message = f"the worker of {module} ended by {how} while this ran; it may have been done in part"
                self._start(self.answered(_result(command.command_id, CommandState.FAILED, message)))

    def applied(self, module: ModuleId, applied: Applied) -> None:
        """Do nothing: policies are not commands."""

    def _goes_on(self, command: Command) -> bool:
        """Whether a worker that is started again goes on with it: such a command is not over when the worker ends."""
        return command.module is not None and command.kind in self._modules.get(command.module, ())

    def _dispatch(self, command: Command) -> None:
        if command.kind in self._core_tasks:
            self._start(self._run_in_core(command))
            return
        if command.module is None:
            self._answer_soon(command, CommandState.REFUSED, f"{command.kind} needs a module")
            return
        self._start(self._give(command))

    async def _give(self, command: Command) -> None:
        link = await self._link_when_up(command.module)
        if link is None:
            await self.answered(_not_running(command))
        else:
            self._give_to(link, command)

    def _give_to(self, link: WorkerLink, command: Command) -> None:
        self._given.add(command.command_id)
        link.send(Run(command))

    async def _link_when_up(self, module: ModuleId | None) -> WorkerLink | None:
        """Return the module's worker; waits a while for one that is just starting, as after a start of the agent."""
        if module is None or module not in self._modules:
            return None
        try:
            async with asyncio.timeout(self._worker_up_seconds):
                while (link := self._link_of(module)) is None:
                    self._came_up.clear()
                    await self._came_up.wait()
        except TimeoutError:
            return None
        return link

    async def _run_in_core(self, command: Command) -> None:
        try:
            result = await self._core_tasks[command.kind](command)
        except KeibiError as error:
            result = _result(command.command_id, CommandState.FAILED, str(error))
        except Exception as error:  # noqa: BLE001 - a fault in one command must not end the agent
            self._log.error("command failed by a fault of the agent", error, command=command.command_id, kind=command.kind)
            result = _result(command.command_id, CommandState.FAILED, f"a fault of the agent: {type(error).__name__}: {error}")
        await self.answered(result)

    def _answer_soon(self, command: Command, state: CommandState, message: str) -> None:
        self._start(self.answered(_result(command.command_id, state, message)))

    async def _finish(self, result: CommandResult) -> None:
        self._progress.pop(result.command_id, None)
        self._log.info("command ended", command=result.command_id, state=result.state, message=result.message)
        try:
            await self._lane.run(self._command_log.finish, result)
        except TryLaterError as error:
            # Delivered from memory as far as that goes; the next start answers FAILED where it was not.
            self._log.error("result not written to disk", error, command=result.command_id)
            self._progress[result.command_id] = result
        self._on_result()


def _read(unread: UnreadCommand) -> Command | None:
    try:
        return msgspec.convert(unread, Command, from_attributes=True)
    except msgspec.ValidationError:
        return None


def _result(command_id: str, state: CommandState, message: str) -> CommandResult:
    return CommandResult(command_id, state, message=message, at=time.time())


def _not_running(command: Command) -> CommandResult:
    message = f"{command.module or 'the module'} does not run on this computer now; see its status"
    return _result(command.command_id, CommandState.FAILED, message)
