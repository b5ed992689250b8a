"""Rulesets as tables: their entries, and where each applies."""

from collections import Counter
from collections.abc import Sequence

import msgspec
from sqlalchemy.orm import Session

from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.database import Database
from keibi.manager.paging import DEFAULT_LIMIT, Page, check_limit, decode_cursor, encode_cursor, not_a_cursor
from keibi.manager.policies.service import PolicyService
from keibi.manager.rules.model import CatalogRule, RuleSource, Words
from keibi.manager.rules.service import RuleService
from keibi.manager.software.model import EntryRow, RulesetRow
from keibi.manager.software.planning import MODULE
from keibi.protection.application_control.rules import Entry


class RulesetService:
    """Looking at rulesets; they change by decisions, and as rules."""

    def __init__(self, database: Database, rules: RuleService, policies: PolicyService) -> None:
        self._database = database
        self._rules = rules
        self._policies = policies

    def list(self, principal: Principal) -> list[RulesetRow]:
        """Return the rulesets of every customer in sight, own ones first; shipped ones once for each customer that uses any.

        Raises:
            AccessError: the principal may not see rules.
        """
        principal.require("rules.view")
        with self._database.session(principal.scope(), writes=False) as session:
            rows = self._rows(session, principal)
        seen: set[str] = set()
        found = []
        for row in rows:
            is_idle = row.tenant_id is None and not row.policies
            if is_idle and row.rule_id in seen:
                continue
            if row.tenant_id is None:
                seen.add(row.rule_id)
            found.append(row)
        return sorted(found, key=lambda row: (not row.is_own, row.title.en.casefold(), row.rule_id, row.tenant_id or ""))

    def get(self, principal: Principal, rule_id: str) -> RulesetRow:
        """Return one ruleset.

        Raises:
            InputError: there is none that the principal may see, or several customers have one of that id.
        """
        found = [row for row in self.list(principal) if row.rule_id == rule_id]
        if not found:
            raise InputError("rule_not_found", f"there is no ruleset {rule_id!r}")
        if len(found) > 1 and found[0].is_own:
            raise InputError("tenant_not_chosen", f"several customers have a rule {rule_id!r}", hint="choose a customer first")
        return found[0]

    def entries(
        self,
        principal: Principal,
        rule_id: str,
        text: str = "",
        kind: str = "",
        cursor: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[EntryRow]:
        """Return a page of a ruleset's entries, the newest first; `text` occurs in any of their values.

        Raises:
            AccessError: the principal may not see rules. InputError: no such ruleset, a bad cursor or limit.
        """
        check_limit(limit)
        detail = self._rules.get(principal, rule_id)
        if detail.module is not MODULE:
            raise InputError("rule_not_found", f"there is no ruleset {rule_id!r}")
        entries = msgspec.convert(detail.body.get("entries", []), list[Entry])
        wanted = text.casefold().split()
        rows = []
        for number, entry in reversed(list(enumerate(entries))):
            values = msgspec.to_builtins(entry)
            haystack = " ".join(str(value) for value in values.values()).casefold()
            if (not kind or values["kind"] == kind) and all(word in haystack for word in wanted):
                rows.append(EntryRow(number=number, kind=values["kind"], entry=entry))
        total = len(rows)
        if cursor:
            (after,) = decode_cursor(cursor, 1)
            if type(after) is not int:
                raise not_a_cursor(cursor)
            rows = [row for row in rows if row.number < after]
        more = encode_cursor([rows[limit - 1].number]) if len(rows) > limit else None
        return Page(rows[:limit], more, total)

    def _rows(self, session: Session, principal: Principal) -> Sequence[RulesetRow]:
        tenant_ids = sorted(principal.tenants_where("rules.view"))
        catalogs = self._rules.catalogs(session, tenant_ids)
        users = self._policies.rulesets.users(session, tenant_ids, MODULE)
        computers = self._policies.rulesets.computers_by_tenant(session, tenant_ids, MODULE)
        rows = []
        for tenant_id in tenant_ids:
            sees_policies = principal.may("policies.view", tenant_id=tenant_id)
            reached = Counter(rule_id for one in computers[tenant_id] for rule_id in one.rule_ids)
            for key, rule in catalogs[tenant_id].items():
                if rule.module is MODULE:
                    rows.append(_row(rule, users[tenant_id].get(key, ()) if sees_policies else (), reached[key]))
        return rows


def _row(found: CatalogRule, policies: Sequence[tuple[str, str]], computer_count: int) -> RulesetRow:
    rule = found.rule
    return RulesetRow(
        rule_id=found.rule_id,
        tenant_id=found.tenant_id,
        title=Words.of(rule.title),
        description=Words.of(rule.description),
        action=rule.action,
        is_own=found.source is RuleSource.OWN,
        version=rule.version,
        entry_count=len(rule.entries),
        policies=tuple(sorted(policies, key=lambda policy: policy[1])),
        computer_count=computer_count,
        changed_at=found.changed_at,
        changed_by=found.changed_by,
    )
