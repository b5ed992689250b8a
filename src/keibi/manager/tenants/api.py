"""REST: customers."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from keibi.manager.access.api import Asker, Body
from keibi.manager.http_answers import answer, answers
from keibi.manager.tenants.model import Tenant
from keibi.manager.tenants.service import TenantService

router = APIRouter(prefix="/api/v1/tenants", tags=["customers"])


def tenant_service(request: Request) -> TenantService:
    """Return the service of the running manager."""
    service: TenantService = request.app.state.services.tenants
    return service


Tenants = Annotated[TenantService, Depends(tenant_service)]


class NewTenantBody(Body):
    """A new customer."""

    name: str = Field(max_length=200)


class TenantChangeBody(Body):
    """What to change; what is left out stays."""

    name: str | None = Field(None, max_length=200)
    is_enabled: bool | None = None
    expected_version: int | None = None


@router.get("", summary="List customers", responses=answers(list[Tenant]))
def list_tenants(tenants: Tenants, asker: Asker) -> Response:
    """Return the customers that the caller has any right in."""
    return answer(tenants.list(asker))


@router.post("", status_code=201, summary="Make a customer", responses=answers(Tenant, 201))
def create_tenant(tenants: Tenants, asker: Asker, body: NewTenantBody) -> Response:
    """Make a customer with the shipped policies."""
    return answer(tenants.create(asker, body.name), 201)


@router.get("/{tenant_id}", summary="One customer", responses=answers(Tenant))
def get_tenant(tenants: Tenants, asker: Asker, tenant_id: str) -> Response:
    """Return one customer."""
    return answer(tenants.get(asker, tenant_id))


@router.patch("/{tenant_id}", summary="Rename, disable or enable a customer", responses=answers(Tenant))
def change_tenant(tenants: Tenants, asker: Asker, tenant_id: str, body: TenantChangeBody) -> Response:
    """Change a customer; a disabled one's agents and people are refused, its data stays."""
    tenant = tenants.get(asker, tenant_id)
    if body.name is not None:
        tenant = tenants.rename(asker, tenant_id, body.name, body.expected_version)
    if body.is_enabled is not None:
        tenant = tenants.set_enabled(asker, tenant_id, body.is_enabled)
    return answer(tenant)
