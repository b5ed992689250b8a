"""The request cycle: what this agent has -> what it should have. And the long-poll that makes a cycle happen at once."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

import msgspec

from keibi.agent.commands import CommandRunner, UnreadCommand
from keibi.agent.contact import Contact
from keibi.agent.facts import collect_facts
from keibi.agent.intake import Intake
from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.policy_application import PolicyApplication
from keibi.agent.session import ManagerSession
from keibi.agent.status import StatusBoard, digest, status_digest
from keibi.agent.transport import Backoff
from keibi.contract.heartbeat import HeartbeatRequest, WakeResponse
from keibi.contract.policy import EffectivePolicy
from keibi.errors import KeibiError, TryLaterError

FIRST_WITHIN_SECONDS = 0.25
LEAST_BETWEEN_SECONDS = 0.2
STATUS_CHANGE_SECONDS = 5.0
"""How soon a changed status is told, at most this often."""
WHOLE_STATUS_SECONDS = 600.0
"""How often a status is sent though its digest is the known one: load and queue lengths are not in the digest."""
WAKE_SECONDS = 25
LEAST_POLL_SECONDS = 1.0
_NIL = b"\xc0"


class HeartbeatAnswer(msgspec.Struct, frozen=True):
    """`contract.heartbeat.HeartbeatResponse`, readable by any agent: policy and commands of a newer manager stay as they came."""

    server_at: float
    policy: msgspec.Raw = msgspec.Raw(_NIL)
    commands: list[UnreadCommand] = []
    want_status: bool = False
    want_facts: bool = False
    heartbeat_seconds: int = 60


class _Generation(msgspec.Struct, frozen=True):
    generation: int


class Heartbeat:
    """One cycle after another."""

    def __init__(
        self,
        session: ManagerSession,
        lane: Lane,
        *,
        board: StatusBoard,
        intake: Intake,
        application: PolicyApplication,
        commands: CommandRunner,
        contact: Contact,
        log: Log,
        pids: Callable[[], Sequence[int]],
        settings_versions: dict[str, int],
        every_seconds: int,
    ) -> None:
        self._session = session
        self._lane = lane
        self._board = board
        self._intake = intake
        self._application = application
        self._commands = commands
        self._contact = contact
        self._log = log
        self._pids = pids
        self._settings_versions = settings_versions
        self._every_seconds = every_seconds
        self._managers_seconds = 60
        self._due = asyncio.Event()
        self._waiters: list[asyncio.Future[bool]] = []
        self._known_status = ""
        self._known_facts = ""
        self._whole_status_at = 0.0
        self._told_version = -1

    def soon(self) -> None:
        """Make a cycle happen at once, unless the manager is away."""
        self._due.set()

    async def now(self) -> bool:
        """Make a cycle happen at once and return whether it succeeded."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._due.set()
        return await waiter

    async def run(self) -> None:
        """Beat for ever. The first two waits are random, so that agents which start together do not stay together."""
        backoff = Backoff()
        wait = random.uniform(0.0, FIRST_WITHIN_SECONDS)  # noqa: S311 - spreads load, keeps no secret
        is_first = True
        while True:
            await self._wait(wait)
            self._due.clear()
            waiters, self._waiters = self._waiters, []
            try:
                await self.beat()
            except KeibiError as error:
                self._contact.failed("heartbeat", error)
                _tell(waiters, outcome=False)
                await self._contact.wait(backoff.failed(error), error)
                wait = 0.0
            else:
                self._contact.succeeded("heartbeat")
                backoff.succeeded()
                _tell(waiters, outcome=True)
                await asyncio.sleep(LEAST_BETWEEN_SECONDS)
                wait = float(self._every_seconds or self._managers_seconds)
                if is_first:
                    wait = random.uniform(0.0, wait)  # noqa: S311 - spreads load, keeps no secret
                is_first = False

    async def beat(self) -> None:
        """Go through one cycle.

        Raises:
            KeibiError: the manager is away or does not accept this agent.
        """
        version = self._board.version
        status = self._board.build(await self._intake.status(), self._pids())
        facts = await self._lane.run(collect_facts)
        results = await self._commands.results()
        status_now, facts_now = status_digest(status), digest(facts)
        is_whole = status_now != self._known_status or time.monotonic() - self._whole_status_at > WHOLE_STATUS_SECONDS
        asked_at = time.time()
        request = HeartbeatRequest(
            policy_generation=self._application.received_generation,
            status_digest=status_now,
            facts_digest=facts_now,
            settings_versions=self._settings_versions,
            status=status if is_whole else None,
            facts=facts if facts_now != self._known_facts else None,
            results=results,
            clock_at=asked_at,
        )
        answer = await self._lane.run(self._session.post, "/agent/v1/heartbeat", request, HeartbeatAnswer)
        self._contact.clock_is(answer.server_at, asked_at, time.time())
        if is_whole:
            self._whole_status_at = time.monotonic()
        self._known_status = "" if answer.want_status else status_now
        self._known_facts = "" if answer.want_facts else facts_now
        self._told_version = version
        self._managers_seconds = min(max(answer.heartbeat_seconds, 1), 3600)
        await self._commands.delivered(results)
        await self._take_policy(bytes(answer.policy))
        await self._commands.take_up(answer.commands, answer.server_at)
        if answer.want_status or answer.want_facts:
            self.soon()

    async def _take_policy(self, content: bytes) -> None:
        if content in (b"", _NIL):
            return
        try:
            policy = msgspec.msgpack.decode(content, type=EffectivePolicy)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            try:
                generation = msgspec.msgpack.decode(content, type=_Generation).generation
            except (msgspec.DecodeError, UnicodeDecodeError):
                generation = 0
            reason = f"this agent cannot read the policy ({error}); it may need an update"
            await self._application.refuse_unreadable(generation, reason)
            return
        await self._application.receive(policy)

    async def _wait(self, seconds: float) -> None:
        """Wait for the next cycle: the time, a call of `soon`, or a status that has changed for a while."""
        until = time.monotonic() + seconds
        changed_at: float | None = None
        while (left := until - time.monotonic()) > 0 and not self._due.is_set():
            try:
                async with asyncio.timeout(min(left, 1.0)):
                    await self._due.wait()
            except TimeoutError:
                if self._told_version not in (-1, self._board.version):
                    changed_at = changed_at or time.monotonic()
                    if time.monotonic() - changed_at >= STATUS_CHANGE_SECONDS:
                        return


