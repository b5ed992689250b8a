"""Rules that a feature writes by itself: which computers have which, and having policies use one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.policies import forest as forests
from keibi.manager.policies.editing import PolicyWriter
from keibi.manager.policies.effective import lock_tree
from keibi.manager.policies.forest import Forest
from keibi.manager.policies.model import DifferenceLine, Preview
from keibi.manager.policies.overrides import ModuleChange, PolicyChange, RuleChange, applied
from keibi.manager.policies.proposals import ComputerUse, Proposals, computers_by_tenant, computers_of
from keibi.manager.policies.resolution import ResolvedModule, resolve
from keibi.manager.rules.model import CatalogRule
from keibi.manager.rules.os_families import fits
from keibi.manager.rules.service import RuleService
from keibi.protection.base import Module


@dataclass(frozen=True)
class ComputerModule:
    """What one module does on one computer: its state there, and the rules that are assigned and fit."""

    computer: ComputerUse
    policy_id: str | None  # the one that it uses
    state: ModuleState
    rule_ids: frozenset[str]


class RulesetPolicies:
    """Works in the caller's transaction, which has checked the right."""

    def __init__(self, audit: AuditService, rules: RuleService, proposals: Proposals, modules: Sequence[Module]) -> None:
        self._rules = rules
        self._proposals = proposals
        self._modules = {module.module: module for module in modules}
        self._writer = PolicyWriter(audit)

    def computers(self, session: Session, tenant_id: str, module: ModuleId) -> list[ComputerModule]:
        """Return what a module does on each computer of a tenant."""
        return self.computers_by_tenant(session, [tenant_id], module)[tenant_id]

    def computers_by_tenant(
        self, session: Session, tenant_ids: Collection[str], module: ModuleId
    ) -> dict[str, list[ComputerModule]]:
        """Return what a module does on each computer of several tenants, in a few statements however many they are."""
        trees = forests.load_all(session, tenant_ids)
        catalogs = self._rules.catalogs(session, tenant_ids)
        computers = computers_by_tenant(session, tenant_ids)
        return {
            tenant_id: self._modules_of(trees[tenant_id], catalogs[tenant_id], computers[tenant_id], module)
            for tenant_id in tenant_ids
        }

    def _modules_of(
        self, forest: Forest, catalog: Mapping[str, CatalogRule], computers: Sequence[ComputerUse], module: ModuleId
    ) -> list[ComputerModule]:
        known: dict[tuple[str | None, str], ResolvedModule] = {}
        found = []
        for computer in computers:
            used = forest.used_by(computer.policy_id, computer.os_name)
            own = computer.computer_id if computer.computer_id in forest.computers else ""
            if (used, own) not in known:
                layers = forest.layers(used, own, computer.name)
                known[used, own] = resolve(layers, [self._modules[module]]).modules[module]
            part = known[used, own]
            assigned = frozenset(
                rule_id
                for rule_id, rule in part.rules.items()
                if rule.is_assigned.value and rule_id in catalog and fits(catalog[rule_id].os, computer.os_name)
            )
            found.append(ComputerModule(computer, used, part.state.value, assigned))
        return found

    def roots(self, session: Session, tenant_id: str) -> list[str]:
        """Return the policies that nothing is above."""
        return [branch.policy_id for branch in forests.load(session, tenant_id).children(None)]

    def users(
        self, session: Session, tenant_ids: Collection[str], module: ModuleId
    ) -> dict[str, dict[str, tuple[tuple[str, str], ...]]]:
        """Return, by tenant and rule, id and path of the policies that assign each rule of a module themselves."""
        found: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {tenant_id: {} for tenant_id in tenant_ids}
        for tenant_id, forest in forests.load_all(session, tenant_ids).items():
            using = found[tenant_id]
            for branch in forest.branches.values():
                part = branch.overrides.modules.get(module)
                for rule_id, rule in part.rules.items() if part else ():
                    if rule.is_assigned:
                        using[rule_id] = (*using.get(rule_id, ()), (branch.policy_id, forest.path(branch.policy_id)))
        return found

    def subtrees(self, session: Session, tenant_id: str, policy_ids: Collection[str]) -> frozenset[str]:
        """Return these policies and all below them."""
        forest = forests.load(session, tenant_id)
        return frozenset(below for policy_id in policy_ids for below in forest.subtree(policy_id))

    def paths(self, session: Session, tenant_id: str) -> dict[str, str]:
        """Return the path of each policy of a tenant."""
        forest = forests.load(session, tenant_id)
        return {policy_id: forest.path(policy_id) for policy_id in forest.branches}

    def propose(
        self,
        session: Session,
        tenant_id: str,
        module: ModuleId,
        changed: Mapping[str, CatalogRule],
        policy_ids: Collection[str],
        others: Mapping[str, CatalogRule] | None = None,
    ) -> Preview:
        """Say what changing these rules, and having these policies use them, would do; `others` change and stay where they are.

        Raises:
            InputError: no such policy, or something would not compile.
        """
        before = forests.load(session, tenant_id)
        after, touched = self._used(before, module, changed, policy_ids)
        catalog = self._rules.catalog(session, tenant_id)
        catalog_after = {**catalog, **(others or {}), **changed}
        computers = computers_of(session, tenant_id)
        reached = {below for policy_id in policy_ids for below in after.subtree(policy_id)}
        self._proposals.check_forest(after, catalog_after, reached, computers)
        lines: list[DifferenceLine] = []
        for policy_id in touched:
            lines += self._proposals.lines(before.layers(policy_id), after.layers(policy_id), catalog_after)
        impact = self._proposals.impact(before, after, computers, catalog, catalog_after=catalog_after)
        return Preview(
            target_id="",
            expected_version=0,
            lines=lines,
            computer_count=impact.computer_count,
            computer_names=impact.computer_names,
            policies=impact.policies,
            is_empty=not touched and not impact.computer_count,
        )

    def use(
        self,
        session: Session,
        principal: Principal,
        tenant_id: str,
        module: ModuleId,
        changed: Mapping[str, CatalogRule],
        policy_ids: Collection[str],
        summary: str,
    ) -> list[str]:
        """Have these policies use these rules, which are stored by now; return the policies that did not use them before.

        The caller records it in the audit trail, as a part of what it does.

        Raises:
            InputError: no such policy, or something would not compile.
        """
        lock_tree(session, tenant_id)
        before = forests.load(session, tenant_id)
        after, touched = self._used(before, module, changed, policy_ids)
        reached = {below for policy_id in touched for below in after.subtree(policy_id)}
        catalog = self._rules.catalog(session, tenant_id)
        self._proposals.check_forest(after, catalog, reached, computers_of(session, tenant_id))
        for policy_id in touched:
            branch = after.branches[policy_id]
            self._writer.write(session, principal, tenant_id, branch, "policy.change", summary, is_recorded=False)
        return touched

    def _used(
        self, before: Forest, module: ModuleId, changed: Mapping[str, CatalogRule], policy_ids: Collection[str]
    ) -> tuple[Forest, list[str]]:
        after, touched = before, []
        for policy_id in policy_ids:
            if policy_id not in before.branches:
                raise InputError("policy_not_found", f"there is no policy {policy_id!r}")
        # From the root down: what an upper policy assigns by now, a lower one need not say.
        for policy_id in sorted(set(policy_ids), key=lambda key: (len(list(before.chain(key))), before.path(key))):
            part = resolve(after.layers(policy_id), [self._modules[module]]).modules[module]
            missing = [key for key in changed if key not in part.rules or not part.rules[key].is_assigned.value]
            if not missing:
                continue
            change = PolicyChange(modules={module: ModuleChange(rules={key: RuleChange(is_assigned=True) for key in missing})})
            branch = after.branches[policy_id]
            after = after.with_branch(replace(branch, overrides=applied(branch.overrides, change)))
            touched.append(policy_id)
        return after, touched
