"""How it stands between this agent and the manager, as its threads of talk last saw it."""

import asyncio
import time
from collections.abc import Callable

from keibi.agent.log import Log
from keibi.errors import KeibiError

SKEW_WORTH_A_WARNING_SECONDS = 60.0
_AWAY = frozenset(
    {"manager_refused_connection", "manager_hung_up", "manager_timeout", "manager_unreachable", "manager_name_unknown"}
)


class Contact:
    """One for the whole agent; written by heartbeat, event sender and wake-up, read by status and doctor."""

    def __init__(self, log: Log, on_failure: Callable[[], None]) -> None:
        self.computer_id = ""
        self.tenant_name = ""
        self.manager_url = ""
        self.last_success_at: float | None = None
        self.clock_skew_seconds: float | None = None
        self.recovered = asyncio.Event()
        """Set by each success; who waits out a failure may stop waiting then."""
        self._errors: dict[str, KeibiError] = {}
        self._log = log
        self._on_failure = on_failure

    @property
    def error(self) -> KeibiError | None:
        """What keeps the agent from the manager, None when nothing does."""
        return next(iter(self._errors.values()), None)

    def succeeded(self, part: str) -> None:
        """Note that `part` got an answer."""
        if self._errors.pop(part, None) is not None:
            self._log.info("manager reached again", part=part, manager=self.manager_url)
        self.last_success_at = time.time()
        self.recovered.set()

    def failed(self, part: str, error: KeibiError) -> None:
        """Note that `part` got none, or one it cannot use."""
        self.recovered.clear()
        self._on_failure()
        former = self._errors.get(part)
        if former is None or former.code != error.code:
            self._log.warning("manager not reached", part=part, code=error.code, error=str(error), manager=self.manager_url)
        self._errors[part] = error

    def not_connected(self, error: KeibiError | None) -> None:
        """Note that there is no identity to connect with, or why it cannot be used."""
        self._errors.clear()
        if error is not None:
            self.failed("identity", error)

    def clock_is(self, server_at: float, asked_at: float, answered_at: float) -> None:
        """Compare the clocks: the manager's was read between asking and answering."""
        skew = server_at - (asked_at + answered_at) / 2
        if abs(skew) > SKEW_WORTH_A_WARNING_SECONDS and abs(self.clock_skew_seconds or 0.0) <= SKEW_WORTH_A_WARNING_SECONDS:
            self._log.warning("clocks differ", manager_is_ahead_seconds=skew, hint="set up NTP on both computers")
        self.clock_skew_seconds = skew

    async def wait(self, seconds: float, error: KeibiError) -> None:
        """Wait after a failure; shorter when the manager was away and another part reaches it meanwhile."""
        if error.code not in _AWAY:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self.recovered.wait()
        except TimeoutError:
            return
        await asyncio.sleep(min(1.0, seconds))  # the other part may have had luck: no hot loop
