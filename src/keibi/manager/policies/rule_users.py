"""The policies as users of rules: where a rule is used, and what changing or deleting one means for the trees."""

from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.errors import InputError
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.tables import ComputerRecord
from keibi.manager.policies import forest as forests
from keibi.manager.policies.editing import PolicyWriter
from keibi.manager.policies.effective import lock_tree, touch
from keibi.manager.policies.forest import Forest, write_overrides
from keibi.manager.policies.overrides import Overrides, without_rule
from keibi.manager.policies.pages import rules_named
from keibi.manager.policies.proposals import Proposals, computers_of
from keibi.manager.policies.tables import ComputerOverridesRecord
from keibi.manager.rules.model import CatalogRule, RuleUse
from keibi.manager.rules.service import RuleService


class PolicyRuleUsers:
    """Implements `rules.model.RuleUsers`."""

    def __init__(self, audit: AuditService, rules: RuleService, proposals: Proposals) -> None:
        self._audit = audit
        self._rules = rules
        self._proposals = proposals
        self._writer = PolicyWriter(audit)

    def uses_of(self, session: Session, tenant_ids: frozenset[str], rule_id: str) -> list[RuleUse]:
        """Return the policies and computers that say something of a rule."""
        uses = []
        trees = forests.load_all(session, tenant_ids)
        for tenant_id in sorted(tenant_ids):
            forest = trees[tenant_id]
            named = rules_named(forest, rule_id)
            uses += [RuleUse("policy", key, forest.path(key), assigned) for key, assigned in named.items()]
            computers = [key for key, said in forest.computers.items() if _says(said, rule_id) is not None]
            if computers:
                names = dict(
                    session.execute(
                        select(ComputerRecord.id, ComputerRecord.display_name).where(ComputerRecord.id.in_(computers))
                    ).all()
                )
                uses += [
                    RuleUse("computer", key, names.get(key, key), _says(forest.computers[key], rule_id) is True)
                    for key in computers
                ]
        return sorted(uses, key=lambda use: (use.kind != "policy", use.name.casefold()))

    def assigned_ids(self, session: Session, tenant_ids: frozenset[str], policy_id: str | None) -> frozenset[str]:
        """Return the rules that a policy assigns, with what it inherits; without a policy, those that any policy assigns."""
        found: set[str] = set()
        for forest in forests.load_all(session, tenant_ids).values():
            if policy_id is None:
                for branch in forest.branches.values():
                    found |= _assigned_by(branch.overrides)
            elif policy_id in forest.branches:
                for branch in forest.chain(policy_id):
                    found |= _assigned_by(branch.overrides)
                    found -= _unassigned_by(branch.overrides)
        return frozenset(found)

    def rule_changes(self, session: Session, tenant_id: str, rule: CatalogRule | None, rule_id: str) -> None:
        """Check every policy that speaks of a rule against its new form, then let computers have it.

        Raises:
            InputError: a policy would no longer compile; the rule then stays as it was.
        """
        lock_tree(session, tenant_id)
        if rule is not None:
            forest = forests.load(session, tenant_id)
            catalog = {**self._rules.catalog(session, tenant_id), rule_id: rule}
            reached = {below for policy_id in rules_named(forest, rule_id) for below in forest.subtree(policy_id)}
            computers = computers_of(session, tenant_id)
            try:
                self._proposals.check_forest(forest, catalog, reached, computers)
                for computer in computers:
                    if _says(forest.computers.get(computer.computer_id, Overrides()), rule_id) is not None:
                        used = forest.used_by(computer.policy_id, computer.os_name)
                        self._proposals.check_compiles(forest.layers(used, computer.computer_id, computer.name), catalog)
            except InputError as error:
                raise InputError(
                    error.code, f"the rule does not compile where it is used: {error.message}", where=error.where, hint=error.hint
                ) from error
        touch(session, tenant_id)

    def forget_rule(self, session: Session, who: Any, tenant_id: str, rule_id: str) -> None:
        """Take a rule out of every policy and computer of a tenant."""
        lock_tree(session, tenant_id)
        forest: Forest = forests.load(session, tenant_id)
        for policy_id in rules_named(forest, rule_id):
            branch = forest.branches[policy_id]
            branch = replace(branch, overrides=without_rule(branch.overrides, rule_id))
            summary = f"Took the rule {rule_id} out of the policy {forest.path(policy_id)}."
            self._writer.write(session, who, tenant_id, branch, "policy.change", summary)
        for computer_id, said in forest.computers.items():
            if _says(said, rule_id) is not None:
                record = session.get(ComputerOverridesRecord, computer_id)
                if record is not None:
                    record.overrides = write_overrides(without_rule(said, rule_id))
        session.flush()


def _says(overrides: Overrides, rule_id: str) -> bool | None:
    """Return whether a level assigns a rule; None when it does not speak of it."""
    for part in overrides.modules.values():
        if rule_id in part.rules:
            return part.rules[rule_id].is_assigned is True
    return None


def _assigned_by(overrides: Overrides) -> set[str]:
    return {key for part in overrides.modules.values() for key, rule in part.rules.items() if rule.is_assigned is True}


def _unassigned_by(overrides: Overrides) -> set[str]:
    return {key for part in overrides.modules.values() for key, rule in part.rules.items() if rule.is_assigned is False}
