"""What agents may fetch: the contents that their own policy names, and nothing else."""

from collections.abc import Mapping
from typing import Protocol

from sqlalchemy.orm import Session

from keibi.contract.policy import ContentReference
from keibi.errors import InputError
from keibi.manager.database import Database, Scope
from keibi.manager.patterns.store import ContentStore


class NamesContent(Protocol):
    """Whoever knows what a computer's policy names."""

    def content_of(self, session: Session, computer_id: str) -> Mapping[str, ContentReference]:
        """Return the files that a computer's policy names now, by digest."""
        ...


class AgentContent:
    """Finds contents for agents. Calls block: use a worker thread."""

    def __init__(self, database: Database, policies: NamesContent, store: ContentStore) -> None:
        self._database = database
        self._policies = policies
        self._store = store

    def path_for(self, tenant_id: str, computer_id: str, sha256: str) -> str:
        """Return where a content lies that a computer may have.

        Raises:
            InputError: its policy does not name it (any more), or this manager does not have it.
        """
        with self._database.session(Scope(frozenset({tenant_id}), f"agent:{computer_id}"), writes=False) as session:
            named = self._policies.content_of(session, computer_id)
        if sha256 not in named:
            raise InputError(
                "content_not_found",
                "the policy of this computer names no such content",
                hint="the next heartbeat brings the policy that it has now",
            )
        return self._store.path_of(sha256)
