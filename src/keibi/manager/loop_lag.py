"""How late the event loop is: a task that sleeps a little and looks how much longer it took."""

import asyncio
import collections
import math

INTERVAL_SECONDS = 0.01
KEPT = 200
"""About the last two seconds."""


class LoopLag:
    """Measures all the time; costs a hundred wake-ups a second."""

    def __init__(self) -> None:
        self._lags: collections.deque[float] = collections.deque(maxlen=KEPT)

    async def measure(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            expected = loop.time() + INTERVAL_SECONDS
            await asyncio.sleep(INTERVAL_SECONDS)
            self._lags.append(max(0.0, loop.time() - expected))

    def percentile_milliseconds(self, percent: float) -> float:
        """Return the lag that `percent` of the last measurements did not exceed."""
        lags = sorted(self._lags)
        if not lags:
            return 0.0
        return round(lags[min(len(lags) - 1, math.ceil(len(lags) * percent / 100) - 1)] * 1000, 3)
