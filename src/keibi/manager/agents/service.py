"""Enrolment: tokens that let computers become known, and the proof of who an agent is afterwards."""

import hashlib
import secrets
import string
import time
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from keibi.contract.enrolment import (
    ACCESS_TOKEN_SECONDS,
    EnrolRequest,
    EnrolResponse,
    TokenRequest,
    TokenResponse,
    challenge_message,
    enrol_message,
)
from keibi.contract.names import new_id
from keibi.errors import AccessError, InputError, RefusedError
from keibi.manager.access.model import NotSignedInError, Principal
from keibi.manager.agents.access_tokens import AccessTokens
from keibi.manager.agents.challenges import Challenges
from keibi.manager.agents.model import EnrolmentToken, NewEnrolmentToken
from keibi.manager.agents.reports import keep_facts, storable
from keibi.manager.agents.tables import EnrolmentTokenRecord
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.alarms import AlarmService
from keibi.manager.computers.groups import find_group
from keibi.manager.computers.tables import ComputerRecord, ReportRecord
from keibi.manager.database import Database, Scope
from keibi.manager.paging import DEFAULT_LIMIT, Page, SortKey, page_of
from keibi.manager.tenants.tables import TenantRecord

HEARTBEAT_SECONDS = 60
MAX_LIFETIME_SECONDS = 366 * 86400.0
MAX_USES = 1_000_000
_ALPHABET = string.ascii_letters + string.digits

CheckPolicy = Callable[[Session, str, str], None]
"""Called with session, tenant id and policy id; raises InputError where the tenant has no such policy."""


