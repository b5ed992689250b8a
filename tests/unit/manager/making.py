"""A small world for the manager's tests: two customers with people, on a real database."""

from dataclasses import dataclass, field

from keibi.manager.access.model import Principal, system_principal
from keibi.manager.access.passwords import Argon2Parameters
from keibi.manager.access.service import AccessService, AccessSettings
from keibi.manager.access.sessions import SessionLimits
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.service import ComputerService
from keibi.manager.database import Database, Scope
from keibi.manager.keys import SecretBox
from keibi.manager.tenants.service import TenantService

PASSWORD = "correct horse battery staple"
QUICK = Argon2Parameters(memory_kib=64, passes=1)
"""Cheap hashes: the tests are about what happens around them."""


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1_790_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """Services on one database; `provider` may do everything."""

    database: Database
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.audit = AuditService(self.database)
        self.tenants = TenantService(self.database, self.audit)
        self.access = AccessService(
            self.database,
            self.audit,
            SecretBox(bytes(32)),
            AccessSettings(SessionLimits(idle_seconds=3600, absolute_seconds=8 * 3600), QUICK),
            self.clock,
        )
        self.computers = ComputerService(self.database, self.audit, clock=self.clock)
        first = self.access.first_start(self.tenants)
        assert first is not None
        self.home = first.tenant_id
        self.provider_password = first.password

    def sign_in(self, name: str, password: str = PASSWORD) -> Principal:
        return self.access.sign_in(name, password).principal

    @property
    def provider(self) -> Principal:
        return self.sign_in("admin", self.provider_password)

    def tenant(self, name: str) -> str:
        return self.tenants.create(self.provider, name).tenant_id

    def person(self, tenant_id: str, name: str, role: str = "", group_id: str | None = None, on: str | None = None) -> Principal:
        """Make a user of a tenant with a role there, signed in."""
        provider = self.provider.in_tenant(tenant_id)
        user = self.access.users.create(provider, name, PASSWORD, must_change_password=False)
        if role:
            self.access.users.give(self.provider, user.user_id, role, tenant_id=on or tenant_id, group_id=group_id)
        return self.sign_in(name)

    def system(self, *tenant_ids: str) -> Principal:
        return system_principal("test", tenant_ids)

    def count(self, statement: object) -> int:
        with self.database.session(Scope.system("test"), writes=False) as session:
            return session.scalar(statement) or 0
