"""Turning a user's grants into what the principal may do."""

from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.manager.access.model import BUILT_IN_ROLES, GrantedRole, Principal, Role
from keibi.manager.access.tables import GrantRecord, RoleRecord, UserRecord
from keibi.manager.computers.groups import subtree_ids
from keibi.manager.tenants.service import all_tenant_ids


def role_of(record: RoleRecord) -> Role:
    """Return a tenant's own role as a value."""
    return Role(
        role_id=record.id,
        name=record.name,
        permissions=frozenset(record.permissions.split()),
        tenant_id=record.tenant_id,
        description=record.description,
        version=record.version,
    )


def find_role(session: Session, role_id: str) -> Role | None:
    """Return a built-in role, or one of the tenants in the session's scope."""
    if role_id in BUILT_IN_ROLES:
        return BUILT_IN_ROLES[role_id]
    record = session.get(RoleRecord, role_id)
    return role_of(record) if record else None


def granted_roles(session: Session, user_id: str, tenants: frozenset[str]) -> tuple[GrantedRole, ...]:
    """Return what a user's grants in enabled tenants allow, for a session of the system."""
    grants = []
    for record in session.scalars(select(GrantRecord).where(GrantRecord.user_id == user_id)):
        role = find_role(session, record.role_id)
        if role is None or (record.on_tenant_id is not None and record.on_tenant_id not in tenants):
            continue
        groups = None
        if record.on_group_id is not None and record.on_tenant_id is not None:
            groups = subtree_ids(session, record.on_tenant_id, record.on_group_id)
        grants.append(GrantedRole(role.permissions, record.on_tenant_id, groups))
    return tuple(grants)


def principal_of(
    session: Session,
    user: UserRecord,
    kind: Literal["session", "api_key", "system"],
    *,
    name: str = "",
    chosen_tenant_id: str | None = None,
    session_id: str = "",
) -> Principal:
    """Return the principal that a user is at this moment, for a session of the system."""
    tenants = all_tenant_ids(session)
    grants = granted_roles(session, user.id, tenants)
    reached = frozenset[str]()
    for grant in grants:
        reached |= tenants if grant.tenant_id is None else frozenset({grant.tenant_id})
    return Principal(
        user_id=user.id,
        name=name or user.name,
        kind=kind,
        tenant_ids=reached,
        grants=grants,
        current_tenant_id=chosen_tenant_id if chosen_tenant_id in reached else None,
        home_id=user.tenant_id,
        language=user.language,
        theme=user.theme,
        time_zone=user.time_zone,
        session_id=session_id,
        must_change_password=user.must_change_password,
    )
