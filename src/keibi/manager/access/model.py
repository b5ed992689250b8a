"""Principals, permissions and roles: pure values."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from keibi.errors import AccessError, InputError
from keibi.manager.database import Scope


class Permission(StrEnum):
    """What somebody may do. The values are what the API and custom roles use."""

    COMPUTERS_VIEW = "computers.view"
    COMPUTERS_MANAGE = "computers.manage"
    TOKENS_MANAGE = "tokens.manage"
    POLICIES_VIEW = "policies.view"
    POLICIES_EDIT = "policies.edit"
    RULES_VIEW = "rules.view"
    RULES_EDIT = "rules.edit"
    PATTERNS_MANAGE = "patterns.manage"
    EVENTS_VIEW = "events.view"
    EVENTS_TAG = "events.tag"
    COMMANDS_RUN = "commands.run"
    RESTORE_RUN = "restore.run"
    DRIFT_DECIDE = "drift.decide"
    QUARANTINE_MANAGE = "quarantine.manage"
    QUARANTINE_DOWNLOAD = "quarantine.download"
    SOFTWARE_DECIDE = "software.decide"
    UNLOCK_MAKE = "unlock.make"
    USERS_VIEW = "users.view"
    USERS_MANAGE = "users.manage"
    ROLES_MANAGE = "roles.manage"
    API_KEYS_MANAGE = "api_keys.manage"
    AUDIT_VIEW = "audit.view"
    SETTINGS_EDIT = "settings.edit"
    TENANTS_MANAGE = "tenants.manage"


ALL_PERMISSIONS = frozenset(str(permission) for permission in Permission)
_OF_TENANTS = frozenset({"tenants.manage"})
_OF_PEOPLE = frozenset({"users.manage", "roles.manage", "tenants.manage", "api_keys.manage", "settings.edit"})
_OF_ANALYSTS = frozenset({"quarantine.download"})
"""Malware leaves quarantine only through people who know what to do with it: not part of daily work."""


@dataclass(frozen=True)
class Role:
    """A named set of permissions. Built-in roles have their name as id and belong to no tenant."""

    role_id: str
    name: str
    permissions: frozenset[str]
    tenant_id: str | None = None
    description: str = ""
    version: int = 1

    @property
    def is_built_in(self) -> bool:
        """Whether it is shipped and cannot be changed."""
        return self.tenant_id is None


BUILT_IN_ROLES: dict[str, Role] = {
    role.role_id: role
    for role in (
        Role("provider", "provider", ALL_PERMISSIONS, description="Everything, for all customers, customers included."),
        Role("administrator", "administrator", ALL_PERMISSIONS - _OF_TENANTS, description="Everything of one customer."),
        Role(
            "operator",
            "operator",
            ALL_PERMISSIONS - _OF_PEOPLE - _OF_ANALYSTS,
            description="Daily work: no users, roles, keys or settings, and no download of malware.",
        ),
        Role(
            "auditor",
            "auditor",
            frozenset(name for name in ALL_PERMISSIONS if name.endswith(".view")),
            description="Sees everything, changes nothing.",
        ),
    )
}


class NotSignedInError(AccessError):
    """Nobody is signed in, or no longer: answered with 401, where other access errors are 403."""


@dataclass(frozen=True)
class GrantedRole:
    """One grant as it counts for a principal, with the group's subtree already unfolded."""

    permissions: frozenset[str]
    tenant_id: str | None = None  # None: every tenant
    group_ids: frozenset[str] | None = None  # None: the whole tenant

    def gives(self, permission: str, tenant_id: str | None, group_id: str | None) -> bool:
        """Whether it allows `permission` there. Without a group the whole tenant is meant; without a tenant, all of them."""
        if permission not in self.permissions:
            return False
        if self.tenant_id is not None and self.tenant_id != tenant_id:
            return False
        return self.group_ids is None or (group_id is not None and group_id in self.group_ids)


