"""Noticing that policies changed, and waking the agents that they reach.

Every tenant has a revision that changes with anything of which its policies are made; one small query a second sees changes
made by this manager and by others alike.
"""

from sqlalchemy import select

from keibi.manager.agents.signals import SignalKind, Signals
from keibi.manager.computers.tables import ComputerRecord
from keibi.manager.database import Database, Scope
from keibi.manager.policies.tables import PolicyRevisionRecord


class PolicyWatch:
    """Compares the revisions with those of the second before. Call `look` from one background task."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database = database
        self._signals = signals
        self._revisions: dict[str, str] | None = None

    def look(self) -> list[str]:
        """Tell of tenants whose policies changed since the last look; returns the computers that should send a heartbeat."""
        with self._database.session(Scope.system("policy watch"), writes=False) as session:
            rows = session.execute(select(PolicyRevisionRecord.id, PolicyRevisionRecord.revision))
            present = {tenant_id: revision for tenant_id, revision in rows}  # noqa: C416 - rows are not tuples
            before, self._revisions = self._revisions, present
            changed = [tenant for tenant, revision in present.items() if before is not None and before.get(tenant) != revision]
            if not changed:
                return []
            due = session.scalars(select(ComputerRecord.id).where(ComputerRecord.tenant_id.in_(changed))).all()
        self._signals.tell_here(SignalKind.POLICIES, changed)
        return list(due)
