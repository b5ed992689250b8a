"""How the agent is, gathered from its parts, for the manager and for people on the computer."""

import hashlib
import os
import time
from collections.abc import Sequence

import msgspec

from keibi.agent.facts import read_boot_id
from keibi.agent.version import agent_version
from keibi.agent.worker_link import WorkerSpec
from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from keibi.contract.status import AgentStatus, Capability, Health, ModuleStatus, NotEnforced, SpoolStatus

METRICS_TOLD_AT_ONCE = frozenset({"drifts_waiting_count", "last_scan_at", "next_scan_at", "worker_restarts_count"})
"""Metrics whose change is worth a heartbeat. Others (memory, queues, counts that creep) come with the next whole status."""
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class StatusBoard:
    """What each part last said of itself."""

    def __init__(self, specs: Sequence[WorkerSpec]) -> None:
        self.started_at = time.time()
        self.policy_generation = 0
        self.policy_error = ""
        self.wanted: dict[ModuleId, ModuleState] = {}
        self.version = 0
        """Grows with every change, so that others need not compare."""
        self._built = {spec.module for spec in specs if spec.module is not None}
        self._boot_id = read_boot_id()
        self._modules: dict[ModuleId, ModuleStatus] = {}
        self._capabilities: dict[str, list[Capability]] = {}
        self._left_off: dict[str, str] = {}
        self._modules_left_off: set[ModuleId] = set()
        self._down: dict[ModuleId, str] = {spec.module: "its worker starts" for spec in specs if spec.module is not None}
        self._sensors_down: dict[str, str] = {}
        self._restarts: dict[ModuleId, int] = {}

    def worker_is_up(self, spec: WorkerSpec, capabilities: list[Capability]) -> None:
        """Note what a worker found it can do."""
        self._capabilities[spec.name] = capabilities
        self._left_off.pop(spec.name, None)
        self._sensors_down.pop(spec.name, None)
        if spec.module is not None:
            self._down.pop(spec.module, None)
            self._modules_left_off.discard(spec.module)
        self.version += 1

    def worker_is_down(self, spec: WorkerSpec, how: str) -> None:
        """Note that a worker has ended."""
        if spec.module is not None:
            self._down[spec.module] = f"its worker ended by {how}"
            self._restarts[spec.module] = self._restarts.get(spec.module, 0) + 1
        elif spec.is_sensor:
            self._sensors_down[spec.name] = how
        self.version += 1

    def worker_is_left_off(self, spec: WorkerSpec, reason: str) -> bool:
        """Note that a worker is in safe mode; returns whether that is news."""
        is_news = self._left_off.get(spec.name) != reason
        self._left_off[spec.name] = reason
        if spec.module is not None:
            self._down[spec.module] = f"safe mode: {reason}"
            self._modules_left_off.add(spec.module)
        elif spec.is_sensor:
            self._sensors_down[spec.name] = f"safe mode, {reason}"
        self.version += 1
        return is_news

    def module_says(self, status: ModuleStatus) -> None:
        """Note a module's own report."""
        former = self._modules.get(status.module)
        self._modules[status.module] = status
        if former is None or _steady(former) != _steady(status):
            self.version += 1

    def policy_is(self, generation: int, error: str, wanted: dict[ModuleId, ModuleState]) -> None:
        """Note which generation is in force, why a newer one is not, and what it wants of each module."""
        self.policy_generation, self.policy_error, self.wanted = generation, error, wanted
        self.version += 1

    def build(self, spool: SpoolStatus, pids: Sequence[int]) -> AgentStatus:
        """Return the status as of now; `pids` are the worker processes."""
        usage = [_usage(pid) for pid in (os.getpid(), *pids)]
        return AgentStatus(
            agent_version=agent_version(),
            started_at=self.started_at,
            boot_id=self._boot_id,
            policy_generation=self.policy_generation,
            policy_error=self.policy_error,
            is_safe_mode=bool(self._left_off),
            safe_mode_reason="; ".join(self._left_off.values()),
            clock_at=time.time(),
            capabilities=[item for worker in sorted(self._capabilities) for item in self._capabilities[worker]],
            modules=self._module_statuses(),
            spool=spool,
            memory_bytes=sum(memory for memory, _ in usage),
            cpu_seconds=round(sum(cpu for _, cpu in usage), 2),
        )

    def _module_statuses(self) -> list[ModuleStatus]:
        statuses = []
        for module in sorted({*self._modules, *self._down, *self.wanted}):
            status = self._modules.get(module)
            if module in self._down:
                health = Health.ERROR if module in self._modules_left_off else Health.STARTING
                status = ModuleStatus(module, health, message=self._down[module])
            elif status is None:
                status = self._without_report(module)
            missing = self._not_observed() if self.wanted.get(module) is ModuleState.REAL_TIME else []
            if missing and status.health is Health.ACTIVE:
                status = msgspec.structs.replace(status, health=Health.WARNING, message=missing[0].reason)
            metrics = dict(status.metrics)
            if restarts := self._restarts.get(module, 0):
                metrics["worker_restarts_count"] = float(restarts)
            statuses.append(msgspec.structs.replace(status, not_enforced=[*status.not_enforced, *missing], metrics=metrics))
        return statuses

    def _not_observed(self) -> list[NotEnforced]:
        """Return what the sensors do not observe, though a policy wants real time."""
        missing = [
            NotEnforced("real-time observation", f"{name} is off: {why}", code="sensor_down")
            for name, why in self._sensors_down.items()
        ]
        # With a reason though available: some of the filesystems refuse.
        missing += [
            NotEnforced("real-time observation", capability.reason, code="marks_refused")
            for capabilities in self._capabilities.values()
            for capability in capabilities
            if capability.name == "fanotify_filesystem_marks" and capability.reason
        ]
        return missing

    def _without_report(self, module: ModuleId) -> ModuleStatus:
        if self.wanted.get(module, ModuleState.OFF) is not ModuleState.OFF:
            if module not in self._built:
                return ModuleStatus(module, Health.NOT_SUPPORTED, message="this agent does not have this module")
            return ModuleStatus(module, Health.STARTING, message="its worker has not reported yet")
        return ModuleStatus(module, Health.INACTIVE)


def status_digest(status: AgentStatus) -> str:
    """Return a digest that changes when something a person cares about does: clock, load and queue lengths are left out."""
    steady = msgspec.structs.replace(
        status,
        clock_at=0.0,
        memory_bytes=0,
        cpu_seconds=0.0,
        spool=SpoolStatus(dropped_count=status.spool.dropped_count),
        modules=[_steady(module) for module in status.modules],
    )
    return digest(steady)


def digest(value: msgspec.Struct) -> str:
    """Return 32 hex digits that stand for a value."""
    return hashlib.blake2b(msgspec.msgpack.encode(value), digest_size=16).hexdigest()


def _steady(status: ModuleStatus) -> ModuleStatus:
    told = {name: value for name, value in status.metrics.items() if name in METRICS_TOLD_AT_ONCE}
    return msgspec.structs.replace(status, metrics=told)


def _usage(pid: int) -> tuple[int, float]:
    """Return resident bytes and CPU seconds of a process; zeros when it has ended."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            resident_pages = int(file.read().split()[1])
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, IndexError, ValueError):
        return 0, 0.0
    return resident_pages * os.sysconf("SC_PAGE_SIZE"), (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