@dataclass(frozen=True)
class Principal:
    """Whoever asks, with everything needed to decide. Made by `AccessService`, once for each request.

    `tenant_ids` are the tenants that any grant reaches; `current_tenant_id` is the one that a person has chosen to look at.
    """

    user_id: str
    name: str
    kind: Literal["session", "api_key", "system"]
    tenant_ids: frozenset[str]
    grants: tuple[GrantedRole, ...] = ()
    current_tenant_id: str | None = None
    home_id: str | None = None  # the tenant that the user's own account belongs to
    language: str = "en"
    theme: str = "system"
    time_zone: str = "UTC"
    session_id: str = ""  # of the session or API key, for the audit trail and for signing out
    must_change_password: bool = False

    @property
    def actor(self) -> str:
        """Who it is in the audit trail: "user:alice", "api_key:deploy" or "system:retention"."""
        return f"{'user' if self.kind == 'session' else self.kind}:{self.name}"

    def scope(self) -> Scope:
        """Return the scope of this principal's database sessions: the chosen tenant, else all that are granted."""
        if self.current_tenant_id is not None:
            return Scope(frozenset({self.current_tenant_id}) & self.tenant_ids, self.actor)
        return Scope(self.tenant_ids, self.actor)

    def may(self, permission: str, *, tenant_id: str | None, group_id: str | None = None) -> bool:
        """Whether `permission` is granted for that tenant (None: for all tenants), or for that group of computers in it."""
        if tenant_id is not None and tenant_id not in self.tenant_ids:
            return False
        return any(grant.gives(permission, tenant_id, group_id) for grant in self.grants)

    def may_somewhere(self, permission: str) -> bool:
        """Whether `permission` is granted for any tenant or group in the scope: decides whether a page is shown at all."""
        return any(permission in grant.permissions for grant in self._grants_in_scope())

    def tenants_where(self, permission: str) -> frozenset[str]:
        """Return the tenants in the scope where `permission` is granted, for all of the tenant or for a group of it."""
        in_scope = self.scope().tenant_ids or frozenset()
        found = frozenset[str]()
        for grant in self.grants:
            if permission in grant.permissions:
                found |= in_scope if grant.tenant_id is None else in_scope & {grant.tenant_id}
        return found

    def groups_where(self, permission: str, tenant_id: str) -> frozenset[str] | None:
        """Return the groups of a tenant where `permission` is granted; None for the whole tenant, empty for nowhere."""
        groups = frozenset[str]()
        for grant in self.grants:
            if permission in grant.permissions and grant.tenant_id in (None, tenant_id) and tenant_id in self.tenant_ids:
                if grant.group_ids is None:
                    return None
                groups |= grant.group_ids
        return groups

    def require(self, permission: str, *, tenant_id: str | None = None, group_id: str | None = None) -> None:
        """Do nothing if `permission` is granted there; without a tenant, if it is granted anywhere in the scope.

        Raises:
            AccessError: it is not.
        """
        if tenant_id is None:
            granted = self.may_somewhere(permission)
        else:
            granted = self.may(permission, tenant_id=tenant_id, group_id=group_id)
        if not granted:
            raise AccessError(
                "not_allowed", f"{self.name} may not do this: it needs the permission {permission}", hint="ask an administrator"
            )

    @property
    def home_tenant_id(self) -> str:
        """The tenant that new rows go to: the chosen one, else the only one.

        Raises:
            InputError: several are granted and none is chosen.
        """
        if self.current_tenant_id is not None:
            return self.current_tenant_id
        if len(self.tenant_ids) == 1:
            return next(iter(self.tenant_ids))
        raise InputError("tenant_not_chosen", "choose a customer first", hint="choose one at the top, or give X-Keibi-Tenant")

    def in_tenant(self, tenant_id: str | None) -> "Principal":
        """Return the same principal with that tenant chosen (None: all that are granted).

        Raises:
            AccessError: nothing is granted there.
        """
        if tenant_id is not None and tenant_id not in self.tenant_ids:
            raise AccessError("tenant_not_allowed", "this customer does not exist, or is not yours to see")
        return replace(self, current_tenant_id=tenant_id)

    def _grants_in_scope(self) -> Iterable[GrantedRole]:
        tenants = self.scope().tenant_ids or frozenset()
        return (grant for grant in self.grants if (tenants if grant.tenant_id is None else grant.tenant_id in tenants))


def system_principal(task: str, tenant_ids: Iterable[str]) -> Principal:
    """Return the manager itself acting for those tenants: may do everything in them."""
    return Principal(
        user_id="", name=task, kind="system", tenant_ids=frozenset(tenant_ids), grants=(GrantedRole(ALL_PERMISSIONS),)
    )
