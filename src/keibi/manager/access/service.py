"""Signing in, and recognising who asks."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.errors import KeibiError, TryLaterError
from keibi.manager.access.api_keys import ApiKeys
from keibi.manager.access.lockout import LockOut
from keibi.manager.access.model import NotSignedInError, Principal
from keibi.manager.access.passwords import Argon2Parameters, Passwords, generate_password
from keibi.manager.access.roles import RoleService
from keibi.manager.access.second_factor import SecondFactor
from keibi.manager.access.sessions import SessionLimits, Sessions, check_csrf, csrf_token
from keibi.manager.access.tables import GrantRecord, SignInRecord, UserRecord
from keibi.manager.access.users import UserService
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database, Scope
from keibi.manager.keys import SecretBox
from keibi.manager.tenants.service import TenantService, all_tenant_ids

FIRST_TENANT = "Default"
FIRST_USER = "admin"


@dataclass(frozen=True)
class SignedIn:
    """A session just made. `cookie` is the value of `__Host-keibi`; `csrf_token` goes into X-Keibi-Csrf."""

    cookie: str
    csrf_token: str
    expires_at: float
    principal: Principal


@dataclass(frozen=True)
class FirstAdministrator:
    """Who can sign in to a new manager."""

    name: str
    password: str
    tenant_id: str


@dataclass(frozen=True)
class AccessSettings:
    """What an installation may tune."""

    session_limits: SessionLimits = SessionLimits()  # noqa: RUF009 - frozen
    argon2: Argon2Parameters = Argon2Parameters()  # noqa: RUF009 - frozen


class AccessService:
    """The door. Its parts are `users`, `roles`, `api_keys`, `sessions` and `second_factor`."""

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        box: SecretBox,
        settings: AccessSettings = AccessSettings(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock
        self._passwords = Passwords(settings.argon2)
        self._lock_out = LockOut(database, clock)
        self.sessions = Sessions(database, settings.session_limits, clock)
        self.second_factor = SecondFactor(database, audit, self._passwords, box, clock)
        self.users = UserService(database, audit, self._passwords, self.sessions, self.second_factor, clock)
        self.roles = RoleService(database, audit)
        self.api_keys = ApiKeys(database, audit, clock)

    def sign_in(self, name: str, password: str, totp: str = "", address: str = "", user_agent: str = "") -> SignedIn:
        """Check a name, a password and, where it is on, a one-time code; start a session.

        Raises:
            NotSignedInError: `credentials_wrong`; `totp_required` (ask for the code and call again), `totp_wrong`, `totp_used`.
            TryLaterError: `locked_out`, with the time until it opens; `sign_in_busy`.
        """
        with self._database.session(Scope.system("sign-in"), writes=False) as session:
            user = session.scalar(select(UserRecord).where(UserRecord.name_key == name.strip().casefold()[:100]))
        if user is None:
            self._lock_out.count_unknown(name)
            self._passwords.matches(None, password)
            raise _wrong()
        try:
            # Counted first: of any number of attempts at once, only so many get to the password.
            self._lock_out.count(user.id)
        except TryLaterError:
            self._note(user, "user.sign_in_refused", address, "the account is locked out")
            raise
        if not self._passwords.matches(user.password_hash, password):
            self._note(user, "user.sign_in_failed", address, "the password was wrong")
            raise _wrong()
        try:
            self._check_allowed(user)
            self.second_factor.check(user.id, totp)
        except KeibiError as error:
            if error.code == "totp_required":
                # The password was right and no code was tried: nothing was guessed.
                self._lock_out.uncount(user.id)
            else:
                self._note(user, "user.sign_in_failed", address, error.message)
            raise
        return self._start(user, password, address, user_agent)

    def sign_out(self, cookie: str) -> None:
        """End the session of a cookie; nothing happens if there is none."""
        self.sessions.end_cookie(cookie)

    def authenticate_session(self, cookie: str, csrf: str | None = None) -> Principal:
        """Return whose session cookie it is. For whatever changes something, hand over the CSRF token that came with it ("").

        Raises:
            NotSignedInError: nobody's, or ended. RefusedError: the token is not the session's.
        """
        principal = self.sessions.recognise(cookie)
        if csrf is not None:
            check_csrf(cookie, csrf)
        return principal

    def authenticate_api_key(self, secret: str) -> Principal:
        """Return whose API key it is.

        Raises:
            NotSignedInError: nobody's, revoked or expired.
        """
        return self.api_keys.recognise(secret)

    def csrf_token(self, cookie: str) -> str:
        """Return the CSRF token of a session."""
        return csrf_token(cookie)

    def unlock(self, principal: Principal, user_id: str) -> None:
        """Let a locked-out user try again.

        Raises:
            AccessError: the principal may not. InputError: no such user.
        """
        self.users.unlock(principal, user_id, self._lock_out.forgive)

    def set_password_by_name(self, name: str, password: str) -> None:
        """Give a user another password and unlock them; for the manager's own computer, where root rules anyway.

        Raises:
            InputError: no such user, or a weak password.
        """
        self._lock_out.forgive(self.users.set_password_by_name(name, password))

    def first_start(self, tenants: TenantService) -> FirstAdministrator | None:
        """Make the first tenant and its first user, who may do everything, with a generated password; None if there are any.

        Of several managers that start at once on one database, one does it.
        """
        who = Scope.system("first start")
        with self._database.session(who) as session:
            # On PostgreSQL the unique names decide a race; on SQLite there is only one writer.
            if session.scalar(select(func.count()).select_from(UserRecord)):
                return None
            password = generate_password()
            tenant = tenants.create_in(session, FIRST_TENANT, who)
            user = self.users.create_in(session, tenant.tenant_id, FIRST_USER, password)
            session.add(
                GrantRecord(
                    id=new_id(),
                    tenant_id=tenant.tenant_id,
                    user_id=user.id,
                    role_id="provider",
                    on_tenant_id=None,
                    on_group_id=None,
                    created_at=self._clock(),
                    created_by=who.actor,
                )
            )
            session.flush()
            self._audit.record(
                session, who, "user.create", "user", user.id, "Made the first administrator.", tenant_id=tenant.tenant_id
            )
        return FirstAdministrator(FIRST_USER, password, tenant.tenant_id)

    def _check_allowed(self, user: UserRecord) -> None:
        with self._database.session(Scope.system("sign-in"), writes=False) as session:
            is_allowed = user.is_enabled and user.tenant_id in all_tenant_ids(session)
        if not is_allowed:
            raise NotSignedInError("account_disabled", "this account is disabled", hint="ask an administrator")

    def _start(self, user: UserRecord, password: str, address: str, user_agent: str) -> SignedIn:
        rehashed = self._passwords.hash(password) if self._passwords.is_outdated(user.password_hash) else None
        with self._database.session(Scope.system("sign-in")) as session:
            cookie, expires_at = self.sessions.start(session, user, address, user_agent)
            record = session.get(SignInRecord, user.id)
            if record is not None:
                record.failures, record.locked_until_at = 0, 0.0
                record.last_sign_in_at, record.last_address = self._clock(), address[:64]
            if rehashed:
                present = session.get(UserRecord, user.id)
                if present is not None and present.password_hash == user.password_hash:
                    present.password_hash = rehashed
            session.flush()
            self._record(session, user, "user.sign_in", f"{user.name} signed in.", address)
        return SignedIn(cookie, csrf_token(cookie), expires_at, self.sessions.recognise(cookie))

    def _note(self, user: UserRecord, action: str, address: str, reason: str) -> None:
        with self._database.session(Scope.system("sign-in")) as session:
            self._record(session, user, action, f"{user.name} could not sign in: {reason}.", address)

    def _record(self, session: Session, user: UserRecord, action: str, summary: str, address: str) -> None:
        who = Scope(frozenset({user.tenant_id}), f"user:{user.name}")
        self._audit.record(session, who, action, "user", user.id, summary, {"address": address})


def _wrong() -> NotSignedInError:
    return NotSignedInError("credentials_wrong", "the user name or the password is not right")
