"""Everything the manager is made of, as one value: `main.build_app` makes it, and `app.state.services` holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keibi.manager.access.service import AccessService
    from keibi.manager.agents.commands import CommandService
    from keibi.manager.agents.service import EnrolmentService
    from keibi.manager.audit.service import AuditService
    from keibi.manager.computers.service import ComputerService
    from keibi.manager.config import ManagerConfig
    from keibi.manager.database import Database
    from keibi.manager.events.ingest import EventIngest
    from keibi.manager.events.service import EventService
    from keibi.manager.malware.service import MalwareService
    from keibi.manager.patterns.service import PatternService
    from keibi.manager.policies.service import PolicyService
    from keibi.manager.rules.service import RuleService
    from keibi.manager.software.service import SoftwareService
    from keibi.manager.tenants.service import TenantService


@dataclass(frozen=True)
class Services:
    """The manager's services, each the only door to its feature."""

    config: ManagerConfig
    database: Database
    access: AccessService
    audit: AuditService
    tenants: TenantService
    computers: ComputerService
    agents: EnrolmentService
    commands: CommandService
    rules: RuleService
    policies: PolicyService
    patterns: PatternService
    events: EventService
    software: SoftwareService
    ingest: EventIngest
    malware: MalwareService
