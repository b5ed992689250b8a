"""Writing, listing and checking the audit trail."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.manager.access.model import Principal
from keibi.manager.audit.model import FIRST_HASH, AuditFilter, Entry, Verification, canonical_detail, chain_hash
from keibi.manager.audit.tables import AuditHead, AuditRecord
from keibi.manager.database import Database, Scope
from keibi.manager.paging import DEFAULT_LIMIT, Page, SortKey, page_of

_VERIFY_BATCH = 2000


class AuditService:
    """The only writer of the audit trail."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self,
        session: Session,
        who: Principal | Scope,
        action: str,
        target_type: str,
        target_id: str,
        summary: str,
        detail: Mapping[str, Any] | None = None,
        *,
        tenant_id: str | None = None,
    ) -> None:
        """Add a record in the caller's transaction, so that what was done and the record of it stand or fall together.

        `action` is "<feature>.<verb>" ("policy.change"); `summary` one English sentence; `detail` JSON types without secrets.
        Without `tenant_id` the principal's home tenant is meant; a Scope must have exactly one tenant, or name it.

        Raises:
            InputError: no single tenant is meant.
        """
        tenant_id = tenant_id or _tenant_of(who)
        head = session.get(AuditHead, tenant_id, with_for_update=True)
        if head is None:
            head = AuditHead(id=tenant_id, tenant_id=tenant_id, number=0, hash=FIRST_HASH)
            session.add(head)
        record = AuditRecord(
            id=new_id(),
            tenant_id=tenant_id,
            number=head.number + 1,
            at=time.time(),
            actor=who.actor[:300],
            action=action,
            target_type=target_type,
            target_id=target_id[:200],
            summary=summary,
            detail=canonical_detail(detail or {}),
            previous_hash=head.hash,
            hash=b"",
        )
        record.hash = chain_hash(head.hash, _fields(record))
        head.number, head.hash = record.number, record.hash
        session.add(record)
        session.flush()

    def list(
        self,
        principal: Principal,
        filters: AuditFilter = AuditFilter(),
        cursor: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[Entry]:
        """Return records, newest first.

        Raises:
            AccessError: the principal may not see the trail.
            InputError: a bad cursor or limit.
        """
        principal.require("audit.view")
        statement = select(AuditRecord).where(AuditRecord.tenant_id.in_(_whole_tenants(principal)))
        for column, value in (
            (AuditRecord.actor, filters.actor),
            (AuditRecord.target_type, filters.target_type),
            (AuditRecord.target_id, filters.target_id),
        ):
            if value:
                statement = statement.where(column == value)
        if filters.action.endswith("*"):
            statement = statement.where(AuditRecord.action.startswith(filters.action[:-1], autoescape=True))
        elif filters.action:
            statement = statement.where(AuditRecord.action == filters.action)
        if filters.text:
            statement = statement.where(
                or_(
                    AuditRecord.summary.icontains(filters.text, autoescape=True),
                    AuditRecord.actor.icontains(filters.text, autoescape=True),
                )
            )
        if filters.since is not None:
            statement = statement.where(AuditRecord.at >= filters.since)
        if filters.until is not None:
            statement = statement.where(AuditRecord.at < filters.until)
        order = [SortKey(AuditRecord.at, is_descending=True), SortKey(AuditRecord.id, is_descending=True)]
        with self._database.session(principal.scope(), writes=False) as session:
            return page_of(session, statement, order, cursor, limit).map(_entry)

    def verify(self, principal: Principal, tenant_id: str) -> Verification:
        """Walk a tenant's chain and say whether every record is as it was written, and none is missing.

        Raises:
            AccessError: the principal may not see that tenant's trail.
        """
        principal.require("audit.view", tenant_id=tenant_id)
        previous, expected = FIRST_HASH, 1
        with self._database.session(Scope(frozenset({tenant_id}), principal.actor), writes=False) as session:
            head = session.get(AuditHead, tenant_id)
            while True:
                batch = session.scalars(
                    select(AuditRecord)
                    .where(AuditRecord.tenant_id == tenant_id, AuditRecord.number >= expected)
                    .order_by(AuditRecord.number)
                    .limit(_VERIFY_BATCH)
                ).all()
                for record in batch:
                    if record.number != expected:
                        return Verification(tenant_id, False, expected - 1, expected, f"record {expected} is missing")
                    if record.previous_hash != previous or record.hash != chain_hash(previous, _fields(record)):
                        return Verification(tenant_id, False, expected - 1, expected, f"record {expected} was changed")
                    previous, expected = record.hash, expected + 1
                session.expunge_all()
                if len(batch) < _VERIFY_BATCH:
                    break
        count = expected - 1
        if (head.number if head else 0) != count:
            return Verification(tenant_id, False, count, expected, f"records after {count} are missing")
        if head is not None and head.hash != previous:
            return Verification(tenant_id, False, count, count, "the end of the chain was changed")
        return Verification(tenant_id, True, count, head_hash=previous.hex())


def _whole_tenants(principal: Principal) -> frozenset[str]:
    """The trail is of the whole tenant: a right over one group of computers does not open it."""
    return frozenset(tenant for tenant in principal.tenants_where("audit.view") if principal.may("audit.view", tenant_id=tenant))


def _tenant_of(who: Principal | Scope) -> str:
    if isinstance(who, Principal):
        return who.home_tenant_id
    if who.tenant_ids is None or len(who.tenant_ids) != 1:
        raise ValueError("the audit record of a scope without a single tenant needs tenant_id")
    return next(iter(who.tenant_ids))


def _fields(record: AuditRecord) -> tuple[str | int | float, ...]:
    return (
        record.tenant_id,
        record.number,
        record.at,
        record.actor,
        record.action,
        record.target_type,
        record.target_id,
        record.summary,
        record.detail,
    )


def _entry(record: AuditRecord) -> Entry:
    return Entry(
        record_id=record.id,
        tenant_id=record.tenant_id,
        number=record.number,
        at=record.at,
        actor=record.actor,
        action=record.action,
        target_type=record.target_type,
        target_id=record.target_id,
        summary=record.summary,
        detail=msgspec.json.decode(record.detail, type=dict[str, Any]),
        hash=record.hash.hex(),
    )
