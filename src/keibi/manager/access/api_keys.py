"""Keys for programs: `kb_<prefix>_<secret>`, shown once."""

import hashlib
import secrets
import string
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select, update

from keibi.contract.names import new_id
from keibi.errors import AccessError, InputError
from keibi.manager.access.model import GrantedRole, NotSignedInError, Principal
from keibi.manager.access.principals import find_role, principal_of
from keibi.manager.access.rights import check_may_give
from keibi.manager.access.tables import ApiKeyRecord, UserRecord
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database, Scope
from keibi.manager.tenants.service import all_tenant_ids

TOUCH_SECONDS = 60.0
MAX_LIFETIME_SECONDS = 5 * 365 * 86400.0
_ALPHABET = string.ascii_letters + string.digits
_PREFIX_LETTERS = 8
_SECRET_LETTERS = 43  # 256 bits


@dataclass(frozen=True)
class ApiKey:
    """One key as it is listed: everything but the secret."""

    key_id: str
    tenant_id: str
    name: str
    prefix: str
    role_id: str
    owner_name: str
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    is_revoked: bool


@dataclass(frozen=True)
class NewApiKey:
    """A key just made; `secret` is the whole key, for the Authorization header, and is shown this once."""

    key: ApiKey
    secret: str


class ApiKeys:
    """Makes, recognises and revokes API keys. A key never can do more than its owner at that moment."""

    def __init__(self, database: Database, audit: AuditService, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._audit = audit
        self._clock = clock

    def create(
        self, principal: Principal, name: str, role_id: str, *, tenant_id: str | None = None, expires_at: float | None = None
    ) -> NewApiKey:
        """Make a key of the principal's for one tenant (None: the home tenant).

        Raises:
            AccessError: the principal may not make keys there, or lacks what the role gives.
            InputError: no such role, a bad name or end.
        """
        _check_is_person(principal)
        tenant_id = tenant_id or principal.home_tenant_id
        principal.require("api_keys.manage", tenant_id=tenant_id)
        now = self._clock()
        if expires_at is not None and not now < expires_at <= now + MAX_LIFETIME_SECONDS:
            raise InputError("expiry_invalid", "a key ends in the future, within five years")
        name = name.strip()
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise InputError("key_name", "a key's name has 1 to 100 printable characters")
        with self._database.session(Scope(frozenset({tenant_id}), principal.actor)) as session:
            role = find_role(session, role_id)
            if role is None:
                raise InputError("role_not_found", f"there is no role {role_id!r}")
            check_may_give(principal, role, tenant_id)
            prefix = "".join(secrets.choice(_ALPHABET) for _ in range(_PREFIX_LETTERS))
            secret = f"kb_{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LETTERS))
            record = ApiKeyRecord(
                id=new_id(),
                tenant_id=tenant_id,
                name=name,
                prefix=prefix,
                hash=_hash(secret),
                user_id=principal.user_id,
                role_id=role.role_id,
                created_at=now,
                created_by=principal.actor,
                expires_at=expires_at,
                is_revoked=False,
            )
            session.add(record)
            session.flush()
            self._audit.record(
                session,
                principal,
                "api_key.create",
                "api_key",
                record.id,
                f"Made the API key {name} ({prefix}…) with the role {role.name}.",
                {"role": role.role_id, "expires_at": expires_at},
                tenant_id=tenant_id,
            )
        return NewApiKey(_key(record, principal.name), secret)

    def list(self, principal: Principal) -> list[ApiKey]:
        """Return the keys of the tenants where the principal may manage them, the newest first.

        Raises:
            AccessError: that is nowhere.
        """
        principal.require("api_keys.manage")
        tenants = [
            tenant for tenant in principal.tenants_where("api_keys.manage") if principal.may("api_keys.manage", tenant_id=tenant)
        ]
        with self._database.session(Scope.system("api keys"), writes=False) as session:
            rows = session.execute(
                select(ApiKeyRecord, UserRecord.name)
                .join(UserRecord, UserRecord.id == ApiKeyRecord.user_id)
                .where(ApiKeyRecord.tenant_id.in_(tenants))
                .order_by(ApiKeyRecord.created_at.desc())
            )
            return [_key(record, owner) for record, owner in rows]

    def revoke(self, principal: Principal, key_id: str) -> None:
        """Make a key worthless from now on.

        Raises:
            AccessError: the principal may not. InputError: there is none.
        """
        with self._database.session(principal.scope()) as session:
            record = session.get(ApiKeyRecord, key_id)
            if record is None:
                raise InputError("api_key_not_found", f"there is no API key {key_id!r}")
            principal.require("api_keys.manage", tenant_id=record.tenant_id)
            record.is_revoked = True
            self._audit.record(
                session,
                principal,
                "api_key.revoke",
                "api_key",
                key_id,
                f"Revoked the API key {record.name} ({record.prefix}…).",
                tenant_id=record.tenant_id,
            )

    def recognise(self, secret: str) -> Principal:
        """Return the principal of a key.

        Raises:
            NotSignedInError: it is no key, revoked or expired, or its owner is disabled.
        """
        if len(secret) != len("kb__") + _PREFIX_LETTERS + _SECRET_LETTERS or not secret.startswith("kb_"):
            raise _unknown()
        now = self._clock()
        with self._database.session(Scope.system("api key"), writes=False) as session:
            record = session.scalar(select(ApiKeyRecord).where(ApiKeyRecord.hash == _hash(secret)))
            if record is None:
                raise _unknown()
            if record.is_revoked:
                raise NotSignedInError("api_key_revoked", f"the API key {record.prefix}… was revoked", hint="make a new one")
            if record.expires_at is not None and now >= record.expires_at:
                raise NotSignedInError("api_key_expired", f"the API key {record.prefix}… has expired", hint="make a new one")
            owner = session.get(UserRecord, record.user_id)
            tenants = all_tenant_ids(session)
            if owner is None or not owner.is_enabled or not {owner.tenant_id, record.tenant_id} <= tenants:
                raise NotSignedInError("api_key_disabled", f"the owner of the API key {record.prefix}… is disabled")
            role = find_role(session, record.role_id)
            person = principal_of(session, owner, "api_key")
        # Not more than the role, and not more than the owner has left.
        allowed = frozenset(
            permission for permission in (role.permissions if role else ()) if person.may(permission, tenant_id=record.tenant_id)
        )
        if record.last_used_at is None or now - record.last_used_at >= TOUCH_SECONDS:
            self._touch(record.id, now)
        return Principal(
            user_id=owner.id,
            name=record.name,
            kind="api_key",
            tenant_ids=frozenset({record.tenant_id}),
            grants=(GrantedRole(allowed, record.tenant_id),),
            current_tenant_id=record.tenant_id,
            home_id=owner.tenant_id,
            language=owner.language,
            time_zone=owner.time_zone,
            session_id=record.id,
        )

    def _touch(self, key_id: str, now: float) -> None:
        with self._database.session(Scope.system("api key")) as session:
            session.execute(
                update(ApiKeyRecord)
                .where(ApiKeyRecord.id == key_id)
                .values(last_used_at=now)
                .execution_options(synchronize_session=False)
            )


def _check_is_person(principal: Principal) -> None:
    # A key that could make keys would outlive its own revocation.
    if principal.kind != "session":
        raise AccessError("not_a_person", "an API key cannot make API keys", hint="sign in")


def _unknown() -> NotSignedInError:
    return NotSignedInError("api_key_unknown", "this API key is not known", hint="check KEIBI_API_KEY, or make a new key")


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _key(record: ApiKeyRecord, owner: str) -> ApiKey:
    return ApiKey(
        record.id,
        record.tenant_id,
        record.name,
        record.prefix,
        record.role_id,
        owner,
        record.created_at,
        record.expires_at,
        record.last_used_at,
        record.is_revoked,
    )
