"""Keeps up the talk with the manager for as long as there is an identity; takes up a new identity without a restart."""

import asyncio
from collections.abc import Callable

from keibi.agent.contact import Contact
from keibi.agent.content_fetch import ContentFetch
from keibi.agent.event_sender import EventSender
from keibi.agent.heartbeat import Heartbeat, Waker
from keibi.agent.identity import Identity
from keibi.agent.lane import Lane
from keibi.agent.log import Log
from keibi.agent.session import AccessTokens, ManagerSession
from keibi.agent.transport import Endpoint
from keibi.errors import KeibiError

LOOK_FOR_IDENTITY_SECONDS = 1.0

MakeHeartbeat = Callable[[ManagerSession, Lane], Heartbeat]
MakeSender = Callable[[ManagerSession, Lane], EventSender]


class ManagerLink:
    """Four connections, each with its thread: heartbeats, events, the long-poll and content must not wait for each other."""

    def __init__(
        self,
        *,
        load_identity: Callable[[], Identity | None],
        endpoint_for: Callable[[Identity], Endpoint],
        make_heartbeat: MakeHeartbeat,
        make_sender: MakeSender,
        content: ContentFetch,
        files: Lane,
        contact: Contact,
        log: Log,
    ) -> None:
        self._load_identity = load_identity
        self._endpoint_for = endpoint_for
        self._make_heartbeat = make_heartbeat
        self._make_sender = make_sender
        self._content = content
        self._files = files
        self._contact = contact
        self._log = log
        self._heartbeat: Heartbeat | None = None

    def heartbeat_soon(self) -> None:
        """Make a heartbeat happen soon, if there is anybody to talk to."""
        if self._heartbeat is not None:
            self._heartbeat.soon()

    async def run(self) -> None:
        """Talk for ever, as whoever this computer is at the time."""
        while True:
            identity = await self._identity()
            if identity is None:
                await asyncio.sleep(LOOK_FOR_IDENTITY_SECONDS)
                continue
            try:
                endpoint = self._endpoint_for(identity)
                tokens = AccessTokens(identity)
            except KeibiError as error:
                self._contact.failed("identity", error)
                await asyncio.sleep(LOOK_FOR_IDENTITY_SECONDS)
                continue
            self._contact.computer_id = identity.computer_id
            self._contact.tenant_name = identity.tenant_name
            self._contact.manager_url = endpoint.name
            self._contact.not_connected(None)
            self._log.info("talks to the manager", manager=endpoint.name, computer=identity.computer_id)
            await self._talk(identity, endpoint, tokens)

    async def _talk(self, identity: Identity, endpoint: Endpoint, tokens: AccessTokens) -> None:
        """Talk until the identity on disk is another one."""
        lanes = [Lane(name) for name in ("heartbeat", "events", "wake", "content")]
        sessions = [ManagerSession(endpoint, tokens) for _ in lanes]
        heartbeat = self._make_heartbeat(sessions[0], lanes[0])
        sender = self._make_sender(sessions[1], lanes[1])
        waker = Waker(sessions[2], lanes[2], heartbeat, self._contact)
        self._heartbeat = heartbeat
        self._content.connect(sessions[3], lanes[3])
        try:
            async with asyncio.TaskGroup() as tasks:
                talks = [tasks.create_task(part.run()) for part in (heartbeat, sender, waker)]
                while await self._identity() in (identity, None):
                    await asyncio.sleep(LOOK_FOR_IDENTITY_SECONDS)
                self._log.info("identity changed")
                for talk in talks:
                    talk.cancel()
        finally:
            self._heartbeat = None
            self._content.connect(None, None)
            for session, lane in zip(sessions, lanes, strict=True):
                session.abort()
                lane.close(session.close)

    async def _identity(self) -> Identity | None:
        try:
            return await self._files.run(self._load_identity)
        except (KeibiError, OSError) as error:
            told = (
                error
                if isinstance(error, KeibiError)
                else KeibiError("identity_unreadable", f"the identity cannot be read: {error}")
            )
            self._contact.failed("identity", told)
            return None
