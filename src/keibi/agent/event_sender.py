"""Sends the spool's events as soon as there are some, in batches, until the manager has each of them on disk."""

import asyncio

from keibi.agent.agent_events import agent_event
from keibi.agent.contact import Contact
from keibi.agent.intake import Intake
from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.session import ManagerSession
from keibi.agent.spool import MAX_BATCH_EVENTS, Batch
from keibi.agent.transport import Backoff
from keibi.contract.events import EventReceipt
from keibi.contract.names import ModuleId, Severity
from keibi.errors import InputError, KeibiError

GATHER_SECONDS = 0.03
"""How long the first event waits for others: little beside the second within which it must be at the manager."""
MAX_SET_ASIDE_IN_A_ROW = 10
"""When the manager refuses this many single events and takes none, it is the manager that is wrong: nothing more is set aside."""
_PART = "events"
_ABOUT_CONTENT = frozenset({"body_invalid", "body_malformed", "body_too_large", "batch_too_long"})


class EventSender:
    """The way from spool to manager."""

    def __init__(self, session: ManagerSession, lane: Lane, intake: Intake, contact: Contact, log: Log, serves: ModuleId) -> None:
        self._session = session
        self._lane = lane
        self._intake = intake
        self._contact = contact
        self._log = log
        self._serves = serves
        self._max_events = MAX_BATCH_EVENTS
        self._set_aside_in_a_row = 0

    async def run(self) -> None:
        """Send for ever."""
        backoff = Backoff()
        while True:
            await self._intake.waiting.wait()
            await asyncio.sleep(GATHER_SECONDS)
            try:
                while (batch := await self._intake.take_batch(max_events=self._max_events)) is not None:
                    await self._send(batch)
                    backoff.succeeded()
            except KeibiError as error:
                self._contact.failed(_PART, error)
                await self._contact.wait(backoff.failed(error), error)
                self._intake.waiting.set()

    async def _send(self, batch: Batch) -> None:
        try:
            receipt = await self._lane.run(self._session.post, "/agent/v1/events", batch, EventReceipt)
        except InputError as error:
            is_about_content = error.code in _ABOUT_CONTENT or error.code.startswith("event_")
            if not is_about_content or self._set_aside_in_a_row >= MAX_SET_ASIDE_IN_A_ROW:
                raise
            await self._isolate(batch, error)
            return
        if receipt.batch_id != batch.batch_id:
            raise InputError(
                "manager_answer_invalid", f"the manager acknowledged batch {receipt.batch_id!r} when {batch.batch_id!r} was sent"
            )
        self._contact.succeeded(_PART)
        self._set_aside_in_a_row = 0
        await self._intake.ack(batch.batch_id)
        self._max_events = min(MAX_BATCH_EVENTS, self._max_events * 2)

    async def _isolate(self, batch: Batch, error: InputError) -> None:
        """Find the event that the manager refuses, by halving, so that it does not hold up all others for ever."""
        if len(batch.events) > 1:
            self._max_events = max(1, len(batch.events) // 2)
            await self._intake.split(batch.batch_id)
            return
        self._set_aside_in_a_row += 1
        self._log.error("event refused by the manager, set aside", error, batch=batch.batch_id)
        await self._intake.set_aside(batch.batch_id, str(error))
        # Not reported while nothing is accepted: the report may be what is refused.
        if self._set_aside_in_a_row == 1:
            event = agent_event("agent.event_refused", self._serves, Severity.MEDIUM, subject="spool", reason=str(error))
            await self._intake.put([event])
