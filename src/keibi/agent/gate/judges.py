"""All the judges that the gate knows, connected or away, and what they say."""

import os
import select
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from keibi.agent.gate import judging
from keibi.agent.gate.judge_link import JudgeLink, Outgoing
from keibi.agent.gate.judging import WRITTEN, Told
from keibi.agent.gate.own_processes import OwnProcesses
from keibi.agent.gate.verdicts import MAX_JUDGES

RECONNECT_SECONDS: Final = 0.2
_MESSAGES_A_TURN: Final = 64


class Listener(Protocol):
    """Who acts on what judges say."""

    def on_verdict(self, link: JudgeLink, question_id: int, *, is_allowed: bool, remember: bool, code: str) -> None:
        """Take an answer."""

    def on_no_verdict(self, link: JudgeLink, question_id: int) -> None:
        """Take a judge's word that there will be no answer in time."""

    def on_terms(self, link: JudgeLink) -> None:
        """Take note of other terms: all verdicts are void."""

    def on_forget(self, files: list[tuple[int, int]] | None) -> None:
        """Forget verdicts on (device, inode) pairs, or all of them."""

    def on_lost(self, link: JudgeLink) -> None:
        """Answer by the terms whatever this judge was asked."""

    def greeting(self) -> dict[str, Any]:
        """Return what a judge is told first."""


class Judges:
    """See the module's docstring. Everything here returns at once."""

    def __init__(self, epoll: select.epoll, listener: Listener, own: OwnProcesses) -> None:
        self._epoll = epoll
        self._listener = listener
        self._own = own
        self._links: dict[str, JudgeLink] = {}
        self._by_index: list[JudgeLink] = []
        self._by_descriptor: dict[int, JudgeLink] = {}

    def __iter__(self) -> Iterator[JudgeLink]:
        return iter(self._by_index)

    def __getitem__(self, index: int) -> JudgeLink:
        return self._by_index[index]

    def know(self, directory: str, names: Iterable[str]) -> None:
        """Take note of who listens; one that is not named any more stays, with its last terms."""
        for name in names:
            if name not in self._links and len(self._links) < MAX_JUDGES:
                link = JudgeLink(len(self._by_index), name, os.path.join(directory, f"{name}.sock"))
                self._links[name] = link
                self._by_index.append(link)

    @property
    def are_served(self) -> bool:
        """Whether every judge is connected and knows everything."""
        return all(link.connection is not None and not link.has_untold for link in self._by_index)

    def reconnect(self) -> None:
        """Try to reach those that are away, and tell the others what they could not be told before."""
        for link in self._by_index:
            if link.connection is None and link.connect() and link.connection is not None:
                self._by_descriptor[link.connection.fileno()] = link
                self._epoll.register(link.connection.fileno(), select.EPOLLIN)
                self._own.declare(link.name, link.own)
                self.send(link, Outgoing(self._listener.greeting()))
            elif link.has_untold:
                link.flush()

    def send(self, link: JudgeLink, outgoing: Outgoing) -> bool:
        """Send now or as soon as the judge reads; False when the message was dropped."""
        is_kept = link.send(outgoing)
        if link.is_blocked:
            self._listen(link)
        return is_kept

    def tell_all(self, told: Told) -> None:
        """Tell every judge, or count it for later."""
        for link in self._by_index:
            link.tell(told)

    def tell_caught_up(self, at: float, events_count: int) -> None:
        """Tell who is asked about written files that it has been asked about all that were closed before this moment."""
        for link in self._by_index:
            if link.terms is None or WRITTEN not in link.terms.events or link.caught_up_count == events_count:
                continue
            # What it missed comes first: else it would take for judged what it never heard of.
            if link.connection is not None and not link.has_untold and not link.is_blocked:
                link.caught_up_count = events_count
                self.send(link, Outgoing(judging.caught_up_message(at)))

    def serves(self, descriptor: int) -> bool:
        """Return whether this is a judge's connection."""
        return descriptor in self._by_descriptor

    def on_ready(self, descriptor: int, events: int) -> None:
        """Read what a judge says, write what waits for it."""
        link = self._by_descriptor[descriptor]
        if events & select.EPOLLOUT:
            link.flush()
            self._listen(link)
        if events & ~select.EPOLLOUT:
            try:
                for _ in range(_MESSAGES_A_TURN):
                    self._on_message(link, link.receive())
            except BlockingIOError:
                return
            except (OSError, ValueError, KeyError, TypeError):
                self._lose(link)

    def _on_message(self, link: JudgeLink, message: dict[str, Any]) -> None:
        match message["type"]:
            case "no_verdict":
                self._listener.on_no_verdict(link, int(message["id"]))
            case "verdict":
                link.gives_verdicts()
                self._listener.on_verdict(
                    link,
                    int(message["id"]),
                    is_allowed=bool(message["allow"]),
                    remember=bool(message.get("remember")),
                    code=str(message.get("code", "")),
                )
            case "terms":
                terms = judging.terms_of(message)
                if terms != link.terms:
                    link.terms = terms
                    self._listener.on_terms(link)
            case "forget":
                files = message.get("files")
                self._listener.on_forget(None if files is None else [(int(device), int(inode)) for device, inode in files])
            case "own":
                link.own = frozenset(int(pid) for pid in message["pids"])
                self._own.declare(link.name, link.own)
            case _:
                raise ValueError(f"a message that no judge sends: {message['type']}")

    def _listen(self, link: JudgeLink) -> None:
        if link.connection is not None:
            self._epoll.modify(link.connection.fileno(), select.EPOLLIN | (select.EPOLLOUT if link.is_blocked else 0))

    def _lose(self, link: JudgeLink) -> None:
        if link.connection is not None:
            del self._by_descriptor[link.connection.fileno()]
            self._epoll.unregister(link.connection.fileno())
        link.disconnect()
        self._own.declare(link.name, ())
        self._listener.on_lost(link)
