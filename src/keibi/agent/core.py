"""The agent core: its parts put together, started, and stopped in order.

What the parts are is decided in `main.py`; this file introduces them to each other.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec

from keibi.agent import doctor
from keibi.agent.command_log import CommandLog
from keibi.agent.commands import CommandRunner, CoreTask
from keibi.agent.config import AgentConfig
from keibi.agent.contact import Contact
from keibi.agent.content_fetch import ContentFetch, ContentStore
from keibi.agent.control import ControlAction, ControlServer
from keibi.agent.event_sender import EventSender
from keibi.agent.facts import read_machine_id
from keibi.agent.heartbeat import Heartbeat
from keibi.agent.identity import IdentityStore
from keibi.agent.intake import Intake
from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.manager_link import ManagerLink
from keibi.agent.policy_application import PolicyApplication
from keibi.agent.policy_store import PolicyStore
from keibi.agent.router import Router
from keibi.agent.safe_mode import ALL_WORKERS, MAX_CORE_CRASHES, SafeMode, StartRecord
from keibi.agent.session import ManagerSession
from keibi.agent.spool import Spool
from keibi.agent.status import StatusBoard
from keibi.agent.supervisor import Failure, Supervisor
from keibi.agent.unlocking import Unlocking
from keibi.agent.version import agent_version
from keibi.agent.worker_link import WorkerSpec
from keibi.contract.commands import Command, CommandKind, CommandResult, CommandState
from keibi.contract.names import ModuleId, new_id
from keibi.contract.status import AgentStatus
from keibi.errors import InputError, KeibiError, TryLaterError

WORKERS_STOP_SECONDS = 3.0
FLUSH_SECONDS = 1.0
AskWorker = Callable[[Command], Awaitable[CommandResult]]
MakeCoreTask = Callable[[AskWorker], CoreTask]


class Core:
    """One agent. `run` is called once."""

    def __init__(
        self,
        config: AgentConfig,
        workers: Sequence[WorkerSpec],
        log: Log,
        *,
        settings_versions: dict[str, int],
        serves: ModuleId,
        core_tasks: dict[CommandKind, MakeCoreTask],
    ) -> None:
        """Open everything on disk.

        Raises:
            TryLaterError: the state directory cannot be used.
        """
        self._config = config
        self._log = log
        self._settings_versions = settings_versions
        self._serves = serves
        directory = config.state_directory
        self._starts = StartRecord(directory)
        self._spool = Spool(os.path.join(directory, "spool.db"), max_bytes=config.spool_max_bytes)
        self._command_log = CommandLog(os.path.join(directory, "commands.db"))
        self._safe_mode = SafeMode(directory)
        self._files, self._spool_lane, self._command_lane = Lane("files"), Lane("spool"), Lane("commands")
        self._doctor_lane = Lane("doctor")
        self._content_lane = Lane("content files")
        self._later: set[asyncio.Future[None]] = set()
        self._manager: ManagerLink | None = None

        store = PolicyStore(directory, agent_version())
        for damage in (store.damage, self._command_log.corruption):
            if damage:
                log.error("state was damaged", found=damage)
        modules = [spec.module for spec in workers if spec.module is not None]
        self._board = StatusBoard(workers)
        self._intake = Intake(self._spool, self._spool_lane, log, self._spool_trouble, serves)
        self._contact = Contact(log, lambda: self._note(Failure.MANAGER_AWAY))
        self._router = Router(self._intake, self._board, log, lambda: self._note(Failure.WORKER_NOT_READING))
        self._supervisor = Supervisor(workers, self._router, self._safe_mode, self._files, log)
        content = ContentFetch(ContentStore(directory), self._content_lane, log)
        self._application = PolicyApplication(
            modules,
            store,
            self._files,
            self._board,
            log,
            leave_safe_mode=self._supervisor.leave_safe_mode,
            emit=self._intake.put,
            content=content,
            on_change=self._heartbeat_soon,
        )
        tasks: dict[CommandKind, CoreTask] = {CommandKind.DIAGNOSE: self._diagnose}
        self._commands = CommandRunner(
            self._command_log,
            self._command_lane,
            log,
            modules={spec.module: spec.goes_on_with for spec in workers if spec.module is not None},
            link_of=self._router.link_of,
            core_tasks=tasks,
            on_result=self._heartbeat_soon,
            start=self._start_soon,
        )
        tasks.update({kind: make(self._commands.ask_worker) for kind, make in core_tasks.items()})
        self._router.introduce([self._application, self._commands])
        identities = IdentityStore(directory)
        self._manager = ManagerLink(
            load_identity=lambda: identities.load(read_machine_id()),
            endpoint_for=lambda identity: doctor.endpoint_for(config, identity),
            make_heartbeat=self._make_heartbeat,
            make_sender=lambda session, lane: EventSender(session, lane, self._intake, self._contact, log, serves),
            content=content,
            files=self._files,
            contact=self._contact,
            log=log,
        )
        self._talk = self._manager.run
        unlocking = Unlocking(
            lambda: store.in_force.unlock_secret if store.in_force is not None else b"",
            self._commands.run_local,
            self._commands.forget_local,
        )
        actions: dict[str, ControlAction] = {
            "status": self._do_status,
            "doctor": self._do_doctor,
            "scan": self._do_scan,
            "leave-safe-mode": self._do_leave_safe_mode,
            "restart-worker": self._do_restart_worker,
            "unlock": unlocking.act,
        }
        self._control = ControlServer(config.socket_path, actions, log)

    async def run(self, stop: asyncio.Event) -> None:
        """Protect this computer until `stop` is set; then end in order, within five seconds."""
        await self._begin()
        async with asyncio.TaskGroup() as tasks:
            workers = tasks.create_task(self._supervisor.run(), name="supervisor")
            intake = tasks.create_task(self._intake.run(), name="intake")
            talkers = [
                tasks.create_task(self._control.run(), name="control"),
                tasks.create_task(self._kept_up("policy", self._application.run), name="policy"),
                tasks.create_task(self._kept_up("manager", self._talk), name="manager"),
            ]
            await stop.wait()
            self._log.info("agent stops")
            for talker in talkers:
                talker.cancel()
            await self._supervisor.stop(WORKERS_STOP_SECONDS)
            await workers
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._intake.flush()
            intake.cancel()
        await self._end()

    async def _begin(self) -> None:
        crashes = await self._files.run(self._starts.begin)
        if crashes >= MAX_CORE_CRASHES and not self._safe_mode.reasons():
            self._supervisor.note(Failure.CORE_CRASH_LOOP)
            reason = f"the agent itself ended unexpectedly {crashes} times within ten minutes"
            self._log.error("all workers left off, safe mode", reason=reason, leave="keibi agent leave-safe-mode")
            await self._files.run(self._safe_mode.enter, ALL_WORKERS, reason)

        try:
            await self._commands.go_on()
        except TryLaterError as error:
            # They stay unfinished, and the next start looks again.
            self._log.error("commands of the last run not looked at", error)

    async def _end(self) -> None:
        await self._spool_lane.run(self._spool.close)
        await self._command_lane.run(self._command_log.close)
        await self._files.run(self._starts.end)
        for lane in (self._files, self._spool_lane, self._command_lane, self._doctor_lane, self._content_lane):
            lane.close()
        self._log.info("agent has stopped")

    async def _kept_up(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part again when a fault of ours ends it: protection goes on meanwhile."""
        while True:
            try:
                await run()
            except Exception as error:  # noqa: BLE001 - the edge: a fault here must not take protection down
                self._log.error("a part of the agent failed and starts anew", error, part=name)
            await asyncio.sleep(5.0)

    def _make_heartbeat(self, session: ManagerSession, lane: Lane) -> Heartbeat:
        return Heartbeat(
            session,
            lane,
            board=self._board,
            intake=self._intake,
            application=self._application,
            commands=self._commands,
            contact=self._contact,
            log=self._log,
            pids=self._supervisor.pids,
            settings_versions=self._settings_versions,
            every_seconds=self._config.heartbeat_seconds,
        )

    async def _status(self) -> AgentStatus:
        return self._board.build(await self._intake.status(), self._supervisor.pids())

    async def _doctor_rows(self) -> list[dict[str, Any]]:
        rows = await self._doctor_lane.run(doctor.examine, self._config)
        rows += doctor.examine_running(await self._status(), self._contact, self._supervisor.report(), self._intake.trouble)
        return [msgspec.to_builtins(row) for row in rows]

    async def _diagnose(self, command: Command) -> CommandResult:
        rows = await self._doctor_rows()
        failed = sum(row["outcome"] == doctor.Outcome.FAIL for row in rows)
        message = f"{failed} of {len(rows)} checks failed" if failed else f"all {len(rows)} checks passed or only warn"
        return CommandResult(command.command_id, CommandState.DONE, message=message, result={"rows": rows})

    async def _do_status(self, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        del asked
        error = self._contact.error
        yield {
            "agent": msgspec.to_builtins(await self._status()),
            "manager": {
                "address": self._contact.manager_url,
                "computer_id": self._contact.computer_id,
                "tenant_name": self._contact.tenant_name,
                "is_connected": error is None and self._contact.last_success_at is not None,
                "last_success_at": self._contact.last_success_at,
                "error": str(error) if error else "",
                "clock_skew_seconds": self._contact.clock_skew_seconds,
            },
            "policy": {"received_generation": self._application.received_generation},
            "workers": self._supervisor.report(),
            "safe_mode": self._safe_mode.reasons(),
            "failures": {str(failure): count for failure, count in self._supervisor.counts.items()},
            "spool_trouble": self._intake.trouble,
        }

    async def _do_doctor(self, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        del asked
        yield {"rows": await self._doctor_rows()}

    async def _do_scan(self, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            module = ModuleId(str(asked.get("module", self._serves)))
        except ValueError:
            raise InputError(
                "module_unknown", f"there is no module {asked.get('module')!r}", hint=f"one of {', '.join(ModuleId)}"
            ) from None
        results: asyncio.Queue[CommandResult] = asyncio.Queue()
        command = Command(f"local-{new_id()}", CommandKind.SCAN, module, dict(asked.get("arguments") or {}))
        self._commands.run_local(command, results.put_nowait)
        try:
            while True:
                result = await results.get()
                yield msgspec.to_builtins(result)
                if result.state is not CommandState.RUNNING:
                    return
        finally:
            self._commands.forget_local(command.command_id)

    async def _do_leave_safe_mode(self, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield {"left": await self._supervisor.leave_safe_mode(str(asked.get("worker", ALL_WORKERS)))}

    async def _do_restart_worker(self, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        name = str(asked.get("worker", ""))
        await self._supervisor.restart(name)
        yield {"restarted": name}

    def _spool_trouble(self, error: TryLaterError) -> None:
        self._note(Failure.SPOOL_CORRUPT if error.code == "spool_corrupt" else Failure.SPOOL_NOT_WRITABLE)

    def _note(self, failure: Failure) -> None:
        self._supervisor.note(failure)

    def _heartbeat_soon(self) -> None:
        # The policy application shows the last run's policy before there is anybody to talk to.
        if self._manager is not None:
            self._manager.heartbeat_soon()

    def _start_soon(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._later.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._later.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            told = error if isinstance(error, KeibiError) else None
            self._log.error("work of the agent failed", told or error)
