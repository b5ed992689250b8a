"""Finding and writing policies within a transaction, with version, audit record and revision. Used by the services only."""

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Scope
from keibi.manager.policies.effective import touch
from keibi.manager.policies.forest import Branch, write_overrides
from keibi.manager.policies.model import MAX_DESCRIPTION_CHARACTERS, MAX_NAME_CHARACTERS, PATH_SEPARATOR
from keibi.manager.policies.tables import PolicyRecord, PolicyVersionRecord


def found_policy(session: Session, principal: Principal, policy_id: str, permission: str = "policies.view") -> PolicyRecord:
    """Return the policy's row.

    Raises:
        InputError: there is none that the principal may see. AccessError: it may see but not do that.
    """
    statement = select(PolicyRecord).where(
        PolicyRecord.id == policy_id, PolicyRecord.tenant_id.in_(principal.tenants_where("policies.view"))
    )
    record = session.scalar(statement)
    if record is None:
        raise InputError("policy_not_found", f"there is no policy {policy_id!r}")
    if permission != "policies.view":
        # The tree is of the whole tenant: a right over one group of computers does not open it.
        principal.require(permission, tenant_id=record.tenant_id)
    return record


def check_version(name: str, version: int, expected: int) -> None:
    """Do nothing when nobody else changed it meanwhile.

    Raises:
        InputError: somebody did.
    """
    if version != expected:
        raise InputError(
            "changed_meanwhile",
            f"{name} is at version {version} now, not {expected}: somebody else changed it meanwhile",
            hint="load it again and repeat what you wanted",
        )


def checked_name(name: str) -> str:
    """Return a policy's name without the space around it.

    Raises:
        InputError: it is empty, too long, or would confuse a path.
    """
    name = name.strip()
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable() or PATH_SEPARATOR.strip() in name:
        raise InputError(
            "policy_name", f"{name[:60]!r} is no name: 1 to {MAX_NAME_CHARACTERS} printable characters without '>'", where="name"
        )
    return name


def checked_description(text: str) -> str:
    """Return a policy's description without the space around it.

    Raises:
        InputError: it is too long.
    """
    text = text.strip()
    if len(text) > MAX_DESCRIPTION_CHARACTERS:
        message = f"the description has {len(text)} characters, more than {MAX_DESCRIPTION_CHARACTERS}"
        raise InputError("policy_description", message, where="description")
    return text


class PolicyWriter:
    """Writes rows of policies."""

    def __init__(self, audit: AuditService) -> None:
        self._audit = audit

    def write(
        self,
        session: Session,
        who: Principal | Scope,
        tenant_id: str,
        branch: Branch,
        action: str,
        summary: str,
        detail: Mapping[str, Any] | None = None,
        *,
        is_recorded: bool = True,
    ) -> PolicyRecord:
        """Store a policy, new or changed, as its next version.

        Without `is_recorded` the caller puts it into the audit trail, as a part of something larger.
        """
        now = time.time()
        record = session.get(PolicyRecord, branch.policy_id)
        if record is None:
            record = PolicyRecord(id=branch.policy_id, tenant_id=tenant_id, template=branch.template, created_at=now, version=1)
            session.add(record)
        record.parent_id, record.parent_key = branch.parent_id, branch.parent_id or ""
        record.name, record.name_key = branch.name, branch.name.casefold()
        record.description = branch.description
        record.overrides = write_overrides(branch.overrides)
        record.changed_at, record.changed_by = now, who.actor
        session.flush()
        session.add(
            PolicyVersionRecord(
                id=new_id(),
                tenant_id=tenant_id,
                policy_id=record.id,
                version=record.version,
                parent_id=record.parent_id,
                name=record.name,
                description=record.description,
                overrides=record.overrides,
                changed_at=now,
                changed_by=who.actor,
                summary=summary,
            )
        )
        if is_recorded:
            told = {"version": record.version, **(detail or {})}
            self._audit.record(session, who, action, "policy", record.id, summary, told, tenant_id=tenant_id)
        touch(session, tenant_id)
        return record

    def remove(self, session: Session, principal: Principal, record: PolicyRecord, path: str) -> None:
        """Take a policy out of the tree; its versions stay."""
        tenant_id, policy_id = record.tenant_id, record.id
        session.delete(record)
        session.flush()
        self._audit.record(
            session, principal, "policy.delete", "policy", policy_id, f"Deleted the policy {path}.", tenant_id=tenant_id
        )
        touch(session, tenant_id)
