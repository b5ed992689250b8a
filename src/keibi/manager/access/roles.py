"""Roles: the built-in ones, and a tenant's own."""

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.errors import InputError
from keibi.manager.access.model import ALL_PERMISSIONS, BUILT_IN_ROLES, Principal, Role
from keibi.manager.access.principals import role_of
from keibi.manager.access.rights import check_may_give
from keibi.manager.access.tables import ApiKeyRecord, GrantRecord, RoleRecord
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database


class RoleService:
    """Listing and changing roles. Who changes a role needs every permission that it had and will have."""

    def __init__(self, database: Database, audit: AuditService) -> None:
        self._database = database
        self._audit = audit

    def list(self, principal: Principal) -> list[Role]:
        """Return the built-in roles, then the tenants' own by name.

        Raises:
            AccessError: the principal may not see users and roles.
        """
        principal.require("users.view")
        with self._database.session(principal.scope(), writes=False) as session:
            own = [role_of(record) for record in session.scalars(select(RoleRecord).order_by(RoleRecord.name_key))]
        return [*BUILT_IN_ROLES.values(), *own]

    def get(self, principal: Principal, role_id: str) -> Role:
        """Return one role.

        Raises:
            InputError: there is none that the principal may see.
        """
        found = next((role for role in self.list(principal) if role.role_id == role_id), None)
        if found is None:
            raise _not_found(role_id)
        return found

    def create(self, principal: Principal, name: str, permissions: Iterable[str], description: str = "") -> Role:
        """Make a role in the home tenant.

        Raises:
            AccessError: the principal may not, or lacks one of the permissions. InputError: a bad or taken name.
        """
        tenant_id = principal.home_tenant_id
        principal.require("roles.manage", tenant_id=tenant_id)
        wanted = _known(permissions)
        check_may_give(principal, Role("", name, wanted), tenant_id)
        with self._database.session(principal.scope()) as session:
            record = RoleRecord(
                id=new_id(), tenant_id=tenant_id, description=description[:1000], permissions=" ".join(sorted(wanted)), version=1
            )
            _name(session, record, name)
            session.add(record)
            session.flush()
            self._audit.record(
                session,
                principal,
                "role.create",
                "role",
                record.id,
                f"Made the role {record.name}.",
                {"permissions": sorted(wanted)},
                tenant_id=tenant_id,
            )
            return role_of(record)

    def change(
        self,
        principal: Principal,
        role_id: str,
        *,
        name: str | None = None,
        permissions: Iterable[str] | None = None,
        description: str | None = None,
        expected_version: int | None = None,
    ) -> Role:
        """Change a tenant's own role; whoever has it has the new permissions at once.

        Raises:
            AccessError: the principal may not. InputError: no such role, a built-in one, or changed meanwhile.
        """
        with self._database.session(principal.scope()) as session:
            record = _own(session, role_id)
            principal.require("roles.manage", tenant_id=record.tenant_id)
            if expected_version is not None and expected_version != record.version:
                raise InputError("changed_meanwhile", "somebody else changed this role meanwhile", hint="load it again")
            before = role_of(record)
            check_may_give(principal, before, record.tenant_id)
            if permissions is not None:
                wanted = _known(permissions)
                check_may_give(principal, Role("", record.name, wanted), record.tenant_id)
                record.permissions = " ".join(sorted(wanted))
            if description is not None:
                record.description = description[:1000]
            if name is not None:
                _name(session, record, name)
            session.flush()
            after = role_of(record)
            self._audit.record(
                session,
                principal,
                "role.change",
                "role",
                role_id,
                f"Changed the role {after.name}.",
                {
                    "added": sorted(after.permissions - before.permissions),
                    "removed": sorted(before.permissions - after.permissions),
                },
                tenant_id=record.tenant_id,
            )
            return after

    def remove(self, principal: Principal, role_id: str) -> None:
        """Remove a role that nobody has.

        Raises:
            AccessError: the principal may not. InputError: no such role, a built-in one, or somebody has it.
        """
        with self._database.session(principal.scope()) as session:
            record = _own(session, role_id)
            principal.require("roles.manage", tenant_id=record.tenant_id)
            users = session.scalar(select(func.count()).select_from(GrantRecord).where(GrantRecord.role_id == role_id)) or 0
            keys = session.scalar(select(func.count()).select_from(ApiKeyRecord).where(ApiKeyRecord.role_id == role_id)) or 0
            if users or keys:
                raise InputError(
                    "role_conflict",
                    f"{record.name} is given {users} times and used by {keys} API keys",
                    hint="take it back first",
                )
            session.delete(record)
            session.flush()
            self._audit.record(
                session, principal, "role.remove", "role", role_id, f"Removed the role {record.name}.", tenant_id=record.tenant_id
            )


def _own(session: Session, role_id: str) -> RoleRecord:
    if role_id in BUILT_IN_ROLES:
        raise InputError("role_built_in", f"the role {role_id} is built in and cannot be changed", hint="make a copy of it")
    record = session.get(RoleRecord, role_id)
    if record is None:
        raise _not_found(role_id)
    return record


def _not_found(role_id: str) -> InputError:
    return InputError("role_not_found", f"there is no role {role_id!r}")


def _known(permissions: Iterable[str]) -> frozenset[str]:
    wanted = frozenset(permissions)
    unknown = sorted(wanted - ALL_PERMISSIONS)
    if unknown or not wanted:
        what = f"unknown permissions: {', '.join(unknown)[:200]}" if unknown else "a role needs at least one permission"
        raise InputError("permissions_invalid", what, hint=f"known are {', '.join(sorted(ALL_PERMISSIONS))}")
    return wanted


def _name(session: Session, record: RoleRecord, name: str) -> None:
    name = name.strip()
    if not 1 <= len(name) <= 100 or not name.isprintable() or name.casefold() in BUILT_IN_ROLES:
        raise InputError("role_name", "a role's name has 1 to 100 printable characters and is not a built-in one's")
    taken = session.scalar(
        select(RoleRecord.id).where(
            RoleRecord.tenant_id == record.tenant_id, RoleRecord.name_key == name.casefold(), RoleRecord.id != record.id
        )
    )
    if taken:
        raise InputError("role_exists", f"there is a role {name!r} already")
    record.name, record.name_key = name, name.casefold()