class EnrolmentService:
    """Makes computers known, and recognises their agents."""

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        alarms: AlarmService,
        tokens: AccessTokens,
        challenges: Challenges,
        *,
        check_policy: CheckPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._audit = audit
        self._alarms = alarms
        self._tokens = tokens
        self._challenges = challenges
        self._check_policy = check_policy
        self._clock = clock

    # Tokens.

    def create_token(
        self,
        principal: Principal,
        name: str,
        *,
        group_id: str | None = None,
        policy_id: str | None = None,
        lasts_seconds: float = 86400.0,
        max_uses: int = 1,
    ) -> NewEnrolmentToken:
        """Make a token; computers enrolled with it come to this tenant, group and policy.

        Raises:
            AccessError: the principal may not make tokens there. InputError: a bad name, group, policy, time or count.
        """
        now = self._clock()
        name = name.strip()
        if not 1 <= len(name) <= 200 or not name.isprintable():
            raise InputError("token_name", "an enrolment token's name has 1 to 200 printable characters")
        if not 60 <= lasts_seconds <= MAX_LIFETIME_SECONDS or not 1 <= max_uses <= MAX_USES:
            raise InputError("token_limits", "an enrolment token lasts from a minute to a year, for 1 to 1,000,000 computers")
        with self._database.session(principal.scope()) as session:
            tenant_id = find_group(session, group_id).tenant_id if group_id else principal.home_tenant_id
            principal.require("tokens.manage", tenant_id=tenant_id, group_id=group_id)
            if policy_id is not None and self._check_policy is not None:
                self._check_policy(session, tenant_id, policy_id)
            secret = "ke_" + "".join(secrets.choice(_ALPHABET) for _ in range(40))
            record = EnrolmentTokenRecord(
                id=new_id(),
                tenant_id=tenant_id,
                name=name,
                prefix=secret[:10],
                hash=_hash(secret),
                group_id=group_id,
                policy_id=policy_id,
                created_at=now,
                created_by=principal.actor,
                expires_at=now + lasts_seconds,
                max_uses=max_uses,
                uses=0,
                is_revoked=False,
            )
            session.add(record)
            session.flush()
            self._audit.record(
                session,
                principal,
                "enrolment_token.create",
                "enrolment_token",
                record.id,
                f"Made the enrolment token {name} for {max_uses} computers.",
                {"group_id": group_id, "policy_id": policy_id, "expires_at": record.expires_at, "max_uses": max_uses},
                tenant_id=tenant_id,
            )
        return NewEnrolmentToken(_token(record, now), secret)

    def list_tokens(self, principal: Principal, cursor: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[EnrolmentToken]:
        """Return tokens, the newest first.

        Raises:
            AccessError: the principal may not manage tokens anywhere.
        """
        principal.require("tokens.manage")
        now = self._clock()
        statement = select(EnrolmentTokenRecord).where(
            EnrolmentTokenRecord.tenant_id.in_(principal.tenants_where("tokens.manage"))
        )
        order = [
            SortKey(EnrolmentTokenRecord.created_at, is_descending=True),
            SortKey(EnrolmentTokenRecord.id, is_descending=True),
        ]
        with self._database.session(principal.scope(), writes=False) as session:
            page = page_of(session, statement, order, cursor, limit)
        seen = [
            record
            for record in page.items
            if principal.may("tokens.manage", tenant_id=record.tenant_id, group_id=record.group_id)
        ]
        is_whole = len(seen) == len(page.items)
        return Page([_token(record, now) for record in seen], page.next_cursor, page.total if is_whole else None)

    def revoke_token(self, principal: Principal, token_id: str) -> EnrolmentToken:
        """Make a token worthless; computers enrolled with it stay.

        Raises:
            AccessError: the principal may not. InputError: there is none.
        """
        with self._database.session(principal.scope()) as session:
            record = session.get(EnrolmentTokenRecord, token_id)
            if record is None:
                raise InputError("token_not_found", f"there is no enrolment token {token_id!r}")
            principal.require("tokens.manage", tenant_id=record.tenant_id, group_id=record.group_id)
            record.is_revoked = True
            session.flush()
            self._audit.record(
                session,
                principal,
                "enrolment_token.revoke",
                "enrolment_token",
                token_id,
                f"Revoked the enrolment token {record.name}.",
                tenant_id=record.tenant_id,
            )
            return _token(record, self._clock())

    # Agents.

    def enrol(self, request: EnrolRequest) -> EnrolResponse:
        """Make a computer known. The same request again (its answer was lost) gives the same answer and counts once.

        Raises:
            AccessError: the token is not known, revoked, expired or used up; the tenant is disabled.
            RefusedError: a key without its private half, or one that another computer has; an alarm is raised for it.
        """
        _check_signature(request)
        refused: RefusedError | None = None
        with self._database.session(Scope.system("enrolment")) as session:
            token = session.scalar(
                select(EnrolmentTokenRecord).where(EnrolmentTokenRecord.hash == _hash(request.token)).with_for_update()
            )
            if token is None:
                raise AccessError("enrolment_token_unknown", "this enrolment token is not known", hint="make a new one")
            tenant = session.get(TenantRecord, token.tenant_id)
            if tenant is None or not tenant.is_enabled:
                raise AccessError("tenant_disabled", "this customer is disabled at the manager")
            known = session.scalar(select(ComputerRecord).where(ComputerRecord.public_key == request.public_key))
            if known is not None:
                is_same = known.machine_id == storable(request.facts.machine_id, 64) and known.tenant_id == token.tenant_id
                if is_same and known.is_enabled:
                    return EnrolResponse(known.id, tenant.name, HEARTBEAT_SECONDS)
                refused = self._refuse_key(session, known, request)
            else:
                computer = self._add(session, token, request)
        if refused is not None:
            raise refused
        return EnrolResponse(computer.id, tenant.name, HEARTBEAT_SECONDS)

    def challenge(self, computer_id: str) -> bytes:
        """Return a nonce to sign; for unknown computers too, so that ids cannot be tried out."""
        return self._challenges.issue(computer_id)

    def grant_access(self, request: TokenRequest) -> TokenResponse:
        """Trade a signed challenge for an access token.

        Raises:
            NotSignedInError: an old, foreign or used challenge, an unknown computer or a wrong signature.
            AccessError: the computer or its tenant is disabled; told only to who holds the key.
        """
        self._challenges.check(request.computer_id, request.nonce)
        with self._database.session(Scope.system("access token"), writes=False) as session:
            computer = session.get(ComputerRecord, request.computer_id)
            tenant = session.get(TenantRecord, computer.tenant_id) if computer else None
        message = challenge_message(request.computer_id, request.nonce)
        if computer is None or not _is_signed(computer.public_key, request.signature, message):
            raise NotSignedInError(
                "identity_unknown",
                "the manager does not know this computer, or not with this key",
                hint="enrol it again with a new token",
            )
        self._challenges.use(request.nonce)
        if not computer.is_enabled:
            raise AccessError("computer_disabled", "this computer is disabled at the manager", hint="enable it there")
        if tenant is None or not tenant.is_enabled:
            raise AccessError("tenant_disabled", "this customer is disabled at the manager")
        return TokenResponse(self._tokens.issue(computer.id, computer.tenant_id), ACCESS_TOKEN_SECONDS)

    def _add(self, session: Session, token: EnrolmentTokenRecord, request: EnrolRequest) -> ComputerRecord:
        now = self._clock()
        if token.is_revoked:
            raise AccessError("enrolment_token_revoked", "this enrolment token was revoked", hint="make a new one")
        if now >= token.expires_at:
            raise AccessError("enrolment_token_expired", "this enrolment token has expired", hint="make a new one")
        # In one statement, although the row is locked: SQLite has no row locks, and the count must never be passed.
        counted = session.execute(
            update(EnrolmentTokenRecord)
            .where(EnrolmentTokenRecord.id == token.id, EnrolmentTokenRecord.uses < EnrolmentTokenRecord.max_uses)
            .values(uses=EnrolmentTokenRecord.uses + 1)
            .execution_options(synchronize_session=False)
        )
        if not isinstance(counted, CursorResult) or counted.rowcount != 1:
            raise AccessError(
                "enrolment_token_used",
                f"this enrolment token was used {token.max_uses} times already, as often as it may be",
                hint="make a new one",
            )
        facts = request.facts
        twin = session.scalar(
            select(ComputerRecord)
            .where(
                ComputerRecord.tenant_id == token.tenant_id,
                ComputerRecord.machine_id == storable(facts.machine_id, 64),
                ComputerRecord.is_enabled,
            )
            .limit(1)
        )
        computer = ComputerRecord(
            id=new_id(),
            tenant_id=token.tenant_id,
            display_name=storable(facts.hostname, 255) or "unnamed",
            group_id=token.group_id,
            policy_id=token.policy_id,
            importance="normal",
            tags="",
            note="",
            is_enabled=True,
            public_key=request.public_key,
            machine_id=storable(facts.machine_id, 64),
            enrolled_at=now,
            enrolment_token_id=token.id,
            version=1,
        )
        session.add(computer)
        session.flush()
        report = ReportRecord(
            id=computer.id,
            tenant_id=computer.tenant_id,
            hostname="",
            heartbeat_seconds=HEARTBEAT_SECONDS,
            agent_version=storable(request.agent_version, 64),
        )
        keep_facts(report, facts, "")
        session.add(report)
        session.flush()
        if twin is not None:
            detail = f"Enrolled as {computer.id} ({computer.display_name}) with another key, on the machine of {twin.id}."
            self._alarms.raise_in(session, twin, "machine_with_other_key", detail)
        self._audit.record(
            session,
            Scope(frozenset({token.tenant_id}), f"enrolment_token:{token.name}"),
            "computer.enrol",
            "computer",
            computer.id,
            f"Enrolled the computer {computer.display_name}.",
            {"token_id": token.id, "machine_id": computer.machine_id, "agent_version": report.agent_version},
        )
        return computer

    def _refuse_key(self, session: Session, known: ComputerRecord, request: EnrolRequest) -> RefusedError:
        who = f"{storable(request.facts.hostname, 255)} (machine {storable(request.facts.machine_id, 64)})"
        detail = f"{who} tried to enrol with the key of this computer."
        self._alarms.raise_in(session, known, "key_on_other_machine", detail)
        return RefusedError(
            "key_in_use",
            "this key belongs to a computer that is enrolled already",
            hint="was the disk copied? remove the agent's identity on the copy and enrol it again",
        )


def _check_signature(request: EnrolRequest) -> None:
    if not _is_signed(request.public_key, request.signature, enrol_message(request.public_key, request.token)):
        raise RefusedError("enrolment_signature", "the agent did not prove that it holds the key it wants to enrol")


def _is_signed(public_key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):  # ValueError: not a key at all
        return False
    return True


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _token(record: EnrolmentTokenRecord, now: float) -> EnrolmentToken:
    return EnrolmentToken(
        token_id=record.id,
        tenant_id=record.tenant_id,
        name=record.name,
        prefix=record.prefix,
        group_id=record.group_id,
        policy_id=record.policy_id,
        created_at=record.created_at,
        created_by=record.created_by,
        expires_at=record.expires_at,
        max_uses=record.max_uses,
        uses=record.uses,
        is_revoked=record.is_revoked,
        is_usable=not record.is_revoked and now < record.expires_at and record.uses < record.max_uses,
    )
