"""Which access tokens are worthless although they have not expired: a small set in memory, the same on every node.

A row is only needed as long as a token issued before it could still be valid, so the set stays small.
"""

import threading
import time
from collections.abc import Callable

from sqlalchemy import delete, select

from keibi.contract.enrolment import ACCESS_TOKEN_SECONDS
from keibi.manager.access.model import NotSignedInError
from keibi.manager.agents.access_tokens import Claims
from keibi.manager.agents.signals import SignalKind, Signals
from keibi.manager.agents.tables import RevocationRecord
from keibi.manager.database import Database, Scope


class Revocations:
    """Loaded once at the start, kept current by signals; `check` never touches the database."""

    def __init__(self, database: Database, signals: Signals, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock
        self._revoked: dict[str, float] = {}
        self._lock = threading.Lock()
        signals.subscribe(SignalKind.REVOKED, self._heard)

    def load(self) -> None:
        """Read the set, and forget rows that no token can outlive."""
        now = self._clock()
        with self._database.session(Scope.system("revocations")) as session:
            session.execute(delete(RevocationRecord).where(RevocationRecord.at < now - ACCESS_TOKEN_SECONDS - 60))
            rows = {record.id: record.at for record in session.scalars(select(RevocationRecord))}
        with self._lock:
            self._revoked = {**{key: at for key, at in self._revoked.items() if at > now - ACCESS_TOKEN_SECONDS - 60}, **rows}

    def revoke(self, tenant_id: str, subject_id: str) -> None:
        """Make the access tokens of a computer (or of a tenant: both ids the same) worthless, here at once, elsewhere soon."""
        now = self._clock()
        with self._database.session(Scope.system("revocations")) as session:
            record = session.get(RevocationRecord, subject_id)
            if record is None:
                session.add(RevocationRecord(id=subject_id, tenant_id=tenant_id, at=now))
            else:
                record.at = now
        self._signals.publish(SignalKind.REVOKED, [subject_id])

    def check(self, claims: Claims) -> None:
        """Do nothing if nobody revoked the token.

        Raises:
            NotSignedInError: somebody did.
        """
        for subject in (claims.computer_id, claims.tenant_id):
            at = self._revoked.get(subject)
            if at is not None and claims.issued_at <= at:
                raise NotSignedInError("token_revoked", "this computer was disabled or removed at the manager")

    def _heard(self, ids: tuple[str, ...]) -> None:
        now = self._clock()
        with self._lock:
            self._revoked = {**self._revoked, **dict.fromkeys(ids, now)}
