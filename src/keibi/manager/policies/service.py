"""The policy tree: seeing it, changing it, and what each computer gets of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.contract.policy import ContentReference, EffectivePolicy
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.tables import ComputerRecord
from keibi.manager.database import Database
from keibi.manager.keys import UnlockSecrets
from keibi.manager.policies import forest as forests
from keibi.manager.policies.as_code import PolicyCode
from keibi.manager.policies.assignment import ComputerPolicies
from keibi.manager.policies.editing import PolicyWriter, check_version, checked_description, checked_name, found_policy
from keibi.manager.policies.effective import EffectivePolicies, lock_tree
from keibi.manager.policies.forest import Branch, branch_of
from keibi.manager.policies.model import (
    Applied,
    DifferenceLine,
    EffectiveSettings,
    PolicyNode,
    PolicyVersion,
    Preview,
)
from keibi.manager.policies.module_checks import module_checks
from keibi.manager.policies.overrides import Overrides, PolicyChange, applied
from keibi.manager.policies.pages import modules_of, nodes_of
from keibi.manager.policies.pattern_names import NoPatterns, PatternSource, check_pattern_names
from keibi.manager.policies.proposals import Proposals, computers_of
from keibi.manager.policies.resolution import resolve
from keibi.manager.policies.revising import as_of, changed, listed, old_path, own_lines
from keibi.manager.policies.rule_users import PolicyRuleUsers
from keibi.manager.policies.rulesets import RulesetPolicies
from keibi.manager.policies.tables import PolicyRecord, PolicyVersionRecord
from keibi.manager.policies.templates import provision_templates
from keibi.manager.rules.service import RuleService
from keibi.protection.base import Module
from keibi.protection.catalog import MODULES


class PolicyService:
    """Policies of all tenants. `computers` is the last level (assignment and a computer's own overrides); `code` is YAML.

    `rulesets` is for features that write rules by themselves.
    """

    def __init__(
        self,
        database: Database,
        audit: AuditService,
        rules: RuleService,
        modules: Sequence[Module] = MODULES,
        unlock_secrets: UnlockSecrets | None = None,
        patterns: PatternSource = NoPatterns(),
    ) -> None:
        self._database = database
        self._rules = rules
        self._patterns = patterns
        self._modules = tuple(modules)
        self._writer = PolicyWriter(audit)
        self._proposals = Proposals(modules, module_checks())
        self._effective = EffectivePolicies(rules, modules, unlock_secrets, patterns)
        self.computers = ComputerPolicies(database, audit, rules, self._proposals, modules, patterns)
        self.code = PolicyCode(database, audit, rules, self._proposals, patterns)
        self.rulesets = RulesetPolicies(audit, rules, self._proposals, modules)
        rules.set_users(PolicyRuleUsers(audit, rules, self._proposals))

    # What the rest of the manager needs.

    def effective(self, session: Session, computer_id: str, declared: Mapping[str, int] | None = None) -> EffectivePolicy:
        """Return what a computer shall have, under a generation that grows only when the content differs.

        `declared` is the agent's `settings_versions`. The session must be able to write, since the first answer after a
        change stores the new generation; the others cost one query and no compilation.

        Raises:
            InputError: there is no such computer.
        """
        return self._effective.effective(session, computer_id, declared)

    def content_of(self, session: Session, computer_id: str) -> Mapping[str, ContentReference]:
        """Return the files that a computer's policy names now, by digest; empty when there is no such computer."""
        return self._effective.content_of(session, computer_id)

    @property
    def compilations(self) -> int:
        """How many policies were compiled for heartbeats since the start; the others came from memory."""
        return self._effective.compilations

    def provision(self, session: Session, tenant_id: str) -> None:
        """Give a new tenant the shipped policies; handed to `TenantService`."""
        provision_templates(session, tenant_id, self.code, self._rules.content_directory)

    def default_policy_id(self, session: Session, tenant_id: str, os_name: str) -> str | None:
        """Return the policy that a computer of that system uses when nobody gave it one."""
        return forests.load(session, tenant_id).default_for(os_name)

    # Seeing.

    def tree(self, principal: Principal) -> Sequence[PolicyNode]:
        """Return all policies that the principal may see, parents before children, tenant by tenant.

        Raises:
            AccessError: it may see none.
        """
        principal.require("policies.view")
        with self._database.session(principal.scope(), writes=False) as session:
            return self._nodes(session, sorted(principal.tenants_where("policies.view")))

    def get(self, principal: Principal, policy_id: str) -> PolicyNode:
        """Return one policy.

        Raises:
            InputError: there is none that the principal may see.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = found_policy(session, principal, policy_id)
            return self._node(session, record)

    def effective_settings(self, principal: Principal, policy_id: str) -> EffectiveSettings:
        """Return every value of a policy with its origin and what it would be without this policy.

        Raises:
            InputError: there is no such policy that the principal may see.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = found_policy(session, principal, policy_id)
            forest = forests.load(session, record.tenant_id)
            resolved = resolve(forest.layers(policy_id), self._modules)
            return EffectiveSettings(
                target_kind="policy",
                target_id=policy_id,
                name=record.name,
                path=resolved.path,
                version=record.version,
                heartbeat_seconds=resolved.heartbeat_seconds,
                modules=modules_of(resolved, self._modules, self._rules.catalog(session, record.tenant_id)),
            )

    # Changing.

    def create(
        self,
        principal: Principal,
        name: str,
        parent_id: str | None = None,
        description: str = "",
        change: PolicyChange = PolicyChange(),
    ) -> PolicyNode:
        """Make a policy, as a root or below another.

        Raises:
            AccessError: the principal may not. InputError: a bad or taken name, no such parent, or it does not compile.
        """
        with self._database.session(principal.scope()) as session:
            if parent_id is not None:
                tenant_id = found_policy(session, principal, parent_id, "policies.edit").tenant_id
            else:
                tenant_id = principal.home_tenant_id
                principal.require("policies.edit", tenant_id=tenant_id)
            branch = Branch(
                policy_id=new_id(),
                parent_id=parent_id,
                name=checked_name(name),
                description=checked_description(description),
                template="",
                version=0,
                overrides=applied(Overrides(), change),
            )
            return self._add(session, principal, tenant_id, branch, "policy.create", "Made the policy {path}.")

    def preview(self, principal: Principal, policy_id: str, change: PolicyChange) -> Preview:
        """Say what a change would do, without doing it.

        Raises:
            InputError: no such policy, or the change would be refused. AccessError: the principal may not see it.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = found_policy(session, principal, policy_id)
            return self._propose(session, record, changed(branch_of(record), change))

    def change(self, principal: Principal, policy_id: str, change: PolicyChange, expected_version: int) -> Applied:
        """Apply a change, whole or not at all.

        Raises:
            AccessError: the principal may not. InputError: no such policy; somebody else changed it meanwhile; an unknown or
                wrong value; or something below would no longer compile. The old policy then stays in force.
        """
        with self._database.session(principal.scope()) as session:
            record = self._for_edit(session, principal, policy_id, expected_version)
            after = changed(branch_of(record), change)
            return self._apply(session, principal, record, after, "policy.change", "Changed the policy {path}.")

    def rename(self, principal: Principal, policy_id: str, name: str, expected_version: int) -> Applied:
        """Give a policy another name; computers keep their generation.

        Raises:
            As `change`.
        """
        return self.change(principal, policy_id, PolicyChange(name=name), expected_version)

    def preview_move(self, principal: Principal, policy_id: str, parent_id: str | None) -> Preview:
        """Say what moving a policy with all below it to another parent (None: to the top) would do.

        Raises:
            InputError: no such policy or parent, or it would be refused.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = found_policy(session, principal, policy_id)
            return self._propose(session, record, replace(branch_of(record), parent_id=parent_id))

    def move(self, principal: Principal, policy_id: str, parent_id: str | None, expected_version: int) -> Applied:
        """Move a policy with all below it to another parent (None: to the top).

        Raises:
            AccessError: the principal may not. InputError: no such policy or parent, below itself, or it does not compile there.
        """
        with self._database.session(principal.scope()) as session:
            record = self._for_edit(session, principal, policy_id, expected_version)
            after = replace(branch_of(record), parent_id=parent_id)
            return self._apply(session, principal, record, after, "policy.move", "Moved the policy to {path}.")

    def duplicate(self, principal: Principal, policy_id: str, name: str) -> PolicyNode:
        """Make a policy beside another one that says the same.

        Raises:
            AccessError: the principal may not. InputError: no such policy, or a bad or taken name.
        """
        with self._database.session(principal.scope()) as session:
            record = found_policy(session, principal, policy_id, "policies.edit")
            source = branch_of(record)
            branch = Branch(
                policy_id=new_id(),
                parent_id=source.parent_id,
                name=checked_name(name),
                description=source.description,
                template="",
                version=0,
                overrides=source.overrides,
            )
            summary = f"Made the policy {{path}} as a copy of {source.name}."
            return self._add(session, principal, record.tenant_id, branch, "policy.duplicate", summary)

    def delete(self, principal: Principal, policy_id: str, expected_version: int | None = None) -> None:
        """Delete a policy that has no policies below it and no computers.

        Raises:
            AccessError: the principal may not. InputError: no such policy, or it is in use, with the names.
        """
        with self._database.session(principal.scope()) as session:
            record = found_policy(session, principal, policy_id, "policies.edit")
            lock_tree(session, record.tenant_id)
            if expected_version is not None:
                check_version(record.name, record.version, expected_version)
            forest = forests.load(session, record.tenant_id)
            path = forest.path(policy_id)
            children = [child.name for child in forest.children(policy_id)]
            if children:
                raise InputError(
                    "policy_has_children",
                    f"{path} has policies below it: {listed(children)}",
                    where=path,
                    hint="move or delete those first",
                )
            users = [
                computer.name
                for computer in computers_of(session, record.tenant_id)
                if forest.used_by(computer.policy_id, computer.os_name) == policy_id
            ]
            if users:
                raise InputError(
                    "policy_in_use",
                    f"{path} is used by {listed(sorted(users, key=str.casefold))}",
                    where=path,
                    hint="assign those computers another policy first",
                )
            self._writer.remove(session, principal, record, path)

    # Versions.

    def versions(self, principal: Principal, policy_id: str) -> Sequence[PolicyVersion]:
        """Return every version of a policy, newest first.

        Raises:
            InputError: there is no such policy that the principal may see.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = found_policy(session, principal, policy_id)
            forest = forests.load(session, record.tenant_id)
            rows = session.scalars(
                select(PolicyVersionRecord)
                .where(PolicyVersionRecord.policy_id == policy_id, PolicyVersionRecord.tenant_id == record.tenant_id)
                .order_by(PolicyVersionRecord.version.desc())
            )
            return [
                PolicyVersion(
                    version=row.version,
                    name=row.name,
                    path=old_path(forest, row),
                    at=row.changed_at,
                    by=row.changed_by,
                    summary=row.summary,
                    is_current=row.version == record.version,
                )
                for row in rows
            ]

    def compare_versions(self, principal: Principal, policy_id: str, before: int, after: int) -> Sequence[DifferenceLine]:
        """Return what differs between two versions of a policy, both seen below its present parents.

        Raises:
            InputError: no such policy or version.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = found_policy(session, principal, policy_id)
            forest = forests.load(session, record.tenant_id)
            catalog = self._rules.catalog(session, record.tenant_id)
            present = branch_of(record)
            layers = [
                forest.with_branch(as_of(present, self._version(session, record, number))).layers(policy_id)
                for number in (before, after)
            ]
            return self._proposals.lines(layers[0], layers[1], catalog)

    def preview_return(self, principal: Principal, policy_id: str, version: int) -> Preview:
        """Say what returning a policy to an older version would do.

        Raises:
            InputError: no such policy or version, or it would be refused.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = found_policy(session, principal, policy_id)
            return self._propose(session, record, as_of(branch_of(record), self._version(session, record, version)))

    def return_to(self, principal: Principal, policy_id: str, version: int, expected_version: int) -> Applied:
        """Make a new version that says what an older one said. The policy keeps its place in the tree.

        Raises:
            AccessError: the principal may not. InputError: no such policy or version, or it does not compile any more.
        """
        with self._database.session(principal.scope()) as session:
            record = self._for_edit(session, principal, policy_id, expected_version)
            after = as_of(branch_of(record), self._version(session, record, version))
            summary = f"Returned the policy {{path}} to version {version}."
            return self._apply(session, principal, record, after, "policy.return", summary)

    # Shared steps.

    def _for_edit(self, session: Session, principal: Principal, policy_id: str, expected_version: int) -> PolicyRecord:
        record = found_policy(session, principal, policy_id, "policies.edit")
        lock_tree(session, record.tenant_id)
        session.refresh(record)
        check_version(record.name, record.version, expected_version)
        return record

    def _propose(self, session: Session, record: PolicyRecord, branch: Branch) -> Preview:
        before = forests.load(session, record.tenant_id)
        catalog = self._rules.catalog(session, record.tenant_id)
        computers = computers_of(session, record.tenant_id)
        after = before.with_branch(branch)
        known = before.branches[record.id].overrides
        self._proposals.check_overrides(branch.overrides, catalog, known)
        check_pattern_names(self._patterns.contents(session, record.tenant_id), branch.overrides, known)
        self._proposals.check_forest(after, catalog, after.subtree(record.id), computers)
        lines = own_lines(before, after, branch)
        lines += self._proposals.lines(before.layers(record.id), after.layers(record.id), catalog)
        impact = self._proposals.impact(before, after, computers, catalog)
        return Preview(
            target_id=record.id,
            expected_version=record.version,
            lines=lines,
            computer_count=impact.computer_count,
            computer_names=impact.computer_names,
            policies=impact.policies,
            is_empty=branch == before.branches[record.id],
        )

    def _apply(
        self, session: Session, principal: Principal, record: PolicyRecord, branch: Branch, action: str, summary: str
    ) -> Applied:
        preview = self._propose(session, record, branch)
        if preview.is_empty:
            return Applied(target_id=record.id, version=record.version, preview=preview)
        forest = forests.load(session, record.tenant_id).with_branch(branch)
        detail = {"lines": [line.sentence.en for line in preview.lines], "computers": preview.computer_count}
        text = summary.format(path=forest.path(record.id))
        record = self._writer.write(session, principal, record.tenant_id, branch, action, text, detail)
        return Applied(target_id=record.id, version=record.version, preview=preview)

    def _add(
        self, session: Session, principal: Principal, tenant_id: str, branch: Branch, action: str, summary: str
    ) -> PolicyNode:
        lock_tree(session, tenant_id)
        forest = forests.load(session, tenant_id).with_branch(branch)
        catalog = self._rules.catalog(session, tenant_id)
        self._proposals.check_overrides(branch.overrides, catalog, Overrides())
        check_pattern_names(self._patterns.contents(session, tenant_id), branch.overrides, Overrides())
        self._proposals.check_compiles(forest.layers(branch.policy_id), catalog)
        text = summary.format(path=forest.path(branch.policy_id))
        record = self._writer.write(session, principal, tenant_id, branch, action, text)
        return self._node(session, record)

    def _version(self, session: Session, record: PolicyRecord, number: int) -> PolicyVersionRecord:
        found = session.scalar(
            select(PolicyVersionRecord).where(
                PolicyVersionRecord.policy_id == record.id,
                PolicyVersionRecord.tenant_id == record.tenant_id,
                PolicyVersionRecord.version == number,
            )
        )
        if found is None:
            raise InputError(
                "policy_version_not_found", f"{record.name} has no version {number}", hint=f"the newest is {record.version}"
            )
        return found

    def _nodes(self, session: Session, tenant_ids: Collection[str]) -> Sequence[PolicyNode]:
        found = session.scalars(select(PolicyRecord).where(PolicyRecord.tenant_id.in_(tenant_ids)))
        records = {record.id: record for record in found}
        counts = session.execute(
            select(ComputerRecord.policy_id, func.count())
            .where(ComputerRecord.tenant_id.in_(tenant_ids), ComputerRecord.policy_id.is_not(None))
            .group_by(ComputerRecord.policy_id)
        )
        assigned = {policy_id: count for policy_id, count in counts if policy_id}
        trees = forests.load_all(session, tenant_ids)
        return [node for tenant_id in tenant_ids for node in nodes_of(trees[tenant_id], records, assigned)]

    def _node(self, session: Session, record: PolicyRecord) -> PolicyNode:
        return next(node for node in self._nodes(session, [record.tenant_id]) if node.policy_id == record.id)
