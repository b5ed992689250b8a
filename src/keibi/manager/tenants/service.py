"""Making and keeping tenants."""

import time
from collections.abc import Callable, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database, Scope
from keibi.manager.tenants.model import Tenant
from keibi.manager.tenants.tables import TenantRecord

MAX_NAME_CHARACTERS = 200

Provision = Callable[[Session, str], None]
"""Called with the session and the new tenant's id: makes what every tenant has from the start (shipped policies)."""


class TenantService:
    """The list of tenants. Making, renaming and disabling them is for those who may do so for all tenants."""

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        provision: Sequence[Provision] = (),
        on_disabled: Sequence[Callable[[str], None]] = (),
    ) -> None:
        self._database = database
        self._audit = audit
        self._provision = tuple(provision)
        self._on_disabled = tuple(on_disabled)

    def create(self, principal: Principal, name: str) -> Tenant:
        """Make a tenant with everything that a tenant has from the start.

        Raises:
            AccessError: the principal may not make tenants.
            InputError: the name is empty, too long or taken.
        """
        principal.require("tenants.manage")
        with self._database.session(Scope.system(f"tenants for {principal.actor}")) as session:
            return self.create_in(session, name, principal)

    def create_in(self, session: Session, name: str, who: Principal | Scope) -> Tenant:
        """Make a tenant within a session of the system; for `create` and for the first start."""
        name = _checked_name(session, name)
        record = TenantRecord(
            id=new_id(), name=name, name_key=name.casefold(), is_enabled=True, created_at=time.time(), version=1
        )
        session.add(record)
        session.flush()
        for provision in self._provision:
            provision(session, record.id)
        self._audit.record(session, who, "tenant.create", "tenant", record.id, f"Made the customer {name}.", tenant_id=record.id)
        return _tenant(record)

    def list(self, principal: Principal) -> list[Tenant]:
        """Return the tenants that the principal has any right in, by name."""
        with self._database.session(Scope.system("tenants"), writes=False) as session:
            records = session.scalars(
                select(TenantRecord).where(TenantRecord.id.in_(principal.tenant_ids)).order_by(TenantRecord.name_key)
            )
            return [_tenant(record) for record in records]

    def get(self, principal: Principal, tenant_id: str) -> Tenant:
        """Return one tenant.

        Raises:
            InputError: there is none that the principal may see.
        """
        with self._database.session(Scope.system("tenants"), writes=False) as session:
            return _tenant(_found(session, principal, tenant_id))

    def rename(self, principal: Principal, tenant_id: str, name: str, expected_version: int | None = None) -> Tenant:
        """Give a tenant another name.

        Raises:
            AccessError: the principal may not. InputError: no such tenant, or a bad name, or changed meanwhile.
        """
        principal.require("tenants.manage")
        with self._database.session(Scope.system(f"tenants for {principal.actor}")) as session:
            record = _found(session, principal, tenant_id)
            _check_version(record.version, expected_version)
            before = record.name
            if name.strip().casefold() != record.name_key:
                name = _checked_name(session, name)
            record.name, record.name_key = name.strip(), name.strip().casefold()
            session.flush()
            self._audit.record(
                session,
                principal,
                "tenant.rename",
                "tenant",
                tenant_id,
                f"Renamed the customer {before} to {record.name}.",
                {"before": before, "after": record.name},
                tenant_id=tenant_id,
            )
            return _tenant(record)

    def set_enabled(self, principal: Principal, tenant_id: str, is_enabled: bool) -> Tenant:
        """Disable a tenant (its agents and people are refused, its data stays) or enable it again.

        Raises:
            AccessError: the principal may not. InputError: no such tenant, or it is the principal's own.
        """
        principal.require("tenants.manage")
        if not is_enabled and tenant_id == principal.home_id:
            raise InputError("tenant_is_own", "you cannot disable the customer that your own account belongs to")
        with self._database.session(Scope.system(f"tenants for {principal.actor}")) as session:
            record = _found(session, principal, tenant_id)
            record.is_enabled = is_enabled
            session.flush()
            verb = "enable" if is_enabled else "disable"
            self._audit.record(
                session,
                principal,
                f"tenant.{verb}",
                "tenant",
                tenant_id,
                f"{verb.capitalize()}d the customer {record.name}.",
                tenant_id=tenant_id,
            )
        if not is_enabled:
            for listener in self._on_disabled:
                listener(tenant_id)
        return _tenant(record)


def all_tenant_ids(session: Session) -> frozenset[str]:
    """Return the ids of all enabled tenants; for a session of the system."""
    return frozenset(session.scalars(select(TenantRecord.id).where(TenantRecord.is_enabled)))


def _found(session: Session, principal: Principal, tenant_id: str) -> TenantRecord:
    record = session.get(TenantRecord, tenant_id) if tenant_id in principal.tenant_ids else None
    if record is None:
        raise InputError("tenant_not_found", f"there is no customer {tenant_id!r}")
    return record


def _checked_name(session: Session, name: str) -> str:
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InputError("tenant_name", f"a customer's name has 1 to {MAX_NAME_CHARACTERS} printable characters")
    if session.scalar(select(TenantRecord.id).where(TenantRecord.name_key == name.casefold())):
        raise InputError("tenant_exists", f"there is a customer {name!r} already")
    return name


def _check_version(version: int, expected: int | None) -> None:
    if expected is not None and expected != version:
        raise InputError("changed_meanwhile", "somebody else changed this customer meanwhile", hint="load it again")


def _tenant(record: TenantRecord) -> Tenant:
    return Tenant(record.id, record.name, record.is_enabled, record.created_at, record.version)
