"""The one door to software changes, decisions, rulesets, maintenance and unlock codes."""

import re
import time
from collections.abc import Callable, Sequence

from keibi.contract.unlock import unlock_code
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.agents.commands import CommandService
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.reach import find_computer
from keibi.manager.computers.service import ComputerService
from keibi.manager.database import Database
from keibi.manager.events.reach import Reach, reach_of
from keibi.manager.events.store import EventStore
from keibi.manager.keys import UnlockSecrets
from keibi.manager.paging import DEFAULT_LIMIT, Page
from keibi.manager.policies.service import PolicyService
from keibi.manager.rules.model import CatalogRule
from keibi.manager.rules.service import RuleService
from keibi.manager.software.changes import ChangeReader
from keibi.manager.software.decisions import DecisionService
from keibi.manager.software.known import TenantRulesets, grouped
from keibi.manager.software.maintenance import MaintenanceService
from keibi.manager.software.model import (
    MAX_DECIDED_AT_ONCE,
    ChangeFilter,
    ChangeGroup,
    GroupBy,
    Standing,
    check_filter,
)
from keibi.manager.software.planning import MODULE
from keibi.manager.software.rulesets import RulesetService

VIEW = "events.view"
_CHALLENGE = re.compile(r"[A-Z2-7]{8}")


class SoftwareService:
    """What the console, the API and the command line ask about application control. Calls block: use a worker thread."""

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        rules: RuleService,
        policies: PolicyService,
        computers: ComputerService,
        commands: CommandService,
        store: EventStore,
        unlock_secrets: UnlockSecrets,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._audit = audit
        self._rules = rules
        self._policies = policies.rulesets
        self._computers = computers
        self._reader = ChangeReader(store)
        self._unlock_secrets = unlock_secrets
        self.decisions = DecisionService(database, audit, rules, policies, self._computers_with, clock)
        self.rulesets = RulesetService(database, rules, policies)
        self.maintenance = MaintenanceService(computers, commands)

    def changes(
        self,
        principal: Principal,
        filters: ChangeFilter = ChangeFilter(),
        by: GroupBy = "hash",
        cursor: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[ChangeGroup]:
        """Return groups of changes, those with the newest first; `total` is their true number.

        Raises:
            AccessError: events may not be seen. InputError: a bad filter, grouping, cursor or limit.
        """
        principal.require(VIEW)
        reach = reach_of(principal, VIEW, self._computers)
        return self._reader.page(reach, self._in_use(principal, reach), check_filter(filters), by, cursor, limit)

    def count(self, principal: Principal, filters: ChangeFilter = ChangeFilter(), by: GroupBy = "hash") -> int:
        """Return how many groups there are, exactly.

        Raises:
            AccessError: events may not be seen. InputError: a bad filter.
        """
        principal.require(VIEW)
        reach = reach_of(principal, VIEW, self._computers)
        return self._reader.count(reach, self._in_use(principal, reach), check_filter(filters), by)

    def open_count(self, principal: Principal) -> int:
        """Return how much software waits for a decision.

        Raises:
            AccessError: events may not be seen.
        """
        return self.count(principal, ChangeFilter(standing=Standing.OPEN))

    def all_of(self, principal: Principal, filters: ChangeFilter) -> Sequence[ChangeGroup]:
        """Return all groups by content that a filter means, for deciding about them at once.

        Raises:
            AccessError, InputError: as `changes`; more than can be decided at once.
        """
        principal.require(VIEW)
        reach = reach_of(principal, VIEW, self._computers)
        in_use = self._in_use(principal, reach)
        total = self._reader.count(reach, in_use, check_filter(filters), "hash")
        if total > MAX_DECIDED_AT_ONCE:
            raise InputError(
                "too_many_chosen",
                f"{total} fit this filter; up to {MAX_DECIDED_AT_ONCE} can be decided at once",
                hint="narrow the filter first, or decide by package or path",
            )
        return self._reader.newest(reach, in_use, filters, MAX_DECIDED_AT_ONCE)

    def unlock_code(self, principal: Principal, computer_id: str, challenge: str) -> str:
        """Return the code that frees a computer without a network, for the challenge that its agent shows.

        Raises:
            AccessError: the principal may not make codes for it. InputError: no such computer, or it is no challenge.
        """
        with self._database.session(principal.scope()) as session:
            computer = find_computer(session, principal, computer_id, "unlock.make")
            plain = "".join(challenge.upper().replace("-", "").split())
            if not _CHALLENGE.fullmatch(plain):
                raise InputError(
                    "challenge_invalid",
                    f"{challenge[:40]!r} is no challenge",
                    where="challenge",
                    hint="the agent shows one such as K7QX-M2NV: letters A to Z and digits 2 to 7",
                )
            self._audit.record(
                session,
                principal,
                "unlock.make",
                "computer",
                computer_id,
                f"Made an unlock code for {computer.display_name}.",
                {"challenge": plain},
                tenant_id=computer.tenant_id,
            )
        return unlock_code(self._unlock_secrets.of(computer_id), plain)

    def _in_use(self, principal: Principal, reach: Reach) -> list[TenantRulesets]:
        tenant_ids = sorted(reach.tenant_ids | {key for key, computers in reach.computer_ids.items() if computers})
        with self._database.session(principal.scope(), writes=False) as session:
            computers = self._policies.computers_by_tenant(session, tenant_ids, MODULE)
            catalogs = self._rules.catalogs(session, tenant_ids)
        return [
            grouped(tenant_id, {one.computer.computer_id: one.rule_ids for one in computers[tenant_id]}, catalogs[tenant_id])
            for tenant_id in tenant_ids
        ]

    def _computers_with(self, tenant_id: str, ruleset: CatalogRule) -> frozenset[str]:
        return self._reader.computers_with(TenantRulesets(tenant_id, (ruleset,)))
