"""Which computers somebody may see or manage."""

from typing import Any

from sqlalchemy import and_, false, or_
from sqlalchemy.orm import Session

from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.computers.tables import ComputerRecord

VIEW = "computers.view"
MANAGE = "computers.manage"


def find_computer(session: Session, principal: Principal, computer_id: str, permission: str = VIEW) -> ComputerRecord:
    """Return a computer that the principal may see.

    Raises:
        InputError: there is none. AccessError: it may be seen, but `permission` is lacking for it.
    """
    record = session.get(ComputerRecord, computer_id)
    if record is None or not principal.may(VIEW, tenant_id=record.tenant_id, group_id=record.group_id):
        raise InputError("computer_not_found", f"there is no computer {computer_id!r}")
    principal.require(permission, tenant_id=record.tenant_id, group_id=record.group_id)
    return record


def visible(principal: Principal, permission: str = VIEW) -> Any:
    """Return the condition on ComputerRecord that holds for computers on which the principal has `permission`."""
    conditions = []
    for tenant_id in sorted(principal.tenants_where(permission)):
        groups = principal.groups_where(permission, tenant_id)
        own = ComputerRecord.tenant_id == tenant_id
        conditions.append(own if groups is None else and_(own, ComputerRecord.group_id.in_(sorted(groups))))
    return or_(false(), *conditions)
