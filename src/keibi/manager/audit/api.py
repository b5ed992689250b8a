"""REST: the audit trail."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from keibi.manager.access.api import Asker
from keibi.manager.audit.model import AuditFilter, Entry, Verification
from keibi.manager.audit.service import AuditService
from keibi.manager.http_answers import answer, answers
from keibi.manager.paging import DEFAULT_LIMIT, MAX_LIMIT, Page

router = APIRouter(prefix="/api/v1/audit", tags=["audit trail"])


def audit_service(request: Request) -> AuditService:
    """Return the service of the running manager."""
    service: AuditService = request.app.state.services.audit
    return service


Audit = Annotated[AuditService, Depends(audit_service)]


@router.get("", summary="List audit records", responses=answers(Page[Entry]))
def list_records(
    audit: Audit,
    asker: Asker,
    actor: str = "",
    action: Annotated[str, Query(description="May end in *")] = "",
    target_type: str = "",
    target_id: str = "",
    text: str = "",
    since: float | None = None,
    until: float | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
) -> Response:
    """Return audit records, the newest first."""
    filters = AuditFilter(
        actor=actor, action=action, target_type=target_type, target_id=target_id, text=text, since=since, until=until
    )
    return answer(audit.list(asker, filters, cursor, limit))


@router.get("/verify", summary="Check the chain", responses=answers(Verification))
def verify_chain(audit: Audit, asker: Asker, tenant_id: str | None = None) -> Response:
    """Say whether every record of a customer is as it was written, and none is missing."""
    return answer(audit.verify(asker, tenant_id or asker.home_tenant_id))