class Waker:
    """The long-poll: the manager answers when a cycle is worth while."""

    def __init__(self, session: ManagerSession, lane: Lane, heartbeat: Heartbeat, contact: Contact) -> None:
        self._session = session
        self._lane = lane
        self._heartbeat = heartbeat
        self._contact = contact

    async def run(self) -> None:
        """Poll for ever."""
        backoff = Backoff()
        path = f"/agent/v1/wake?seconds={WAKE_SECONDS}"
        while True:
            asked_at = time.monotonic()
            try:
                answer = await self._lane.run(self._session.get, path, WakeResponse, timeout_seconds=WAKE_SECONDS + 15.0)
                self._contact.succeeded("wake")
                if answer.is_due and not await self._heartbeat.now():
                    raise TryLaterError("manager_heartbeat_failed", "the manager woke this agent, but the heartbeat failed")
                backoff.succeeded()
                if not answer.is_due and time.monotonic() - asked_at < LEAST_POLL_SECONDS:
                    # A manager that stops answers at once, and so does one where a clone of this agent polls too.
                    await asyncio.sleep(LEAST_POLL_SECONDS)
            except KeibiError as error:
                if error.code != "manager_heartbeat_failed":
                    self._contact.failed("wake", error)
                await self._contact.wait(backoff.failed(error), error)


def _tell(waiters: list[asyncio.Future[bool]], *, outcome: bool) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(outcome)
