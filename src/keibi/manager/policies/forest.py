"""A tenant's whole tree as one value: read once, changed in memory to try something, and walked. Pure but for `load`."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.errors import InputError
from keibi.manager.policies.model import MAX_LEVELS, PATH_SEPARATOR
from keibi.manager.policies.overrides import Overrides
from keibi.manager.policies.resolution import Layer
from keibi.manager.policies.tables import ComputerOverridesRecord, PolicyRecord
from keibi.manager.rules.os_families import family_of

NO_OVERRIDES = Overrides()
NOTHING_SAID = "{}"
"""How NO_OVERRIDES is written in the database."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One policy of the tree."""

    policy_id: str
    parent_id: str | None
    name: str
    description: str
    template: str
    version: int
    overrides: Overrides


@dataclass(frozen=True)
class Forest:
    """All policies of one tenant, and what its computers say themselves."""

    tenant_id: str
    branches: Mapping[str, Branch]
    computers: Mapping[str, Overrides]  # only those that say something

    def chain(self, policy_id: str) -> list[Branch]:
        """Return the policies from the root to this one."""
        found: list[Branch] = []
        at: str | None = policy_id
        while at is not None and len(found) <= MAX_LEVELS:
            branch = self.branches[at]
            found.append(branch)
            at = branch.parent_id
        return found[::-1]

    def path(self, policy_id: str) -> str:
        """Return the names from the root: "Base > Linux"."""
        return PATH_SEPARATOR.join(branch.name for branch in self.chain(policy_id))

    def layers(self, policy_id: str | None, computer_id: str = "", computer_name: str = "") -> list[Layer]:
        """Return the levels down to a policy, or to a computer of that policy that says something itself."""
        layers = []
        names: list[str] = []
        for branch in self.chain(policy_id) if policy_id is not None else ():
            names.append(branch.name)
            layers.append(Layer(branch.policy_id, PATH_SEPARATOR.join(names), branch.overrides))
        if computer_id:
            layers.append(Layer(None, computer_name or computer_id, self.computers.get(computer_id, NO_OVERRIDES)))
        return layers

    def children(self, policy_id: str | None) -> list[Branch]:
        """Return the policies directly below, by name; of None the roots."""
        below = (branch for branch in self.branches.values() if branch.parent_id == policy_id)
        return sorted(below, key=lambda branch: (branch.name.casefold(), branch.policy_id))

    def walk(self, policy_id: str | None = None, level: int = 0) -> Iterator[tuple[Branch, int]]:
        """Yield every policy with its level, parents before children; of one policy, it and all below it."""
        if policy_id is not None:
            yield self.branches[policy_id], level
            level += 1
        for child in self.children(policy_id):
            yield from self.walk(child.policy_id, level)

    def subtree(self, policy_id: str) -> frozenset[str]:
        """Return the ids of a policy and all below it."""
        return frozenset(branch.policy_id for branch, _ in self.walk(policy_id))

    def default_for(self, os_name: str) -> str | None:
        """Return the policy of a computer that nobody gave one: the shipped one for its system, else the nearest above."""
        by_template = {branch.template: branch.policy_id for branch in self.branches.values() if branch.template}
        for template in (family_of(os_name), "linux", "base"):
            if template and template in by_template:
                return by_template[template]
        roots = self.children(None)
        return roots[0].policy_id if len(roots) == 1 else None

    def used_by(self, policy_id: str | None, os_name: str) -> str | None:
        """Return the policy that a computer uses which is assigned `policy_id` (None: the default)."""
        return policy_id if policy_id in self.branches else self.default_for(os_name)

    def with_branch(self, branch: Branch) -> "Forest":
        """Return the same tree with that policy added or put in place of the one with its id.

        Raises:
            InputError: it would be below itself, too deep, or beside another of its name.
        """
        after = replace(self, branches={**self.branches, branch.policy_id: branch})
        if branch.parent_id is not None and branch.parent_id not in self.branches:
            raise InputError("policy_not_found", f"there is no policy {branch.parent_id!r} to be the parent")
        at, level = branch.parent_id, 1
        while at is not None:
            if at == branch.policy_id:
                raise InputError("policy_below_itself", f"{branch.name!r} cannot be moved below itself")
            level += 1
            at = after.branches[at].parent_id
        height = max(depth for _, depth in after.walk(branch.policy_id)) + level
        if height > MAX_LEVELS:
            raise InputError("policy_too_deep", f"the tree would have {height} levels, more than {MAX_LEVELS}")
        for other in after.children(branch.parent_id):
            if other.policy_id != branch.policy_id and other.name.casefold() == branch.name.casefold():
                raise InputError(
                    "policy_exists", f"there is a policy {other.name!r} at this place already", hint="choose another name"
                )
        return after

    def without_branch(self, policy_id: str) -> "Forest":
        """Return the same tree without that policy."""
        return replace(self, branches={key: branch for key, branch in self.branches.items() if key != policy_id})

    def with_computer(self, computer_id: str, overrides: Overrides) -> "Forest":
        """Return the same tree with what a computer says itself."""
        computers = {key: said for key, said in self.computers.items() if key != computer_id}
        if overrides != NO_OVERRIDES:
            computers[computer_id] = overrides
        return replace(self, computers=computers)


def load(session: Session, tenant_id: str) -> Forest:
    """Return a tenant's tree as it is stored."""
    return load_all(session, [tenant_id])[tenant_id]


def load_all(session: Session, tenant_ids: Collection[str]) -> dict[str, Forest]:
    """Return the trees of several tenants by their ids, in two statements however many they are."""
    branches: dict[str, dict[str, Branch]] = {tenant_id: {} for tenant_id in tenant_ids}
    for policy in session.scalars(select(PolicyRecord).where(PolicyRecord.tenant_id.in_(tenant_ids))):
        branches[policy.tenant_id][policy.id] = branch_of(policy)
    computers: dict[str, dict[str, Overrides]] = {tenant_id: {} for tenant_id in tenant_ids}
    said = select(ComputerOverridesRecord).where(
        ComputerOverridesRecord.tenant_id.in_(tenant_ids), ComputerOverridesRecord.overrides != NOTHING_SAID
    )
    for record in session.scalars(said):
        computers[record.tenant_id][record.id] = read_overrides(record.overrides)
    return {tenant_id: Forest(tenant_id, branches[tenant_id], computers[tenant_id]) for tenant_id in branches}


def branch_of(record: PolicyRecord) -> Branch:
    """Return a stored policy as a value."""
    return Branch(
        policy_id=record.id,
        parent_id=record.parent_id,
        name=record.name,
        description=record.description,
        template=record.template,
        version=record.version,
        overrides=read_overrides(record.overrides),
    )


def read_overrides(text: str) -> Overrides:
    """Return overrides from the database."""
    return msgspec.json.decode(text, type=Overrides)


def write_overrides(overrides: Overrides) -> str:
    """Return overrides for the database."""
    return msgspec.json.encode(overrides).decode()
