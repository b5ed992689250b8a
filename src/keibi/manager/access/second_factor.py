"""One-time codes (TOTP, RFC 6238) and recovery codes."""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pyotp
from sqlalchemy import CursorResult, update
from sqlalchemy.orm import Session

from keibi.errors import AccessError, InputError
from keibi.manager.access.model import NotSignedInError, Principal
from keibi.manager.access.passwords import Passwords
from keibi.manager.access.tables import SignInRecord, UserRecord
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database, Scope
from keibi.manager.keys import SecretBox

STEP_SECONDS = 30
STEPS_AROUND = 1
"""A code of the step before or after is taken too: clocks differ, and people type slowly."""
RECOVERY_CODES = 10
ISSUER = "Keibi"


@dataclass(frozen=True)
class TotpEnrolment:
    """What the authenticator app needs; shown once. Nothing changes for signing in until a code confirms it."""

    secret: str  # base32
    uri: str  # otpauth://…, for a QR code


class SecondFactor:
    """Setting up and checking one-time codes. Secrets are encrypted in the database with the manager's key file."""

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        passwords: Passwords,
        box: SecretBox,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._audit = audit
        self._passwords = passwords
        self._box = box
        self._clock = clock

    def enrol(self, principal: Principal) -> TotpEnrolment:
        """Make a new secret for the principal; `confirm` turns it on.

        Raises:
            AccessError: not a signed-in person. InputError: it is on already.
        """
        user_id = _person(principal)
        secret = pyotp.random_base32()
        with self._database.session(Scope.system("totp")) as session:
            record = _sign_in(session, user_id)
            if record.totp_is_confirmed:
                raise InputError("totp_exists", "one-time codes are on already", hint="turn them off first")
            record.totp_secret = self._box.seal(secret.encode(), user_id)
            record.totp_last_step = 0
        return TotpEnrolment(secret, pyotp.TOTP(secret).provisioning_uri(name=principal.name, issuer_name=ISSUER))

    def confirm(self, principal: Principal, code: str) -> list[str]:
        """Turn one-time codes on; returns the recovery codes, shown once.

        Raises:
            InputError: the code is wrong, or nothing waits to be confirmed.
        """
        user_id = _person(principal)
        codes = [f"{secrets.token_hex(3)}-{secrets.token_hex(3)}" for _ in range(RECOVERY_CODES)]
        with self._database.session(Scope.system("totp")) as session:
            record = _sign_in(session, user_id)
            if record.totp_secret is None or record.totp_is_confirmed:
                raise InputError("totp_not_waiting", "no one-time codes wait to be confirmed", hint="begin again")
            step = self._step_of(record, code)
            if step is None:
                raise InputError("totp_wrong", "this code is not right", hint="is the clock of your phone right?")
            record.totp_is_confirmed = True
            record.totp_last_step = step
            record.recovery_hashes = msgspec.json.encode([_hash(recovery) for recovery in codes]).decode()
            self._audit.record(
                session,
                principal,
                "user.totp_on",
                "user",
                user_id,
                f"{principal.name} turned one-time codes on.",
                tenant_id=record.tenant_id,
            )
        return codes

    def is_on(self, principal: Principal) -> bool:
        """Whether the principal's own account asks for one-time codes."""
        with self._database.session(Scope.system("totp"), writes=False) as session:
            record = session.get(SignInRecord, principal.user_id)
            return record is not None and record.totp_is_confirmed

    def turn_off(self, principal: Principal, password: str) -> None:
        """Turn one-time codes off; asks for the password again, because a session may be left open.

        Raises:
            InputError: the password is wrong.
        """
        user_id = _person(principal)
        with self._database.session(Scope.system("totp"), writes=False) as session:
            user = session.get(UserRecord, user_id)
            stored = user.password_hash if user else None
        if not self._passwords.matches(stored, password):
            raise InputError("password_wrong", "this password is not right")
        with self._database.session(Scope.system("totp")) as session:
            self.clear(session, user_id)
            record = _sign_in(session, user_id)
            self._audit.record(
                session,
                principal,
                "user.totp_off",
                "user",
                user_id,
                f"{principal.name} turned one-time codes off.",
                tenant_id=record.tenant_id,
            )

    def clear(self, session: Session, user_id: str) -> None:
        """Forget a user's secret and recovery codes, in a session of the system."""
        record = _sign_in(session, user_id)
        record.totp_secret, record.totp_is_confirmed, record.totp_last_step, record.recovery_hashes = None, False, 0, "[]"
        session.flush()

    def check(self, user_id: str, code: str) -> None:
        """Do nothing if the user has no one-time codes, or `code` is right: one of the app's, once each, or a recovery code.

        Raises:
            NotSignedInError: a code is needed, wrong, or was used before.
        """
        with self._database.session(Scope.system("sign-in"), writes=False) as session:
            record = _sign_in(session, user_id)
        if not record.totp_is_confirmed:
            return
        code = code.strip()
        if not code:
            raise NotSignedInError("totp_required", "a one-time code is needed", hint="open your authenticator app")
        step = self._step_of(record, code)
        if step is not None and self._take_step(user_id, step):
            return
        if step is not None:
            raise NotSignedInError("totp_used", "this one-time code was used already", hint="wait for the next one")
        if not self._take_recovery(user_id, code):
            raise NotSignedInError("totp_wrong", "this one-time code is not right", hint="is the clock of your phone right?")

    def _step_of(self, record: SignInRecord, code: str) -> int | None:
        if record.totp_secret is None or len(code.strip()) != 6 or not code.strip().isdecimal():
            return None
        totp = pyotp.TOTP(self._box.open(record.totp_secret, record.id).decode())
        now = int(self._clock()) // STEP_SECONDS
        steps = range(now - STEPS_AROUND, now + STEPS_AROUND + 1)
        return next((step for step in steps if secrets.compare_digest(totp.generate_otp(step), code.strip())), None)

    def _take_step(self, user_id: str, step: int) -> bool:
        """Use a step up, in one statement: of two sign-ins with the same code at once, one fails."""
        with self._database.session(Scope.system("sign-in")) as session:
            result = session.execute(
                update(SignInRecord)
                .where(SignInRecord.id == user_id, SignInRecord.totp_last_step < step)
                .values(totp_last_step=step)
                .execution_options(synchronize_session=False)
            )
            return isinstance(result, CursorResult) and result.rowcount == 1

    def _take_recovery(self, user_id: str, code: str) -> bool:
        with self._database.session(Scope.system("sign-in")) as session:
            record = session.get(SignInRecord, user_id, with_for_update=True)
            if record is None:
                return False
            left = msgspec.json.decode(record.recovery_hashes, type=list[str])
            if _hash(code.lower()) not in left:
                return False
            left.remove(_hash(code.lower()))
            record.recovery_hashes = msgspec.json.encode(left).decode()
            self._audit.record(
                session,
                Scope(frozenset({record.tenant_id}), f"user:{user_id}"),
                "user.recovery_code",
                "user",
                user_id,
                f"A recovery code was used; {len(left)} are left.",
            )
            return True


def _person(principal: Principal) -> str:
    if principal.kind != "session":
        raise AccessError("not_a_person", "one-time codes are for people who sign in, not for API keys")
    return principal.user_id


def _sign_in(session: Session, user_id: str) -> SignInRecord:
    record = session.get(SignInRecord, user_id)
    if record is None:
        raise InputError("user_not_found", f"there is no user {user_id!r}")
    return record


def _hash(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
