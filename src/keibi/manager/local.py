"""What root on the manager's own computer can do without a password: it could read the database anyway, and this is audited."""

import time
from dataclasses import dataclass

from sqlalchemy import select

from keibi.errors import InputError
from keibi.manager.access.model import ALL_PERMISSIONS, GrantedRole, Principal
from keibi.manager.access.passwords import Passwords
from keibi.manager.access.service import AccessService
from keibi.manager.access.tables import GrantRecord, UserRecord
from keibi.manager.agents.access_tokens import AccessTokens
from keibi.manager.agents.challenges import Challenges
from keibi.manager.agents.service import EnrolmentService
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.alarms import AlarmService
from keibi.manager.config import ManagerConfig
from keibi.manager.database import Database, Scope
from keibi.manager.keys import SecretBox, load_or_make_key

KEY_SECONDS = 365 * 86400.0


@dataclass(frozen=True)
class LocalAccess:
    """Secrets for the command line and for this computer's agent; each is shown this once."""

    api_key: str
    enrolment_token: str


def grant_local_access(config: ManagerConfig, *, with_key: bool, with_token: bool) -> LocalAccess:
    """Make an API key for the command line and a token that enrols one computer within an hour, as the first administrator.

    Raises:
        InputError: the manager has never been started, so there is no administrator.
        TryLaterError: the database cannot be used.
    """
    database = Database(config.url)
    try:
        principal = _first_administrator(database)
        audit = AuditService(database)
        api_key = token = ""
        if with_key:
            box = SecretBox(load_or_make_key(config.path("keys", "secrets.key")))
            access = AccessService(database, audit, box)
            api_key = access.api_keys.create(
                principal, "command line of this computer", "administrator", expires_at=time.time() + KEY_SECONDS
            ).secret
        if with_token:
            key = load_or_make_key(config.path("keys", "agent-tokens.key"))
            enrolment = EnrolmentService(database, audit, AlarmService(database, audit), AccessTokens(key), Challenges(key))
            token = enrolment.create_token(principal, "this computer (keibi up)", lasts_seconds=3600.0).secret
        return LocalAccess(api_key, token)
    finally:
        database.dispose()


def is_first_password_good(config: ManagerConfig, name: str, password: str) -> bool:
    """Whether the first administrator still has the generated password."""
    database = Database(config.url)
    try:
        with database.session(Scope.system("local access"), writes=False) as session:
            stored = session.scalar(select(UserRecord.password_hash).where(UserRecord.name == name))
        return Passwords().matches(stored, password)
    finally:
        database.dispose()


def _first_administrator(database: Database) -> Principal:
    with database.session(Scope.system("local access"), writes=False) as session:
        user = session.scalar(
            select(UserRecord)
            .join(GrantRecord, GrantRecord.user_id == UserRecord.id)
            .where(GrantRecord.role_id == "provider")
            .order_by(UserRecord.id)
            .limit(1)
        )
    if user is None:
        raise InputError("no_administrator", "the manager has no administrator yet", hint="start it once: keibi up")
    return Principal(
        user_id=user.id,
        name=user.name,
        kind="session",
        tenant_ids=frozenset({user.tenant_id}),
        grants=(GrantedRole(ALL_PERMISSIONS),),
        current_tenant_id=user.tenant_id,
        home_id=user.tenant_id,
    )
