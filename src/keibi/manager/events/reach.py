"""Which events somebody may see: whole tenants, and in others only the computers of granted groups."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import select

from keibi.manager.access.model import Principal
from keibi.manager.computers.tables import ComputerRecord
from keibi.manager.database import Database, Scope


class ComputersOfGroups(Protocol):
    """Whoever knows which computers are in which group."""

    def ids_in_groups(self, tenant_id: str, group_ids: frozenset[str]) -> frozenset[str]:
        """Return the ids of a tenant's computers that are in one of the groups now."""
        ...


class StoredComputers:
    """The computers as the database has them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ids_in_groups(self, tenant_id: str, group_ids: frozenset[str]) -> frozenset[str]:
        """Return the ids of a tenant's computers that are in one of the groups now."""
        if not group_ids:
            return frozenset()
        with self._database.session(Scope(frozenset({tenant_id}), "system:events"), writes=False) as session:
            statement = select(ComputerRecord.id).where(ComputerRecord.group_id.in_(sorted(group_ids)))
            return frozenset(session.scalars(statement))


@dataclass(frozen=True)
class Reach:
    """Tenants of which all events count, and for other tenants the computers whose events count."""

    tenant_ids: frozenset[str] = frozenset()
    computer_ids: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all may be seen."""
        return not self.tenant_ids and not any(self.computer_ids.values())

    def covers(self, tenant_id: str, computer_id: str) -> bool:
        """Whether events of that computer may be seen."""
        return tenant_id in self.tenant_ids or computer_id in self.computer_ids.get(tenant_id, frozenset())


def reach_of(principal: Principal, permission: str, computers: ComputersOfGroups) -> Reach:
    """Return what `permission` lets the principal reach within its scope."""
    whole: set[str] = set()
    parts: dict[str, frozenset[str]] = {}
    for tenant_id in principal.tenants_where(permission):
        group_ids = principal.groups_where(permission, tenant_id)
        if group_ids is None:
            whole.add(tenant_id)
        else:
            parts[tenant_id] = computers.ids_in_groups(tenant_id, group_ids)
    return Reach(frozenset(whole), parts)
