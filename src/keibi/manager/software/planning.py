"""What a decision does to a customer's rulesets: worked out on their texts, and written by nobody here."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.rules.model import CatalogRule, RuleSource, Words
from keibi.manager.rules.service import RuleService
from keibi.manager.rules.tables import OwnRuleRecord
from keibi.manager.rules.texts import checked
from keibi.manager.rules.yaml_text import MAX_TEXT_BYTES, YamlProblem
from keibi.manager.software.model import DecisionRequest
from keibi.manager.software.ruleset_text import identity, line_of, new_ruleset, with_entries, without_entries
from keibi.protection.application_control.rules import Entry, RuleAction

MODULE = ModuleId.APPLICATION_CONTROL
OWN_RULESETS: Mapping[RuleAction, tuple[str, Words, str]] = {
    RuleAction.ALLOW: ("ac-own-allowed-software", Words("Allowed software", "許可したソフトウェア"), "low"),
    RuleAction.BLOCK: ("ac-own-blocked-software", Words("Blocked software", "ブロックしたソフトウェア"), "high"),
}
"""The rulesets that decisions go to when none is chosen."""
FULL_BYTES = MAX_TEXT_BYTES * 3 // 4
FULL_ENTRIES = 1000
MARGIN_BYTES = 16  # what stands before a line
"""A ruleset with so much in it is followed by another one, with a number in its id."""
_NUMBER = re.compile(r"-(\d+)$")


@dataclass
class RulesetPlan:
    """Texts after the change. `records` are those that there are by now, locked for the transaction."""

    tenant_id: str
    records: Mapping[str, OwnRuleRecord]
    rules: Mapping[str, CatalogRule]
    texts: dict[str, str] = field(default_factory=dict)
    new_entries: list[Entry] = field(default_factory=list)
    known_count: int = 0
    removed: dict[str, list[Entry]] = field(default_factory=dict)
    added_to: list[str] = field(default_factory=list)

    def text_of(self, rule_id: str) -> str:
        """Return a ruleset's text as far as it is planned."""
        return self.texts[rule_id] if rule_id in self.texts else self.records[rule_id].text

    def changed(self, now: float) -> dict[str, CatalogRule]:
        """Return the rulesets as they would be.

        Raises:
            RuleInvalidError: an entry is wrong.
        """
        found = {}
        for rule_id, text in self.texts.items():
            record = self.records.get(rule_id)
            rule = msgspec.structs.replace(checked(MODULE, text), version=record.version + 1 if record else 1)
            found[rule_id] = CatalogRule(
                rule=rule, module=MODULE, source=RuleSource.OWN, text=text, tenant_id=self.tenant_id, changed_at=now
            )
        return found


