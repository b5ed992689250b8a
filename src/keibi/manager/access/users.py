"""Users and their grants."""

import re
import time
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.errors import AccessError, InputError
from keibi.manager.access.model import Principal
from keibi.manager.access.passwords import Passwords, check_password_rules
from keibi.manager.access.principals import find_role
from keibi.manager.access.rights import check_may_give
from keibi.manager.access.second_factor import SecondFactor
from keibi.manager.access.sessions import Sessions
from keibi.manager.access.tables import GrantRecord, SignInRecord, UserRecord
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.groups import find_group
from keibi.manager.computers.tables import GroupRecord
from keibi.manager.database import Database, Scope
from keibi.manager.paging import DEFAULT_LIMIT, Page, SortKey, page_of
from keibi.manager.tenants.tables import TenantRecord

NAME_PATTERN = re.compile(r"[\w.@+-]{2,100}")
LANGUAGES = ("en", "ja")
THEMES = ("system", "light", "dark")


@dataclass(frozen=True)
class Grant:
    """A role given to a user, for all tenants, one tenant, or a group of computers in it."""

    grant_id: str
    role_id: str
    role_name: str
    tenant_id: str | None
    tenant_name: str
    group_id: str | None
    group_name: str


@dataclass(frozen=True)
class User:
    """One person as they are listed."""

    user_id: str
    tenant_id: str
    name: str
    full_name: str
    email: str
    is_enabled: bool
    has_totp: bool
    locked_until_at: float | None
    last_sign_in_at: float | None
    created_at: float
    must_change_password: bool
    language: str
    theme: str
    time_zone: str
    version: int
    grants: tuple[Grant, ...] = ()


