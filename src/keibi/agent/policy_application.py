"""Puts a policy in force whole or not at all.

Theory of operation. A new generation is on disk first, then the files that it names are fetched; until they are here the
former stays in force, and the status says what is missing. Every module's worker that is up is sent its part and must answer
`Applied`. When all accept, the generation is in force. When one refuses, does not answer, or ends while applying, the
former generation is sent again to those that had accepted, and the status says why. A worker that is down for reasons of
its own does not hold the others up: it gets the generation in force when it is up again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from keibi.agent.agent_events import agent_event
from keibi.agent.content_fetch import ContentFetch
from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.policy_store import MAX_ATTEMPTS, PolicyStore
from keibi.agent.ports import Applied, Configure
from keibi.agent.status import StatusBoard
from keibi.agent.worker_link import WorkerLink
from keibi.contract.commands import CommandResult
from keibi.contract.events import Event
from keibi.contract.names import ModuleId, Severity
from keibi.contract.policy import EffectivePolicy, ModulePolicy, ModuleState
from keibi.errors import KeibiError, TryLaterError

WORKERS_UP_SECONDS = 20.0
APPLIED_SECONDS = 120.0
RETRY_SECONDS = 5.0
REFUSED_RETRY_SECONDS = 30.0
"""Pause after an answer that will be the same the next time, until somebody acts or another policy comes."""
_NO_SETTINGS = b"{}"


class PolicyApplication:
    """Applies policies to the modules of an explicit list."""

    def __init__(
        self,
        modules: Sequence[ModuleId],
        store: PolicyStore,
        files: Lane,
        board: StatusBoard,
        log: Log,
        *,
        leave_safe_mode: Callable[[], Awaitable[list[str]]],
        emit: Callable[[list[Event]], Awaitable[None]],
        content: ContentFetch,
        on_change: Callable[[], None],
        workers_up_seconds: float = WORKERS_UP_SECONDS,
        applied_seconds: float = APPLIED_SECONDS,
    ) -> None:
        self._modules = tuple(modules)
        self._store = store
        self._files = files
        self._board = board
        self._log = log
        self._leave_safe_mode = leave_safe_mode
        self._emit = emit
        self._content = content
        self._on_change = on_change
        self._workers_up_seconds = workers_up_seconds
        self._applied_seconds = applied_seconds
        self._links: dict[ModuleId, WorkerLink] = {}
        self._asked: dict[ModuleId, WorkerLink] = {}
        self._came_up = asyncio.Event()
        self._answers: dict[ModuleId, asyncio.Future[str]] = {}
        self._awaited_generation: int | None = None
        self._received = asyncio.Event()
        self._received.set()  # the last run may have left a candidate
        self._show()

    @property
    def received_generation(self) -> int:
        """The newest generation that the manager need not send again."""
        return self._store.received_generation

    async def receive(self, policy: EffectivePolicy) -> None:
        """Keep a policy from the manager; it is applied soon.

        Raises:
            TryLaterError: it cannot be written to disk, so the manager must send it again.
        """
        await self._files.run(self._store.receive, policy)
        self._received.set()

    async def refuse_unreadable(self, generation: int, error: str) -> None:
        """Note a policy of the manager that this agent cannot read."""
        await self._files.run(self._store.refuse_unreadable, generation, error)
        await self._refused(generation, error)

    async def run(self) -> None:
        """Apply what is received, for ever."""
        while True:
            await self._received.wait()
            self._received.clear()
            policy = self._store.candidate()
            try:
                policy = policy or await self._incomplete()
                if policy is None:
                    continue
                # A newer policy ends the fetching for this one: what both name is fetched on.
                if await self._content.fetch(policy, lambda: not self._received.is_set()):
                    await self._apply(policy)
                    await self._content.forget_others(self._store.in_force, self._store.candidate())
            except KeibiError as error:
                generation = policy.generation if policy is not None else self._board.policy_generation
                self._log.error("policy not applied", error, generation=generation)
                self._board.policy_is(self._board.policy_generation, f"generation {generation}: {error}", self._board.wanted)
                self._on_change()
                await self._pause(error)

    async def _incomplete(self) -> EffectivePolicy | None:
        """Return the policy in force if a file that it names has gone, as when somebody deleted it: it is applied again."""
        policy = self._store.in_force
        return policy if policy is not None and not await self._content.is_complete(policy) else None

    async def _pause(self, error: KeibiError) -> None:
        seconds = max(RETRY_SECONDS, error.retry_after_seconds) if isinstance(error, TryLaterError) else REFUSED_RETRY_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await self._received.wait()
        except TimeoutError:
            self._received.set()

    def module_is_up(self, module: ModuleId, link: WorkerLink) -> None:
        """Send a worker that came up the generation in force."""
        self._links[module] = link
        self._came_up.set()
        if self._store.in_force is not None and self._awaited_generation is None:
            link.send(_configure(self._store.in_force, module))

    def module_is_down(self, module: ModuleId, how: str) -> None:
        """Count a worker's end while it applies a generation as its refusal."""
        self._links.pop(module, None)
        self._answer(module, f"{module} ended by {how} while it applied the policy")

    def applied(self, module: ModuleId, applied: Applied) -> None:
        """Take a worker's answer to `Configure`."""
        if applied.generation == self._awaited_generation:
            self._answer(module, f"{module}: {applied.error}" if applied.error else "")
        elif applied.error:
            self._log.error(
                "module refuses the policy in force", module=module, generation=applied.generation, reason=applied.error
            )
            self._board.policy_is(
                self._board.policy_generation,
                f"{module} refuses generation {applied.generation}: {applied.error}",
                self._board.wanted,
            )

    async def answered(self, result: CommandResult) -> None:
        """Do nothing: commands are not policies."""

    async def _apply(self, policy: EffectivePolicy) -> None:
        attempt = await self._files.run(self._store.begin_attempt, policy.generation)
        if attempt > MAX_ATTEMPTS:
            error = f"the agent ended {MAX_ATTEMPTS} times while it applied this policy"
            await self._files.run(self._store.refuse, policy.generation, error)
            await self._refused(policy.generation, error)
            return
        self._log.info("policy is applied", generation=policy.generation, policy=policy.policy_name)
        for worker in await self._leave_safe_mode():
            self._log.info("safe mode left by a new policy", worker=worker)
        former = self._store.in_force
        self._awaited_generation = policy.generation
        try:
            await self._wait_for_workers()
            errors = await self._configure_all(policy)
        finally:
            self._awaited_generation = None
        if not errors:
            await self._files.run(self._store.accept, policy)
            self._log.info("policy is in force", generation=policy.generation)
            self._show()
            self._catch_up(policy)
            return
        for module, link in self._links.items():
            link.send(_configure(former, module))
        await self._files.run(self._store.refuse, policy.generation, "; ".join(errors))
        await self._refused(policy.generation, "; ".join(errors))

    async def _wait_for_workers(self) -> None:
        try:
            async with asyncio.timeout(self._workers_up_seconds):
                while any(module not in self._links for module in self._modules):
                    self._came_up.clear()
                    await self._came_up.wait()
        except TimeoutError:
            down = [module for module in self._modules if module not in self._links]
            self._log.warning("policy goes on without modules that are down", modules=", ".join(down))

    async def _configure_all(self, policy: EffectivePolicy) -> list[str]:
        """Send each worker its part and return why any of them refuses."""
        loop = asyncio.get_running_loop()
        self._asked = dict(self._links)
        self._answers = {module: loop.create_future() for module in self._asked}
        for module, link in self._asked.items():
            link.send(_configure(policy, module))
        if not self._answers:
            return []
        await asyncio.wait(self._answers.values(), timeout=self._applied_seconds)
        errors = []
        for module, answer in self._answers.items():
            if not answer.done():
                errors.append(f"{module} did not answer within {self._applied_seconds:.0f} s")
                answer.cancel()
            elif answer.result():
                errors.append(answer.result())
        return errors

    def _catch_up(self, policy: EffectivePolicy) -> None:
        """Send the generation to workers that came up, or came up anew, while the others were asked."""
        for module, link in self._links.items():
            if self._asked.get(module) is not link:
                link.send(_configure(policy, module))

    def _answer(self, module: ModuleId, error: str) -> None:
        answer = self._answers.get(module)
        if answer is not None and not answer.done():
            answer.set_result(error)

    async def _refused(self, generation: int, error: str) -> None:
        self._log.error("policy refused, the former stays in force", generation=generation, reason=error)
        self._show()
        if self._modules:
            await self._emit(
                [
                    agent_event(
                        "agent.policy_refused",
                        self._modules[0],
                        Severity.HIGH,
                        subject=f"generation {generation}",
                        reason=error,
                        details={"generation": generation, "in_force": self._board.policy_generation},
                    )
                ]
            )

    def _show(self) -> None:
        policy = self._store.in_force
        wanted = {part.module: part.state for part in policy.modules} if policy else {}
        self._board.policy_is(policy.generation if policy else 0, self._store.error, wanted)
        self._on_change()


def _configure(policy: EffectivePolicy | None, module: ModuleId) -> Configure:
    """Return what a module's worker is told; OFF where the policy says nothing of it, or there is none."""
    parts = [part for part in policy.modules if part.module is module] if policy is not None else []
    part = parts[0] if parts else ModulePolicy(module, ModuleState.OFF, settings=_NO_SETTINGS)
    return Configure(policy.generation if policy is not None else 0, part)
