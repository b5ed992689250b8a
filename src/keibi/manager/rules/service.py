"""Listing, writing and checking rules."""

import difflib
import hashlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from keibi.contract.names import ModuleId, new_id
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database, Scope
from keibi.manager.paging import DEFAULT_LIMIT, Page, check_limit, decode_cursor, encode_cursor, not_a_cursor
from keibi.manager.rules.catalog import FileProblem, ShippedRules, read_content
from keibi.manager.rules.checking import check_text, try_change
from keibi.manager.rules.listing import detail_of, row_of, wanted
from keibi.manager.rules.model import (
    CatalogRule,
    RuleComparison,
    RuleDetail,
    RuleFilter,
    RuleRow,
    RuleSource,
    RuleUsers,
    RuleVersion,
    Trial,
    Validation,
    as_json,
)
from keibi.manager.rules.own_rules import OwnRules
from keibi.manager.rules.tables import OwnRuleRecord, OwnRuleVersionRecord, ShippedRuleRecord
from keibi.manager.rules.texts import checked, with_id, with_version


class RuleService:
    """The catalogue. Shipped rules are in memory; own rules are in the database, checked when they are written."""

    def __init__(self, database: Database, audit: AuditService, content_directory: str) -> None:
        self._database = database
        self._audit = audit
        self.content_directory = content_directory
        self._shipped = ShippedRules()
        self._users: RuleUsers | None = None
        self._own = OwnRules()

    def set_users(self, users: RuleUsers) -> None:
        """Introduce who uses rules; they are asked before a rule goes, and told when one has changed."""
        self._users = users

    def load_shipped(self, content: ShippedRules | None = None) -> Sequence[FileProblem]:
        """Read the shipped rules (or take what was read), keep texts that are new, and return what had to be left out.

        Raises:
            InputError: the content directory is missing.
        """
        shipped = content or read_content(self.content_directory, tries_samples=False)
        with self._database.session(Scope.system("content")) as session:
            known = set(session.execute(select(ShippedRuleRecord.rule_id, ShippedRuleRecord.version, ShippedRuleRecord.digest)))
            for rule in shipped.rules.values():
                digest = _digest(rule.text)
                if (rule.rule_id, rule.rule.version, digest) not in known:
                    session.add(
                        ShippedRuleRecord(
                            id=new_id(),
                            rule_id=rule.rule_id,
                            version=rule.rule.version,
                            digest=digest,
                            module=rule.module,
                            text=rule.text,
                            seen_at=time.time(),
                        )
                    )
        self._shipped = shipped
        return shipped.problems

    @property
    def shipped(self) -> ShippedRules:
        """The shipped rules as they were loaded."""
        return self._shipped

    def catalog(self, session: Session, tenant_id: str) -> Mapping[str, CatalogRule]:
        """Return all rules that a tenant's policies can name, by id."""
        return self.catalogs(session, [tenant_id])[tenant_id]

    def catalogs(self, session: Session, tenant_ids: Collection[str]) -> dict[str, Mapping[str, CatalogRule]]:
        """Return the same for several tenants by their ids, in one statement however many they are."""
        own: dict[str, dict[str, CatalogRule]] = {tenant_id: {} for tenant_id in tenant_ids}
        for rule in self._own.readable(session.scalars(select(OwnRuleRecord).where(OwnRuleRecord.tenant_id.in_(tenant_ids)))):
            own[rule.tenant_id or ""][rule.rule_id] = rule
        return {tenant_id: {**self._shipped.rules, **rules} for tenant_id, rules in own.items()}

    def list(
        self,
        principal: Principal,
        filters: RuleFilter = RuleFilter(),
        cursor: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[RuleRow]:
        """Return rules, the gravest first, by id within one severity.

        Raises:
            AccessError: the principal may not see rules.
            InputError: a bad cursor or limit.
        """
        principal.require("rules.view")
        check_limit(limit)
        tenant_ids = principal.tenants_where("rules.view")
        with self._database.session(principal.scope(), writes=False) as session:
            assigned = self._assigned(session, tenant_ids, filters.policy_id or None)
            rules: Iterable[CatalogRule] = self._shipped.rules.values()
            if filters.source is not RuleSource.SHIPPED:
                statement = select(OwnRuleRecord).where(OwnRuleRecord.tenant_id.in_(tenant_ids))
                if filters.module is not None:
                    statement = statement.where(OwnRuleRecord.module == filters.module)
                rules = [*rules, *self._own.readable(session.scalars(statement))]
        rows = [row_of(rule, rule.rule_id in assigned) for rule in rules if wanted(rule, filters, rule.rule_id in assigned)]
        rows.sort(key=_sort_key)
        total = len(rows)
        if cursor:
            after = decode_cursor(cursor, 3)
            if [type(value) for value in after] != [int, str, str]:
                raise not_a_cursor(cursor)
            rows = [row for row in rows if list(_sort_key(row)) > after]
        more = encode_cursor(_sort_key(rows[limit - 1])) if len(rows) > limit else None
        return Page(rows[:limit], more, total)

    def get(self, principal: Principal, rule_id: str) -> RuleDetail:
        """Return one rule with its text and where it is used.

        Raises:
            AccessError: the principal may not see rules. InputError: there is no such rule that it may see.
        """
        principal.require("rules.view")
        with self._database.session(principal.scope(), writes=False) as session:
            rule = self._found(session, principal, rule_id)
            tenant_ids = principal.tenants_where("rules.view")
            if rule.tenant_id is not None:
                tenant_ids = frozenset({rule.tenant_id})
            uses = self._users.uses_of(session, tenant_ids, rule_id) if self._users else []
            return detail_of(rule, uses)

    def create(self, principal: Principal, module: ModuleId, text: str) -> RuleDetail:
        """Make an own rule from YAML; a missing version is 1.

        Raises:
            AccessError: the principal may not. RuleInvalidError: the text has problems. InputError: the id is taken.
        """
        tenant_id = principal.home_tenant_id
        principal.require("rules.edit", tenant_id=tenant_id)
        rule_id = checked(module, text).id
        if rule_id in self._shipped.rules:
            raise InputError(
                "rule_exists", f"{rule_id!r} is a shipped rule", where="id", hint="give your rule another id, such as im-own-…"
            )
        with self._database.session(Scope(frozenset({tenant_id}), principal.actor)) as session:
            taken = select(OwnRuleRecord.id).where(OwnRuleRecord.tenant_id == tenant_id, OwnRuleRecord.rule_id == rule_id)
            if session.scalar(taken) is not None:
                raise InputError("rule_exists", f"there is a rule {rule_id!r} already", where="id", hint="choose another id")
            return self._create_in(session, principal, tenant_id, module, text, f"Made the rule {rule_id}.")

    def create_in(
        self,
        session: Session,
        principal: Principal,
        tenant_id: str,
        module: ModuleId,
        text: str,
        summary: str = "Imported a rule.",
        *,
        is_recorded: bool = True,
    ) -> RuleDetail:
        """Make an own rule within the caller's transaction, which has checked the right; for importing policies.

        Without `is_recorded` the caller puts it into the audit trail, as a part of something larger.
        """
        return self._create_in(session, principal, tenant_id, module, text, summary, is_recorded=is_recorded)

    def update(self, principal: Principal, rule_id: str, text: str, expected_version: int | None = None) -> RuleDetail:
        """Change an own rule; it gets the next version, whatever the text says.

        Raises:
            AccessError: the principal may not. RuleInvalidError: the text has problems. InputError: no such own rule; changed
                meanwhile; another id; or a policy that assigns it would no longer compile.
        """
        with self._database.session(principal.scope()) as session:
            record = self._own_found(session, principal, rule_id, for_change=True)
            principal.require("rules.edit", tenant_id=record.tenant_id)
            if expected_version is not None and expected_version != record.version:
                raise InputError(
                    "changed_meanwhile",
                    f"{rule_id} is at version {record.version} now, not {expected_version}",
                    hint="load it again and repeat what you wanted",
                )
            return self.update_in(session, principal, record, text)

    def update_in(
        self, session: Session, principal: Principal, record: OwnRuleRecord, text: str, *, is_recorded: bool = True
    ) -> RuleDetail:
        """Change an own rule within the caller's transaction, which has checked the right; `is_recorded` as in `create_in`."""
        module = ModuleId(record.module)
        rule = checked(module, text)
        if rule.id != record.rule_id:
            raise InputError(
                "rule_id_fixed",
                f"a rule keeps its id: {record.rule_id!r}, not {rule.id!r}",
                where="id",
                hint="duplicate it instead",
            )
        record.version += 1
        record.text, record.changed_at, record.changed_by = with_version(text, record.version), time.time(), principal.actor
        session.flush()
        self._keep_version(session, record, "changed")
        changed = self._own(record)
        if self._users is not None:
            self._users.rule_changes(session, record.tenant_id, changed, record.rule_id)
        if is_recorded:
            self._audit.record(
                session,
                principal,
                "rule.change",
                "rule",
                record.rule_id,
                f"Changed the rule {record.rule_id} to version {record.version}.",
                {"version": record.version},
                tenant_id=record.tenant_id,
            )
        uses = self._users.uses_of(session, frozenset({record.tenant_id}), record.rule_id) if self._users else []
        return detail_of(changed, uses)

    def delete(self, principal: Principal, rule_id: str, *, also_unassign: bool = False) -> None:
        """Delete an own rule. One that policies or computers name is only deleted with `also_unassign`.

        Raises:
            AccessError: the principal may not. InputError: no such own rule, or it is in use, with the places.
        """
        with self._database.session(principal.scope()) as session:
            record = self._own_found(session, principal, rule_id, for_change=True)
            tenant_id = record.tenant_id
            principal.require("rules.edit", tenant_id=tenant_id)
            uses = self._users.uses_of(session, frozenset({tenant_id}), rule_id) if self._users else []
            if uses and not also_unassign:
                places = ", ".join(f"{use.kind} {use.name}" for use in uses[:10]) + (" and more" if len(uses) > 10 else "")
                raise InputError(
                    "rule_in_use",
                    f"{rule_id} is used by {places}",
                    where=rule_id,
                    hint="take it out there first, or delete it with also_unassign",
                )
            if uses and self._users is not None:
                principal.require("policies.edit", tenant_id=tenant_id)
                self._users.forget_rule(session, principal, tenant_id, rule_id)
            self._keep_version(session, record, "deleted", record.version + 1)
            session.delete(record)
            session.flush()
            if self._users is not None:
                self._users.rule_changes(session, tenant_id, None, rule_id)
            self._audit.record(
                session,
                principal,
                "rule.delete",
                "rule",
                rule_id,
                f"Deleted the rule {rule_id}.",
                {"unassigned_from": [use.name for use in uses]},
                tenant_id=tenant_id,
            )

    def duplicate(self, principal: Principal, rule_id: str, new_rule_id: str) -> RuleDetail:
        """Make an own rule that is like another one, shipped or own, under a new id.

        Raises:
            AccessError: the principal may not. InputError: no such rule, or the new id is bad or taken.
        """
        source = self.get(principal, rule_id)
        text = with_id(source.text, new_rule_id)
        return self.create(principal, source.module, text)

    def versions(self, principal: Principal, rule_id: str) -> Sequence[RuleVersion]:
        """Return every version that a rule has or had, newest first; also of an own rule that is deleted.

        Raises:
            AccessError: the principal may not see rules. InputError: there never was such a rule that it may see.
        """
        principal.require("rules.view")
        with self._database.session(principal.scope(), writes=False) as session:
            shipped = session.scalars(
                select(ShippedRuleRecord)
                .where(ShippedRuleRecord.rule_id == rule_id)
                .order_by(ShippedRuleRecord.version.desc(), ShippedRuleRecord.seen_at.desc())
            )
            found = [RuleVersion(rule_id, one.version, one.seen_at, "", "shipped", one.text) for one in shipped]
            own = session.scalars(
                select(OwnRuleVersionRecord)
                .where(
                    OwnRuleVersionRecord.rule_id == rule_id,
                    OwnRuleVersionRecord.tenant_id.in_(principal.tenants_where("rules.view")),
                )
                .order_by(OwnRuleVersionRecord.version.desc(), OwnRuleVersionRecord.changed_at.desc())
            )
            found += [RuleVersion(rule_id, one.version, one.changed_at, one.changed_by, one.what, one.text) for one in own]
        if not found:
            raise _not_found(rule_id)
        return found

    def compare(self, principal: Principal, rule_id: str, before: int, after: int) -> RuleComparison:
        """Return what differs between two versions of a rule.

        Raises:
            AccessError: the principal may not see rules. InputError: no such rule or version.
        """
        texts = {version.version: version.text for version in reversed(self.versions(principal, rule_id))}
        for number in (before, after):
            if number not in texts:
                have = ", ".join(str(known) for known in sorted(texts))
                raise InputError("rule_version_not_found", f"{rule_id} has no version {number}", hint=f"it has {have}")
        lines = difflib.unified_diff(
            texts[before].splitlines(), texts[after].splitlines(), f"version {before}", f"version {after}", lineterm=""
        )
        return RuleComparison(rule_id, before, after, "\n".join(lines))

    def validate(self, module: ModuleId, text: str) -> Validation:
        """Say what is wrong with a rule's text, without keeping it."""
        rule, problems = check_text(module, text, default_version=1)
        return Validation(not problems, problems, as_json(rule) if rule is not None and not problems else None)

    def try_rule(
        self,
        principal: Principal,
        change: Mapping[str, Any],
        *,
        rule_id: str = "",
        module: ModuleId = ModuleId.INTEGRITY_MONITORING,
        text: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> Trial:
        """Say whether a rule (a kept one by id, else one from text) would report a change.

        `change` has the form of the module's samples: for integrity monitoring type, key, change, before, after.

        Raises:
            AccessError: the principal may not see rules. InputError: no such rule, or the change is no change.
            RuleInvalidError: the text has problems.
        """
        principal.require("rules.view")
        if rule_id:
            with self._database.session(principal.scope(), writes=False) as session:
                found = self._found(session, principal, rule_id)
            rule, module = found.rule, found.module
        else:
            rule = checked(module, text)
        return try_change(module, rule, change, variables or {})

    def _create_in(
        self,
        session: Session,
        principal: Principal,
        tenant_id: str,
        module: ModuleId,
        text: str,
        summary: str,
        *,
        is_recorded: bool = True,
    ) -> RuleDetail:
        rule_id = checked(module, text).id
        # An id that was used before goes on counting, since events name id and version.
        last = session.scalar(
            select(func.max(OwnRuleVersionRecord.version)).where(
                OwnRuleVersionRecord.tenant_id == tenant_id, OwnRuleVersionRecord.rule_id == rule_id
            )
        )
        number = (last or 0) + 1
        now = time.time()
        record = OwnRuleRecord(
            id=new_id(),
            tenant_id=tenant_id,
            rule_id=rule_id,
            module=module,
            text=with_version(text, number),
            version=number,
            created_at=now,
            changed_at=now,
            changed_by=principal.actor,
        )
        session.add(record)
        session.flush()
        self._keep_version(session, record, "created")
        made = self._own(record)
        if self._users is not None:
            self._users.rule_changes(session, tenant_id, made, rule_id)
        if is_recorded:
            told = {"version": number}
            self._audit.record(session, principal, "rule.create", "rule", rule_id, summary, told, tenant_id=tenant_id)
        return detail_of(made, [])

    def _keep_version(self, session: Session, record: OwnRuleRecord, what: str, number: int | None = None) -> None:
        session.add(
            OwnRuleVersionRecord(
                id=new_id(),
                tenant_id=record.tenant_id,
                rule_id=record.rule_id,
                version=number or record.version,
                module=record.module,
                text=record.text,
                changed_at=time.time(),
                changed_by=record.changed_by,
                what=what,
            )
        )

    def _assigned(self, session: Session, tenant_ids: frozenset[str], policy_id: str | None) -> frozenset[str]:
        return self._users.assigned_ids(session, tenant_ids, policy_id) if self._users else frozenset()

    def _found(self, session: Session, principal: Principal, rule_id: str) -> CatalogRule:
        shipped = self._shipped.rules.get(rule_id)
        return shipped if shipped is not None else self._own(self._own_found(session, principal, rule_id))

    def _own_found(self, session: Session, principal: Principal, rule_id: str, *, for_change: bool = False) -> OwnRuleRecord:
        statement = select(OwnRuleRecord).where(
            OwnRuleRecord.rule_id == rule_id, OwnRuleRecord.tenant_id.in_(principal.tenants_where("rules.view"))
        )
        records = session.scalars(statement.with_for_update() if for_change else statement).all()
        if rule_id in self._shipped.rules:
            raise InputError(
                "rule_is_shipped", f"{rule_id} is shipped and cannot be changed", hint="duplicate it, then change yours"
            )
        if not records:
            raise _not_found(rule_id)
        if len(records) > 1:
            raise InputError("tenant_not_chosen", f"several customers have a rule {rule_id!r}", hint="choose a customer first")
        return records[0]


def _sort_key(row: RuleRow) -> tuple[int, str, str]:
    return (-row.severity.rank, row.rule_id, row.tenant_id or "")


def _not_found(rule_id: str) -> InputError:
    return InputError("rule_not_found", f"there is no rule {rule_id!r}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
