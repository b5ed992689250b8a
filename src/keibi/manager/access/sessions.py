"""Signed-in browsers: opaque cookies, ended by idleness, by age, or by somebody."""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from keibi.errors import InputError, RefusedError
from keibi.manager.access.model import NotSignedInError, Principal
from keibi.manager.access.principals import principal_of
from keibi.manager.access.tables import SessionRecord, UserRecord
from keibi.manager.database import Database, Scope
from keibi.manager.tenants.service import all_tenant_ids

COOKIE_NAME = "__Host-keibi"
CSRF_HEADER = "X-Keibi-Csrf"
TOUCH_SECONDS = 30.0
"""How old `last_used_at` may get before it is written again: not every click needs a write."""


@dataclass(frozen=True)
class SessionLimits:
    """How long a session lasts."""

    idle_seconds: float = 2 * 3600.0
    absolute_seconds: float = 12 * 3600.0


@dataclass(frozen=True)
class SignedInSession:
    """One session as its owner sees it."""

    session_id: str  # the start of the stored hash: enough to end it, useless as a cookie
    created_at: float
    last_used_at: float
    expires_at: float
    address: str
    user_agent: str
    is_current: bool


class Sessions:
    """Makes, recognises and ends sessions."""

    def __init__(self, database: Database, limits: SessionLimits, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._limits = limits
        self._clock = clock

    def start(self, session: Session, user: UserRecord, address: str, user_agent: str) -> tuple[str, float]:
        """Make a session for a user in a session of the system; returns the cookie's value and when it ends at the latest."""
        now = self._clock()
        cookie = secrets.token_urlsafe(32)
        session.execute(delete(SessionRecord).where(SessionRecord.expires_at < now))
        record = SessionRecord(
            id=_hash(cookie),
            tenant_id=user.tenant_id,
            user_id=user.id,
            created_at=now,
            last_used_at=now,
            expires_at=now + self._limits.absolute_seconds,
            address=address[:64],
            user_agent=user_agent[:300],
        )
        session.add(record)
        session.flush()
        return cookie, record.expires_at

    def recognise(self, cookie: str) -> Principal:
        """Return whose cookie it is.

        Raises:
            NotSignedInError: nobody's, ended, or the user or their tenant was disabled.
        """
        now = self._clock()
        with self._database.session(Scope.system("session"), writes=False) as session:
            record = session.get(SessionRecord, _hash(cookie)) if 20 <= len(cookie) <= 100 else None
            if record is None:
                raise NotSignedInError("not_signed_in", "you are not signed in", hint="sign in first")
            if now >= record.expires_at or now >= record.last_used_at + self._limits.idle_seconds:
                raise NotSignedInError("session_ended", "your session has ended", hint="sign in again")
            user = session.get(UserRecord, record.user_id)
            if user is None or not user.is_enabled or user.tenant_id not in all_tenant_ids(session):
                raise NotSignedInError("session_ended", "this account is disabled")
            principal = principal_of(
                session, user, "session", chosen_tenant_id=record.chosen_tenant_id, session_id=record.id[:32]
            )
            is_old = now - record.last_used_at >= TOUCH_SECONDS
        if is_old:
            with self._database.session(Scope.system("session")) as session:
                session.execute(
                    update(SessionRecord)
                    .where(SessionRecord.id == _hash(cookie), SessionRecord.last_used_at < now)
                    .values(last_used_at=now)
                    .execution_options(synchronize_session=False)
                )
        return principal

    def choose_tenant(self, principal: Principal, tenant_id: str | None) -> None:
        """Keep the tenant that the person wants to look at (None: all that are granted) with the session.

        Raises:
            AccessError: nothing is granted there.
        """
        principal.in_tenant(tenant_id)
        with self._database.session(Scope.system("session")) as session:
            session.execute(
                update(SessionRecord)
                .where(SessionRecord.id.startswith(principal.session_id), SessionRecord.user_id == principal.user_id)
                .values(chosen_tenant_id=tenant_id)
                .execution_options(synchronize_session=False)
            )

    def list(self, principal: Principal) -> list[SignedInSession]:
        """Return the principal's own sessions, the newest first."""
        now = self._clock()
        with self._database.session(Scope.system("session"), writes=False) as session:
            records = session.scalars(
                select(SessionRecord)
                .where(
                    SessionRecord.user_id == principal.user_id,
                    SessionRecord.expires_at > now,
                    SessionRecord.last_used_at > now - self._limits.idle_seconds,
                )
                .order_by(SessionRecord.created_at.desc())
            )
            return [
                SignedInSession(
                    record.id[:32],
                    record.created_at,
                    record.last_used_at,
                    record.expires_at,
                    record.address,
                    record.user_agent,
                    record.id[:32] == principal.session_id,
                )
                for record in records
            ]

    def end(self, principal: Principal, session_id: str) -> None:
        """End one of the principal's own sessions.

        Raises:
            InputError: there is none of that id.
        """
        if session_id not in {own.session_id for own in self.list(principal)}:
            raise InputError("session_not_found", f"you have no session {session_id!r}")
        with self._database.session(Scope.system("session")) as session:
            session.execute(
                delete(SessionRecord).where(
                    SessionRecord.user_id == principal.user_id, SessionRecord.id.startswith(session_id, autoescape=True)
                )
            )

    def end_cookie(self, cookie: str) -> None:
        """End the session of a cookie; nothing happens if there is none."""
        with self._database.session(Scope.system("session")) as session:
            session.execute(delete(SessionRecord).where(SessionRecord.id == _hash(cookie)))

    def end_all(self, session: Session, user_id: str, *, except_id: str = "") -> None:
        """End all sessions of a user, but that one, in a session of the system."""
        statement = delete(SessionRecord).where(SessionRecord.user_id == user_id)
        if except_id:
            statement = statement.where(~SessionRecord.id.startswith(except_id, autoescape=True))
        session.execute(statement)


def csrf_token(cookie: str) -> str:
    """Return the token that forms and requests of this session carry. Follows from the cookie, which no script can read."""
    digest = hmac.digest(cookie.encode(), b"keibi csrf token", "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def check_csrf(cookie: str, token: str) -> None:
    """Do nothing if `token` is the session's.

    Raises:
        RefusedError: it is not; another site may have made the browser send this.
    """
    if not hmac.compare_digest(csrf_token(cookie).encode(), token.encode()):
        raise RefusedError(
            "csrf_token", "this request does not carry your session's token", hint="load the page again and repeat what you did"
        )


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()
