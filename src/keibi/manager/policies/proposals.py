"""Trying a change on the tree in memory: does everything below still compile, what differs, and who is reached."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.computers.tables import ComputerRecord, ReportRecord
from keibi.manager.policies.compiler import assigned_rules, compile_policy
from keibi.manager.policies.difference import differences
from keibi.manager.policies.forest import Forest
from keibi.manager.policies.model import DifferenceLine, Reached
from keibi.manager.policies.module_checks import ModuleCheck
from keibi.manager.policies.overrides import Overrides
from keibi.manager.policies.resolution import Layer, resolve
from keibi.manager.policies.settings_help import check_settings
from keibi.manager.rules.model import CatalogRule
from keibi.protection.base import Module

MAX_NAMES = 50

Catalog = Mapping[str, CatalogRule]


@dataclass(frozen=True)
class ComputerUse:
    """A computer as far as its policy is concerned. `policy_id` is what is assigned; None means the default."""

    computer_id: str
    name: str
    group_id: str | None
    policy_id: str | None
    os_name: str


@dataclass(frozen=True)
class Impact:
    """Who would get something else than they have."""

    computer_count: int
    computer_names: list[str]
    policies: list[Reached]


class Proposals:
    """Judges trees. Holds nothing of any tenant."""

    def __init__(self, modules: Sequence[Module], checks: Mapping[ModuleId, ModuleCheck]) -> None:
        self._modules = tuple(modules)
        self._by_id = {module.module: module for module in modules}
        self._checks = dict(checks)

    def check_overrides(self, overrides: Overrides, catalog: Catalog, known: Overrides) -> None:
        """Do nothing when every name and value that is said may be said. What `known` says already is not asked again.

        Raises:
            InputError: an unknown module, state, setting or rule, or a value outside its limits; with what is nearest.
        """
        for module_id, said in overrides.modules.items():
            module = self._by_id.get(module_id)
            if module is None:
                built = ", ".join(self._by_id)
                raise InputError(
                    "module_not_built", f"the module {module_id.value!r} is not built yet", hint=f"there are: {built}"
                )
            if said.state is not None and said.state not in module.states:
                states = ", ".join(module.states)
                raise InputError(
                    "state_invalid",
                    f"{module.title.en} cannot be {said.state.value!r}",
                    where=f"{module_id}.state",
                    hint=f"it can be {states}",
                )
            check_settings(module, said.settings, module_id)
            before = known.modules.get(module_id)
            for rule_id in said.rules:
                found = catalog.get(rule_id)
                if (found is None or found.module is not module_id) and (before is None or rule_id not in before.rules):
                    near = difflib.get_close_matches(
                        rule_id, [key for key, rule in catalog.items() if rule.module is module_id], n=1
                    )
                    raise InputError(
                        "rule_unknown",
                        f"{module.title.en} has no rule {rule_id!r}",
                        where=f"{module_id}.rules.{rule_id}",
                        hint=f"did you mean {near[0]!r}?" if near else "see the list of rules",
                    )

    def check_compiles(self, layers: Sequence[Layer], catalog: Catalog) -> None:
        """Do nothing when the engines take what these levels make.

        Raises:
            InputError: they do not, with the place and the level in `where`.
        """
        resolved = resolve(layers, self._modules)
        for module in self._modules:
            part = resolved.modules[module.module]
            try:
                settings = msgspec.convert({name: valued.value for name, valued in part.settings.items()}, module.settings_type)
                self._checks[module.module](settings, assigned_rules(part, module.module, catalog))
            except msgspec.ValidationError as error:
                raise InputError("policy_invalid", f"the settings do not fit together: {error}", where=resolved.path) from error
            except InputError as error:
                where = f"{resolved.path}, {error.where}" if error.where else resolved.path
                raise InputError(error.code, error.message, where=where, hint=error.hint) from error

    def check_forest(self, forest: Forest, catalog: Catalog, policy_ids: Iterable[str], computers: Sequence[ComputerUse]) -> None:
        """Check that these policies compile, and those of `computers` which say something themselves and use one of them.

        Raises:
            InputError: one does not.
        """
        wanted = frozenset(policy_ids)
        for policy_id in sorted(wanted, key=forest.path):
            self.check_compiles(forest.layers(policy_id), catalog)
        for computer in computers:
            used = forest.used_by(computer.policy_id, computer.os_name)
            if computer.computer_id in forest.computers and used in wanted:
                self.check_compiles(forest.layers(used, computer.computer_id, computer.name), catalog)

    def lines(self, before: Sequence[Layer], after: Sequence[Layer], catalog: Catalog) -> list[DifferenceLine]:
        """Return what differs between two levels."""
        return differences(resolve(before, self._modules), resolve(after, self._modules), self._by_id, catalog)

    def impact(
        self,
        before: Forest,
        after: Forest,
        computers: Sequence[ComputerUse],
        catalog: Catalog,
        *,
        assigned_after: Mapping[str, str | None] | None = None,
        catalog_after: Catalog | None = None,
    ) -> Impact:
        """Return which computers would be compiled something else. `assigned_after` says whose policy would be another."""
        digests: dict[tuple[str | None, str, str, str | None, bool], bool] = {}
        counts: dict[str | None, list[int]] = {}
        names: list[str] = []
        for computer in computers:
            now = before.used_by(computer.policy_id, computer.os_name)
            assigned = (assigned_after or {}).get(computer.computer_id, computer.policy_id)
            then = after.used_by(assigned, computer.os_name)
            speaks = computer.computer_id in before.computers or computer.computer_id in after.computers
            key = (now, computer.os_name, computer.computer_id if speaks else "", then, speaks)
            if key not in digests:
                digests[key] = self._digest(before, now, computer, speaks, catalog) != self._digest(
                    after, then, computer, speaks, catalog_after or catalog
                )
            count = counts.setdefault(then, [0, 0])
            count[0] += 1
            if digests[key]:
                count[1] += 1
                names.append(computer.name)
        policies = [
            Reached(policy_id, after.path(policy_id), *count)
            for policy_id, count in counts.items()
            if policy_id is not None and count[1]
        ]
        policies.sort(key=lambda reached: reached.path.casefold())
        return Impact(len(names), sorted(names, key=str.casefold)[:MAX_NAMES], policies)

    def _digest(self, forest: Forest, policy_id: str | None, computer: ComputerUse, speaks: bool, catalog: Catalog) -> str:
        speaks = speaks and computer.computer_id in forest.computers
        layers = forest.layers(policy_id, computer.computer_id if speaks else "", computer.name)
        return compile_policy(resolve(layers, self._modules), self._modules, catalog, computer.os_name).digest


def computers_of(session: Session, tenant_id: str) -> list[ComputerUse]:
    """Return all computers of a tenant."""
    return computers_by_tenant(session, [tenant_id])[tenant_id]


def computers_by_tenant(session: Session, tenant_ids: Collection[str]) -> dict[str, list[ComputerUse]]:
    """Return all computers of several tenants by the tenants' ids, in one statement however many they are."""
    found: dict[str, list[ComputerUse]] = {tenant_id: [] for tenant_id in tenant_ids}
    rows = session.execute(
        select(
            ComputerRecord.tenant_id,
            ComputerRecord.id,
            ComputerRecord.display_name,
            ComputerRecord.group_id,
            ComputerRecord.policy_id,
            ReportRecord.os_name,
        )
        .outerjoin(ReportRecord, ReportRecord.id == ComputerRecord.id)
        .where(ComputerRecord.tenant_id.in_(tenant_ids))
    )
    for tenant_id, computer_id, name, group_id, policy_id, os_name in rows:
        found[tenant_id].append(ComputerUse(computer_id, name, group_id, policy_id, os_name or ""))
    return found
