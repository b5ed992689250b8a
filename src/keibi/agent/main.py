"""The agent core's program: `python -m keibi.agent.main --config /etc/keibi/agent.toml`. The list of what it runs is here."""

import argparse
import asyncio
import contextlib
import ctypes
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine, Sequence

from keibi.agent.config import DEFAULT_PATH, AgentConfig, load_config
from keibi.agent.core import Core, MakeCoreTask
from keibi.agent.instance_lock import InstanceLock
from keibi.agent.lane import Lane
from keibi.agent.log import Level, Log
from keibi.agent.modules.integrity_monitoring.restore import restore_file
from keibi.agent.restoration import restoration
from keibi.agent.uploads import fetching
from keibi.agent.version import agent_version
from keibi.agent.worker_link import WorkerSpec
from keibi.contract.commands import CommandKind
from keibi.contract.names import ModuleId
from keibi.errors import KeibiError, TryLaterError
from keibi.protection.catalog import MODULES

AGENTS_OWN_EVENTS = ModuleId.INTEGRITY_MONITORING
"""Under which module events about the whole agent stand, such as a spool that was full."""

START_AGAIN_SECONDS = 5.0
GATE_SILENT_SECONDS = 4.0
"""The gate's warden says every second that it is there."""


def workers_of(config: AgentConfig) -> tuple[WorkerSpec, ...]:
    """Return the workers of this agent. A new module is one more line here."""
    integrity_state = os.path.join(config.state_directory, "integrity_monitoring")
    judges = os.path.join(config.state_directory, "judges")
    return (
        WorkerSpec(
            name="sensor",
            # Its own writing must never be told to the agent, which would then write about it.
            argv=(sys.executable, "-m", "keibi.agent.sensor", "--exclude", config.state_directory),
            serves=ModuleId.INTEGRITY_MONITORING,
            is_sensor=True,
        ),
        WorkerSpec(
            name="gate",
            argv=(sys.executable, "-m", "keibi.agent.gate", "--judges", judges, "--exclude", config.state_directory),
            serves=ModuleId.ANTI_MALWARE,
            silent_seconds=GATE_SILENT_SECONDS,
            encoding="json",
        ),
        WorkerSpec(
            name="integrity_monitoring",
            argv=(sys.executable, "-m", "keibi.agent.modules.integrity_monitoring.worker", "--state", integrity_state),
            serves=ModuleId.INTEGRITY_MONITORING,
            module=ModuleId.INTEGRITY_MONITORING,
        ),
        WorkerSpec(
            name="anti_malware",
            argv=(
                *(sys.executable, "-m", "keibi.agent.modules.anti_malware.worker"),
                *("--state", os.path.join(config.state_directory, "anti_malware"), "--judges", judges),
                *("--content", os.path.join(config.state_directory, "content")),
            ),
            serves=ModuleId.ANTI_MALWARE,
            module=ModuleId.ANTI_MALWARE,
            goes_on_with=frozenset({CommandKind.SCAN}),
        ),
        WorkerSpec(
            name="application_control",
            argv=(
                *(sys.executable, "-m", "keibi.agent.modules.application_control.worker"),
                *("--state", os.path.join(config.state_directory, "application_control")),
                *("--judges", os.path.join(config.state_directory, "judges")),
            ),
            serves=ModuleId.APPLICATION_CONTROL,
            module=ModuleId.APPLICATION_CONTROL,
        ),
    )


def core_tasks_of(config: AgentConfig) -> dict[CommandKind, MakeCoreTask]:
    """Return the commands that the core carries out itself, because they need root or the manager."""
    return {
        CommandKind.RESTORE: restoration(restore_file, Lane("restore")),
        CommandKind.FETCH_QUARANTINED: fetching(config, Lane("uploads")),
    }


def _save_memory() -> None:
    """Have all threads share one heap: with one for each, what a burst took stays taken many times over."""
    # mallopt(3), M_ARENA_MAX; another C library than glibc has no such call.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)


async def run(
    config: AgentConfig,
    *,
    workers: Sequence[WorkerSpec] | None = None,
    core_tasks: dict[CommandKind, MakeCoreTask] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run the agent until SIGTERM or SIGINT (or `stop`). Tests name other workers than this computer's.

    Raises:
        KeibiError: it cannot start: another one runs, the state directory or the socket cannot be used.
    """
    _save_memory()
    log = Log(Level(config.log_level))
    specs = tuple(workers) if workers is not None else workers_of(config)
    _make_state_directory(config.state_directory)
    lock = InstanceLock(config.state_directory)
    lock.take()
    try:
        stop = stop or asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        log.info(
            "agent starts", version=agent_version(), pid=os.getpid(), state=config.state_directory, socket=config.socket_path
        )
        built = {spec.module for spec in specs}
        while not stop.is_set():
            try:
                core = Core(
                    config,
                    specs,
                    log,
                    settings_versions={
                        str(module.module): module.settings_version for module in MODULES if module.module in built
                    },
                    serves=AGENTS_OWN_EVENTS,
                    core_tasks=core_tasks if core_tasks is not None else core_tasks_of(config),
                )
            except TryLaterError as error:
                # A full disk at start: protection begins as soon as there is room, without anybody doing it by hand.
                log.warning("agent waits to start", code=error.code, error=str(error), again_in_seconds=START_AGAIN_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(START_AGAIN_SECONDS):
                        await stop.wait()
            else:
                await core.run(stop)
                return
    finally:
        lock.release()


def _make_state_directory(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if stat.S_IMODE(os.stat(directory).st_mode) & 0o077:
            os.chmod(directory, 0o700)
    except OSError as error:
        raise TryLaterError(
            "state_not_writable",
            f"the state directory cannot be used: {error.strerror}",
            where=directory,
            hint="run as root, on a disk that can be written",
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent as a program; returns its exit code: 0 stopped in order, 1 a fault, 2 it could not start."""
    parser = argparse.ArgumentParser(prog="keibi-agent", description="The Keibi agent core.")
    parser.add_argument("--config", default="", help=f"configuration file (default {DEFAULT_PATH}, if it is there)")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: run(load_config(options.config or DEFAULT_PATH, must_exist=bool(options.config))))


def exit_code_of(make_run: Callable[[], Coroutine[None, None, None]]) -> int:
    """Run the agent to its end and return the exit code; what keeps it from running is told in one line."""
    try:
        asyncio.run(make_run())
    except KeibiError as error:
        Log().error("agent cannot run", error)
        return 2
    except ExceptionGroup as group:
        expected, unexpected = group.split(KeibiError)
        if unexpected is not None:
            raise
        Log().error("agent cannot run", expected.exceptions[0] if expected is not None else group)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