class RulesetPlanner:
    """Reads the rulesets of a tenant, and plans."""

    def __init__(self, rules: RuleService) -> None:
        self._rules = rules

    def begin(self, session: Session, tenant_id: str, *, locks: bool) -> RulesetPlan:
        """Return a plan in which nothing changes; with `locks` nobody else changes these rulesets until the transaction ends."""
        statement = select(OwnRuleRecord).where(OwnRuleRecord.tenant_id == tenant_id, OwnRuleRecord.module == MODULE.value)
        statement = statement.order_by(OwnRuleRecord.rule_id)
        records = session.scalars(statement.with_for_update() if locks else statement)
        found = {record.rule_id: record for record in records}
        return RulesetPlan(tenant_id, found, self._rules.catalog(session, tenant_id))

    def check_ruleset(self, plan: RulesetPlan, rule_id: str, action: RuleAction | None = None) -> CatalogRule:
        """Return an own ruleset of the tenant.

        Raises:
            InputError: there is none of that id, it is shipped, cannot be read, or does the opposite.
        """
        rule = plan.rules.get(rule_id)
        if rule is not None and rule.source is RuleSource.SHIPPED:
            raise InputError(
                "rule_is_shipped", f"{rule_id} is shipped and cannot be changed", hint="duplicate it, then change yours"
            )
        if rule_id not in plan.records or rule is None:
            raise InputError("rule_not_found", f"there is no ruleset {rule_id!r}")
        if action is not None and rule.rule.action is not action:
            raise InputError(
                "ruleset_action",
                f"the ruleset {rule_id} is one to {rule.rule.action}, not to {action}",
                where="rule_id",
                hint="choose another ruleset",
            )
        return rule

    def add(self, plan: RulesetPlan, request: DecisionRequest) -> None:
        """Plan a decision: put the entries in, and take the same ones out where they say the opposite.

        Raises:
            InputError: a bad ruleset, or an entry that no ruleset can hold.
        """
        if request.rule_id:
            self.check_ruleset(plan, request.rule_id, request.action)
        base, title, severity = OWN_RULESETS[request.action]
        base = request.rule_id or base
        chain = self._chain(plan, base)
        known = {identity(entry) for rule_id in chain for entry in self._entries(plan, rule_id)}
        wanted: dict[Any, Entry] = {identity(entry): entry for entry in request.entries}
        plan.new_entries = [entry for key, entry in wanted.items() if key not in known]
        plan.known_count = len(wanted) - len(plan.new_entries)
        for rule_id in plan.records:
            rule = plan.rules.get(rule_id)
            if rule is not None and rule.rule.action is not request.action:
                self.remove(plan, rule_id, wanted)
        left = list(plan.new_entries)
        while left:
            rule_id = chain[-1] if chain else base
            if rule_id not in plan.records and rule_id not in plan.texts:
                first = Words.of(plan.rules[base].rule.title) if base in plan.rules else title
                suffix = f" ({len(chain)})" if len(chain) > 1 else ""
                named = Words(first.en + suffix, (first.ja or first.en) + suffix)
                plan.texts[rule_id] = new_ruleset(rule_id, named, request.action, severity)
                chain = chain or [rule_id]
            room = self._room(plan, rule_id, left)
            if not room and not self._entries(plan, rule_id):
                shown = line_of(left[0])
                raise InputError(
                    "entry_too_large", f"{shown[:80]}… has {len(shown)} characters: no ruleset can hold it", where="entries"
                )
            if room:
                part, left = left[:room], left[room:]
                plan.texts[rule_id] = _edited(plan.text_of(rule_id), part)
                plan.added_to.append(rule_id)
            if left:
                chain.append(f"{base}-{len(chain) + 1}")

    def remove(self, plan: RulesetPlan, rule_id: str, identities: Iterable[Any]) -> list[Entry]:
        """Plan to take entries out of an own ruleset; returns those that it has."""
        gone = set(identities)
        entries = self._entries(plan, rule_id)
        numbers = {number for number, entry in enumerate(entries) if identity(entry) in gone}
        if not numbers:
            return []
        try:
            plan.texts[rule_id] = without_entries(plan.text_of(rule_id), numbers)
        except YamlProblem as problem:
            raise InputError("rule_invalid", problem.message, where=rule_id, hint=problem.hint) from problem
        found = [entries[number] for number in sorted(numbers)]
        plan.removed.setdefault(rule_id, []).extend(found)
        return found

    def put_back(self, plan: RulesetPlan, rule_id: str, entries: Sequence[Entry]) -> None:
        """Plan to put entries into an own ruleset again, as far as it has none like them."""
        known = {identity(entry) for entry in self._entries(plan, rule_id)}
        missing = [entry for entry in entries if identity(entry) not in known]
        if missing:
            plan.texts[rule_id] = _edited(plan.text_of(rule_id), missing)

    def _chain(self, plan: RulesetPlan, base: str) -> list[str]:
        """Return a ruleset and those that follow it, in their order."""
        numbered = {}
        for rule_id in plan.records:
            found = _NUMBER.search(rule_id)
            if found and rule_id == f"{base}-{found[1]}" and int(found[1]) > 1 and rule_id in plan.rules:
                numbered[int(found[1])] = rule_id
        return [base, *(numbered[key] for key in sorted(numbered))] if base in plan.records else []

    def _entries(self, plan: RulesetPlan, rule_id: str) -> list[Entry]:
        if rule_id in plan.texts:
            return list(checked(MODULE, plan.texts[rule_id]).entries)
        rule = plan.rules.get(rule_id)
        return list(rule.rule.entries) if rule is not None else []

    def _room(self, plan: RulesetPlan, rule_id: str, entries: Sequence[Entry]) -> int:
        """Return how many of these entries a ruleset may still take."""
        free_bytes = FULL_BYTES - len(plan.text_of(rule_id).encode())
        free_entries = FULL_ENTRIES - len(self._entries(plan, rule_id))
        count = 0
        for entry in entries[: max(0, free_entries)]:
            free_bytes -= len(line_of(entry).encode()) + MARGIN_BYTES
            if free_bytes < 0:
                break
            count += 1
        return count


def _edited(text: str, entries: Sequence[Entry]) -> str:
    try:
        return with_entries(text, entries)
    except YamlProblem as problem:
        raise InputError("rule_invalid", problem.message, hint=problem.hint) from problem
