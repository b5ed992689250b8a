"""The thread that builds and checks the inventory, one job at a time."""

import contextlib
import os
import sqlite3
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from keibi.agent.modules.application_control.building import Job, Outcome, Pass
from keibi.agent.modules.application_control.examiner_link import ExaminerLink
from keibi.agent.modules.application_control.inventory import Inventory
from keibi.agent.modules.application_control.packages import Packages
from keibi.agent.modules.application_control.policies import Policy
from keibi.agent.modules.application_control.telling import Teller

NICENESS = 10


@dataclass(frozen=True)
class Ended:
    """A job is over. `trouble` says why it could not be done."""

    job: Job
    outcome: Outcome
    trouble: str = ""


class Builder:
    """Takes jobs; `on_end` and `on_progress` are called in its thread."""

    def __init__(
        self,
        inventory: Inventory,
        packages: Packages,
        teller: Teller,
        policy: Callable[[], Policy | None],
        link: ExaminerLink,
        *,
        roots: Sequence[bytes],
        own_directory: bytes,
        on_progress: Callable[[Job, str, float | None], None],
        on_trust_changed: Callable[[], None],
        on_end: Callable[[Ended], None],
    ) -> None:
        self.running: Job | None = None
        self._inventory = inventory
        self._packages = packages
        self._teller = teller
        self._policy = policy
        self._link = link
        self._roots = roots
        self._own = own_directory
        self._on_progress = on_progress
        self._on_trust_changed = on_trust_changed
        self._on_end = on_end
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_cancelled = False
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="builder", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def ask(self, job: Job) -> None:
        """Add a job, unless the same waits already."""
        with self._changed:
            if job not in self._jobs:
                self._jobs.append(job)
            self._changed.notify()

    def cancel(self) -> list[Job]:
        """Stop the running job soon, and return those that will not be begun."""
        with self._changed:
            waiting = list(self._jobs)
            self._jobs.clear()
            self._is_cancelled = self.running is not None
        return waiting

    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        with self._changed:
            return self.running is None and not self._jobs

    def stop(self, seconds: float) -> None:
        """End the thread; what it found so far is kept."""
        with self._changed:
            self._is_stopped = self._is_cancelled = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        # Whoever judges shares the process, and must not wait for this thread's turns.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_stopped)
                if self._is_stopped:
                    return
                self.running, self._is_cancelled = self._jobs.popleft(), False
            ended = self._carry_out(self.running)
            with self._changed:
                self.running = None
            self._on_end(ended)

    def _carry_out(self, job: Job) -> Ended:
        policy = self._policy()
        if policy is None:
            return Ended(job, Outcome(), "there is no policy")
        try:
            one = Pass(
                self._inventory,
                self._packages,
                self._teller,
                policy,
                job,
                self._link,
                on_trust_changed=self._on_trust_changed,
                roots=self._roots,
                own_directory=self._own,
                is_cancelled=lambda: self._is_cancelled,
                on_progress=lambda how_far, share: self._on_progress(job, how_far, share),
            )
            return Ended(job, one.run())
        except (OSError, sqlite3.Error) as error:
            return Ended(job, Outcome(), f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  the edge of the thread: protection goes on without a new inventory
            traceback.print_exc()
            return Ended(job, Outcome(seconds=time.monotonic()), f"a fault: {type(error).__name__}: {error}")
