"""Tenants as values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tenant:
    """One customer. A disabled tenant's agents are refused and its people cannot sign in; its data stays."""

    tenant_id: str
    name: str
    is_enabled: bool
    created_at: float
    version: int