class UserService:
    """Users of the tenants where the principal may see or manage them."""

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        passwords: Passwords,
        sessions: Sessions,
        second_factor: SecondFactor,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._audit = audit
        self._passwords = passwords
        self._sessions = sessions
        self._second_factor = second_factor
        self._clock = clock

    def list(self, principal: Principal, cursor: str | None = None, limit: int = DEFAULT_LIMIT, text: str = "") -> Page[User]:
        """Return users by name.

        Raises:
            AccessError: the principal may not see users.
        """
        principal.require("users.view")
        tenants = [tenant for tenant in principal.tenants_where("users.view") if principal.may("users.view", tenant_id=tenant)]
        statement = select(UserRecord).where(UserRecord.tenant_id.in_(tenants))
        if text:
            statement = statement.where(
                UserRecord.name.icontains(text, autoescape=True) | UserRecord.full_name.icontains(text, autoescape=True)
            )
        with self._database.session(principal.scope(), writes=False) as session:
            page = page_of(session, statement, [SortKey(UserRecord.name_key), SortKey(UserRecord.id)], cursor, limit)
            return page.map(lambda record: self._user(session, principal, record))

    def get(self, principal: Principal, user_id: str) -> User:
        """Return one user.

        Raises:
            InputError: there is none that the principal may see.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            return self._user(session, principal, self._found(session, principal, user_id, "users.view"))

    def create(
        self,
        principal: Principal,
        name: str,
        password: str,
        *,
        full_name: str = "",
        email: str = "",
        language: str = "en",
        must_change_password: bool = True,
    ) -> User:
        """Make a user in the home tenant, without any grant yet.

        Raises:
            AccessError: the principal may not. InputError: a bad or taken name, a weak password.
        """
        tenant_id = principal.home_tenant_id
        principal.require("users.manage", tenant_id=tenant_id)
        with self._database.session(Scope.system(f"users for {principal.actor}")) as session:
            record = self.create_in(
                session,
                tenant_id,
                name,
                password,
                full_name=full_name,
                email=email,
                language=language,
                must_change_password=must_change_password,
            )
            self._audit.record(
                session, principal, "user.create", "user", record.id, f"Made the user {record.name}.", tenant_id=tenant_id
            )
            return self._user(session, principal, record)

    def create_in(
        self,
        session: Session,
        tenant_id: str,
        name: str,
        password: str,
        *,
        full_name: str = "",
        email: str = "",
        language: str = "en",
        must_change_password: bool = False,
    ) -> UserRecord:
        """Make a user within a session of the system; for `create` and for the first start."""
        name = name.strip()
        if not NAME_PATTERN.fullmatch(name):
            raise InputError("user_name", f"{name[:100]!r} is not a user name", hint="2 to 100 letters, digits or . @ + - _")
        # Names are unique over all tenants: signing in asks for no tenant.
        if session.scalar(select(UserRecord.id).where(UserRecord.name_key == name.casefold())):
            raise InputError("user_exists", f"the user name {name!r} is taken")
        check_password_rules(password, user_name=name)
        now = self._clock()
        record = UserRecord(
            id=new_id(),
            tenant_id=tenant_id,
            name=name,
            name_key=name.casefold(),
            full_name=full_name.strip()[:200],
            email=email.strip()[:254],
            password_hash=self._passwords.hash(password),
            password_changed_at=now,
            must_change_password=must_change_password,
            is_enabled=True,
            language=_one_of(language, LANGUAGES, "language"),
            theme="system",
            time_zone="UTC",
            created_at=now,
            version=1,
        )
        session.add(record)
        session.flush()
        session.add(
            SignInRecord(
                id=record.id, tenant_id=tenant_id, failures=0, locked_until_at=0.0, totp_last_step=0, recovery_hashes="[]"
            )
        )
        session.flush()
        return record

    def change(
        self,
        principal: Principal,
        user_id: str,
        *,
        full_name: str | None = None,
        email: str | None = None,
        is_enabled: bool | None = None,
        expected_version: int | None = None,
    ) -> User:
        """Change a user; disabling ends all their sessions, and their API keys are refused, at once.

        Raises:
            AccessError: the principal may not, or the user has rights that the principal lacks.
            InputError: no such user, the principal themselves is to be disabled, or changed meanwhile.
        """
        with self._database.session(principal.scope()) as session:
            record = self._found(session, principal, user_id, "users.manage")
            self._check_not_above(session, principal, record)
            if expected_version is not None and expected_version != record.version:
                raise InputError("changed_meanwhile", "somebody else changed this user meanwhile", hint="load it again")
            if is_enabled is False and user_id == principal.user_id:
                raise InputError("user_is_self", "you cannot disable yourself", hint="ask another administrator")
            if full_name is not None:
                record.full_name = full_name.strip()[:200]
            if email is not None:
                record.email = email.strip()[:254]
            if is_enabled is not None:
                record.is_enabled = is_enabled
                if not is_enabled:
                    self._sessions.end_all(session, user_id)
            session.flush()
            what = {None: "Changed", True: "Enabled", False: "Disabled"}[is_enabled]
            self._audit.record(
                session,
                principal,
                f"user.{'change' if is_enabled is None else 'enable' if is_enabled else 'disable'}",
                "user",
                user_id,
                f"{what} the user {record.name}.",
                tenant_id=record.tenant_id,
            )
            return self._user(session, principal, record)

    def change_own(self, principal: Principal, *, language: str | None, theme: str | None, time_zone: str | None) -> User:
        """Keep what a person wants to see.

        Raises:
            InputError: an unknown language, theme or time zone.
        """
        with self._database.session(Scope.system("preferences")) as session:
            record = _user_record(session, principal.user_id)
            if language is not None:
                record.language = _one_of(language, LANGUAGES, "language")
            if theme is not None:
                record.theme = _one_of(theme, THEMES, "theme")
            if time_zone is not None:
                if time_zone not in zoneinfo.available_timezones():
                    raise InputError("time_zone_unknown", f"{time_zone[:64]!r} is not a time zone", hint="for example Asia/Tokyo")
                record.time_zone = time_zone
            session.flush()
            return self._user(session, principal, record)

    def change_own_password(self, principal: Principal, old: str, new: str) -> None:
        """Change the principal's own password and end their other sessions.

        Raises:
            InputError: the old one is wrong, or the new one weak or the same. AccessError: not a person.
        """
        if principal.kind != "session":
            raise AccessError("not_a_person", "an API key has no password")
        with self._database.session(Scope.system("password"), writes=False) as session:
            stored = _user_record(session, principal.user_id).password_hash
        if not self._passwords.matches(stored, old):
            raise InputError("password_wrong", "the present password is not right")
        if old == new:
            raise InputError("password_weak", "the new password is the old one")
        self._set_password(principal, principal.user_id, new, must_change=False, keep_session=principal.session_id)

    def reset_password(self, principal: Principal, user_id: str, new: str) -> None:
        """Give a user another password, which they must change; ends all their sessions.

        Raises:
            AccessError: the principal may not, or the user has rights that the principal lacks. InputError: a weak password.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            self._check_not_above(session, principal, self._found(session, principal, user_id, "users.manage"))
        self._set_password(principal, user_id, new, must_change=True)

    def unlock(self, principal: Principal, user_id: str, forgive: Callable[[str], None]) -> None:
        """Let a locked-out user try again."""
        with self._database.session(principal.scope()) as session:
            record = self._found(session, principal, user_id, "users.manage")
            self._check_not_above(session, principal, record)
            self._audit.record(
                session, principal, "user.unlock", "user", user_id, f"Unlocked {record.name}.", tenant_id=record.tenant_id
            )
        forgive(user_id)

    def clear_totp(self, principal: Principal, user_id: str) -> None:
        """Turn a user's one-time codes off, for somebody who lost their phone."""
        with self._database.session(principal.scope()) as session:
            record = self._found(session, principal, user_id, "users.manage")
            self._check_not_above(session, principal, record)
            self._second_factor.clear(session, user_id)
            self._audit.record(
                session,
                principal,
                "user.totp_off",
                "user",
                user_id,
                f"Turned off the one-time codes of {record.name}.",
                tenant_id=record.tenant_id,
            )

    def give(
        self, principal: Principal, user_id: str, role_id: str, *, tenant_id: str | None = None, group_id: str | None = None
    ) -> User:
        """Give a user a role: for a tenant, for a group of computers, or (tenant None) for all tenants.

        Raises:
            AccessError: the principal may not manage users, or lacks what the role gives there.
            InputError: no such user, role or group; given already.
        """
        with self._database.session(principal.scope()) as session:
            record = self._found(session, principal, user_id, "users.manage")
            if group_id is not None:
                tenant_id = find_group(session, group_id).tenant_id
            role = find_role(session, role_id)
            if role is None or (role.tenant_id is not None and tenant_id != role.tenant_id):
                raise InputError("role_not_found", f"there is no role {role_id!r} for that customer")
            check_may_give(principal, role, tenant_id, group_id)
            same = select(GrantRecord.id).where(
                GrantRecord.user_id == user_id,
                GrantRecord.role_id == role_id,
                GrantRecord.on_tenant_id == tenant_id,
                GrantRecord.on_group_id == group_id,
            )
            if session.scalar(same):
                raise InputError("grant_exists", f"{record.name} has the role {role.name} there already")
            grant = GrantRecord(
                id=new_id(),
                tenant_id=record.tenant_id,
                user_id=user_id,
                role_id=role_id,
                on_tenant_id=tenant_id,
                on_group_id=group_id,
                created_at=self._clock(),
                created_by=principal.actor,
            )
            session.add(grant)
            session.flush()
            self._audit.record(
                session,
                principal,
                "grant.create",
                "user",
                user_id,
                f"Gave {record.name} the role {role.name}.",
                {"role": role_id, "tenant": tenant_id, "group": group_id},
                tenant_id=record.tenant_id,
            )
            return self._user(session, principal, record)

    def take_back(self, principal: Principal, user_id: str, grant_id: str) -> User:
        """Take a role back from a user.

        Raises:
            AccessError: the principal may not, or lacks what the role gives. InputError: no such grant, or the last of its kind.
        """
        with self._database.session(principal.scope()) as session:
            record = self._found(session, principal, user_id, "users.manage")
            grant = session.get(GrantRecord, grant_id)
            if grant is None or grant.user_id != user_id:
                raise InputError("grant_not_found", f"{record.name} has no grant {grant_id!r}")
            role = find_role(session, grant.role_id)
            if role is not None:
                check_may_give(principal, role, grant.on_tenant_id, grant.on_group_id)
            if grant.role_id == "provider":
                others = session.scalar(
                    select(func.count())
                    .select_from(GrantRecord)
                    .join(UserRecord, UserRecord.id == GrantRecord.user_id)
                    .where(GrantRecord.role_id == "provider", GrantRecord.id != grant_id, UserRecord.is_enabled)
                )
                if not others:
                    raise InputError("grant_conflict", "this is the last provider: nobody could manage customers any more")
            session.delete(grant)
            session.flush()
            self._audit.record(
                session,
                principal,
                "grant.remove",
                "user",
                user_id,
                f"Took the role {role.name if role else grant.role_id} from {record.name}.",
                {"role": grant.role_id, "tenant": grant.on_tenant_id, "group": grant.on_group_id},
                tenant_id=record.tenant_id,
            )
            return self._user(session, principal, record)

    def _set_password(self, who: Principal | Scope, user_id: str, new: str, *, must_change: bool, keep_session: str = "") -> None:
        with self._database.session(Scope.system("password"), writes=False) as session:
            check_password_rules(new, user_name=_user_record(session, user_id).name)
        # Hashed outside of a writing session: it takes long.
        hashed = self._passwords.hash(new)
        with self._database.session(Scope.system("password")) as session:
            record = _user_record(session, user_id)
            record.password_hash = hashed
            record.password_changed_at = self._clock()
            record.must_change_password = must_change
            self._sessions.end_all(session, user_id, except_id=keep_session)
            session.flush()
            self._audit.record(
                session,
                who,
                "user.password",
                "user",
                user_id,
                f"Changed the password of {record.name}.",
                tenant_id=record.tenant_id,
            )

    def set_password_by_name(self, name: str, new: str) -> str:
        """Give a user another password and return the user's id; for the manager's own computer.

        Raises:
            InputError: no such user, or a weak password.
        """
        with self._database.session(Scope.system("password"), writes=False) as session:
            user_id = session.scalar(select(UserRecord.id).where(UserRecord.name_key == name.casefold()))
        if user_id is None:
            raise InputError("user_not_found", f"there is no user {name!r}")
        self._set_password(Scope.system("manager's own computer"), user_id, new, must_change=False)
        return user_id

    def _found(self, session: Session, principal: Principal, user_id: str, permission: str) -> UserRecord:
        record = session.get(UserRecord, user_id)
        if record is None or not principal.may("users.view", tenant_id=record.tenant_id):
            raise InputError("user_not_found", f"there is no user {user_id!r}")
        principal.require(permission, tenant_id=record.tenant_id)
        return record

    def _check_not_above(self, session: Session, principal: Principal, record: UserRecord) -> None:
        """Whoever controls an account has its rights: so nobody may manage one that has more than they have."""
        if record.id == principal.user_id:
            return
        for grant in session.scalars(select(GrantRecord).where(GrantRecord.user_id == record.id)):
            role = find_role(session, grant.role_id)
            if role is None:  # another tenant's own role, which the principal cannot see and so cannot have
                raise AccessError("more_than_own", f"{record.name} has rights that you lack", hint="ask a provider")
            check_may_give(principal, role, grant.on_tenant_id, grant.on_group_id)

    def _user(self, session: Session, principal: Principal, record: UserRecord) -> User:
        sign_in = session.get(SignInRecord, record.id)
        now = self._clock()
        locked = sign_in.locked_until_at if sign_in and sign_in.locked_until_at > now else None
        grants = [
            _grant(session, grant)
            for grant in session.scalars(
                select(GrantRecord).where(GrantRecord.user_id == record.id).order_by(GrantRecord.created_at)
            )
        ]
        return User(
            user_id=record.id,
            tenant_id=record.tenant_id,
            name=record.name,
            full_name=record.full_name,
            email=record.email,
            is_enabled=record.is_enabled,
            has_totp=bool(sign_in and sign_in.totp_is_confirmed),
            locked_until_at=locked,
            last_sign_in_at=sign_in.last_sign_in_at if sign_in else None,
            created_at=record.created_at,
            must_change_password=record.must_change_password,
            language=record.language,
            theme=record.theme,
            time_zone=record.time_zone,
            version=record.version,
            grants=tuple(grant for grant in grants if grant.tenant_id is None or grant.tenant_id in principal.tenant_ids),
        )


def _grant(session: Session, record: GrantRecord) -> Grant:
    role = find_role(session, record.role_id)
    tenant = session.get(TenantRecord, record.on_tenant_id) if record.on_tenant_id else None
    group = session.get(GroupRecord, record.on_group_id) if record.on_group_id else None
    return Grant(
        record.id,
        record.role_id,
        role.name if role else record.role_id,
        record.on_tenant_id,
        tenant.name if tenant else "",
        record.on_group_id,
        group.name if group else "",
    )


def _user_record(session: Session, user_id: str) -> UserRecord:
    record = session.get(UserRecord, user_id)
    if record is None:
        raise InputError("user_not_found", f"there is no user {user_id!r}")
    return record


def _one_of(value: str, allowed: tuple[str, ...], what: str) -> str:
    if value not in allowed:
        raise InputError(f"{what}_unknown", f"{value[:64]!r} is not a known {what}", hint=f"use one of: {', '.join(allowed)}")
    return value
