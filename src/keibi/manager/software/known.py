"""What the rulesets say of each computer, as an expression over events: 0 nothing, 1 allowed, 2 blocked.

The order is the engine's (`protection.application_control.engine`): content, package, signer, path; blocking before allowing. An
allowance by path that demands a file of root's cannot be judged from an event, so it counts for what was told before the ruleset
had its present version: an event that comes later shows that the allowance does not hold there.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from keibi.contract.names import ModuleId
from keibi.manager.events.client import Value
from keibi.manager.events.query import microseconds, moment, one_of
from keibi.manager.rules.model import CatalogRule
from keibi.protection.application_control.rules import (
    HashEntry,
    InterpreterEntry,
    PackageEntry,
    PathEntry,
    RuleAction,
    SignerEntry,
)

MAX_EXPRESSION_CHARACTERS = 30_000
NOTHING, ALLOWED, BLOCKED = 0, 1, 2
_MODULE = ModuleId.APPLICATION_CONTROL

_Step = Callable[[Sequence[CatalogRule], RuleAction, int], list[tuple[str, str]]]
"""One kind of entries: from rulesets, what they do and the answer for it to conditions with that answer."""


@dataclass(frozen=True)
class TenantRulesets:
    """The rulesets in use at one tenant, by the computers that have them."""

    tenant_id: str
    usual: tuple[CatalogRule, ...]  # of most computers, and of those that are no more
    others: tuple[tuple[tuple[CatalogRule, ...], frozenset[str]], ...] = ()  # rulesets, and the ids of the computers with them


def grouped(tenant_id: str, rules_of: Mapping[str, frozenset[str]], catalog: Mapping[str, CatalogRule]) -> TenantRulesets:
    """Return the rulesets of a tenant; `rules_of` has the ids of the assigned rulesets of each computer."""
    counted = Counter(rules_of.values())
    usual = counted.most_common(1)[0][0] if counted else frozenset()

    def rules(ids: Collection[str]) -> tuple[CatalogRule, ...]:
        return tuple(catalog[rule_id] for rule_id in sorted(ids) if rule_id in catalog and catalog[rule_id].module is _MODULE)

    others: dict[frozenset[str], set[str]] = {}
    for computer_id, ids in rules_of.items():
        if ids != usual:
            others.setdefault(ids, set()).add(computer_id)
    return TenantRulesets(tenant_id, rules(usual), tuple((rules(ids), frozenset(computers)) for ids, computers in others.items()))


@dataclass
class _Use:
    """Who has one ruleset: all computers of some tenants but a few, and a few computers of others."""

    rule: CatalogRule
    tenant_ids: set[str] = field(default_factory=set)
    without: set[str] = field(default_factory=set)  # computers of these tenants that do not have it
    computer_ids: set[str] = field(default_factory=set)  # that have it though their tenant's others do not


class KnownSoftware:
    """Writes the expression. Names of columns are those of the query in `changes`.

    Each ruleset stands in it once, with the tenants and computers that have it: its length grows with the rulesets that there
    are, and not with every customer that uses a shipped one.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, Value] = {}

    def expression(self, tenants: Sequence[TenantRulesets]) -> str:
        """Return what the rulesets say of an event; `tenants` are those of all events that are asked for."""
        parts = self._parts(tenants)
        both = ((RuleAction.BLOCK, BLOCKED), (RuleAction.ALLOW, ALLOWED))

        def cases(steps: Iterable[_Step]) -> list[tuple[str, str]]:
            return [
                (f"({where}) AND ({said})" if where else said, answer_text)
                for step in steps
                for action, answer in both
                for where, rules in parts
                for said, answer_text in step(rules, action, answer)
            ]

        inline = cases([self._interpreters])
        files = cases([self._hashes, self._packages, self._signers, self._paths])
        if not inline and not files:
            return str(NOTHING)
        return f"if(is_inline, {_choose(inline, str(NOTHING))}, {_choose(files, str(NOTHING))})"

    def _parts(self, tenants: Sequence[TenantRulesets]) -> list[tuple[str, list[CatalogRule]]]:
        """Return rulesets that the same computers have, with the condition that an event is of one of those; "" is of any."""
        everybody = frozenset(tenant.tenant_id for tenant in tenants)
        parts: dict[tuple[frozenset[str], frozenset[str], frozenset[str]], list[CatalogRule]] = {}
        for use in _uses(tenants):
            who = (frozenset(use.tenant_ids), frozenset(use.without), frozenset(use.computer_ids))
            parts.setdefault(who, []).append(use.rule)
        return [(self._where(*who, everybody), rules) for who, rules in parts.items()]

    def _where(
        self, tenant_ids: frozenset[str], without: frozenset[str], computer_ids: frozenset[str], everybody: frozenset[str]
    ) -> str:
        usual = "" if tenant_ids == everybody else self._one_of("tenant_id", tenant_ids) if tenant_ids else "0"
        if without:
            usual = f"{usual or '1'} AND NOT {self._one_of('computer_id', without)}"
        return f"({usual}) OR {self._one_of('computer_id', computer_ids)}" if computer_ids else usual

    def _hashes(self, rules: Sequence[CatalogRule], action: RuleAction, answer: int) -> list[tuple[str, str]]:
        hashes = {entry.sha256 for _, entry in _entries(rules, action) if isinstance(entry, HashEntry)}
        return [(self._one_of("sha256", hashes), str(answer))] if hashes else []

    def _packages(self, rules: Sequence[CatalogRule], action: RuleAction, answer: int) -> list[tuple[str, str]]:
        exact: dict[str, set[str]] = {}
        cases = []
        for _, entry in _entries(rules, action):
            if not isinstance(entry, PackageEntry):
                continue
            if not entry.version and not set("*?[") & set(entry.name):
                exact.setdefault(entry.origin, set()).add(entry.name)
                continue
            clauses = [f"match(package_name, {self._text(_glob(entry.name))})"]
            if entry.origin:
                clauses.append(f"package_origin = {self._text(entry.origin)}")
            if entry.version:
                clauses.append(f"match(package_version, {self._text(_glob(entry.version))})")
            cases.append((f"package_name != '' AND {' AND '.join(clauses)}", str(answer)))
        for origin, names in exact.items():
            clause = self._one_of("package_name", names)
            cases.append((clause if not origin else f"{clause} AND package_origin = {self._text(origin)}", str(answer)))
        return cases

    def _signers(self, rules: Sequence[CatalogRule], action: RuleAction, answer: int) -> list[tuple[str, str]]:
        return [
            (f"package_signer != '' AND endsWith(upper(package_signer), {self._text(entry.key_id.upper()[-16:])})", str(answer))
            for _, entry in _entries(rules, action)
            if isinstance(entry, SignerEntry)
        ]

    def _paths(self, rules: Sequence[CatalogRule], action: RuleAction, answer: int) -> list[tuple[str, str]]:
        plain: list[str] = []
        cases = []
        for rule, entry in _entries(rules, action):
            if not isinstance(entry, PathEntry):
                continue
            needs_root = action is RuleAction.ALLOW and entry.only_root_writable
            if not needs_root and not entry.user:
                plain.append(path_expression(entry.pattern))
                continue
            clause = f"match(subject, {self._text(path_expression(entry.pattern))})"
            if entry.user:
                user = self._text(entry.user)
                clause += f" AND (user = {user} OR toString(uid) = {user})"
            if needs_root:
                name = self._name(microseconds(rule.changed_at or 0.0))
                clause += f" AND detected_at <= {moment(name)}"
            cases.append((clause, str(answer)))
        return [*self._matches("subject", plain, answer), *cases]

    def _interpreters(self, rules: Sequence[CatalogRule], action: RuleAction, answer: int) -> list[tuple[str, str]]:
        found = [path_expression(entry.path) for _, entry in _entries(rules, action) if isinstance(entry, InterpreterEntry)]
        return self._matches("subject", found, answer)

    def _matches(self, column: str, expressions: Sequence[str], answer: int) -> list[tuple[str, str]]:
        cases, start = [], 0
        while start < len(expressions):
            end, length = start, 0
            while end < len(expressions) and (end == start or length + len(expressions[end]) < MAX_EXPRESSION_CHARACTERS):
                length += len(expressions[end]) + 1
                end += 1
            together = "|".join(f"(?:{expression})" for expression in expressions[start:end])
            cases.append((f"match({column}, {self._text(together)})", str(answer)))
            start = end
        return cases

    def _one_of(self, column: str, values: Collection[str]) -> str:
        clause, parameters = one_of(column, f"known_{len(self.parameters)}", values)
        self.parameters |= parameters
        return clause

    def _text(self, value: str) -> str:
        return f"{{{self._name(value)}:String}}"

    def _name(self, value: Value) -> str:
        name = f"known_{len(self.parameters)}"
        self.parameters[name] = value
        return name


def _uses(tenants: Sequence[TenantRulesets]) -> Collection[_Use]:
    found: dict[tuple[str | None, str], _Use] = {}

    def use_of(rule: CatalogRule) -> _Use:
        return found.setdefault((rule.tenant_id, rule.rule_id), _Use(rule))

    for tenant in tenants:
        usual = {rule.rule_id for rule in tenant.usual}
        for rule in tenant.usual:
            use_of(rule).tenant_ids.add(tenant.tenant_id)
        for rules, computer_ids in tenant.others:
            theirs = {rule.rule_id for rule in rules}
            for rule in tenant.usual:
                if rule.rule_id not in theirs:
                    use_of(rule).without.update(computer_ids)
            for rule in rules:
                if rule.rule_id not in usual:
                    use_of(rule).computer_ids.update(computer_ids)
    return found.values()


def path_expression(pattern: str) -> str:
    """Return a pattern of an entry as a whole regular expression (RE2) over the path in an event."""
    parts = pattern.split("/")
    out = ""
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        if part == "**":
            out += ".+" if is_last else "(?:[^/]*/)*"
        else:
            out += "".join({"*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece)) for piece in re.split(r"([*?])", part))
            out += "" if is_last else "/"
    return f"(?s)^{out}$"


def _glob(pattern: str) -> str:
    return "(?s)^" + "".join({"*": ".*", "?": "."}.get(piece, re.escape(piece)) for piece in re.split(r"([*?])", pattern)) + "$"


def _entries(rules: Sequence[CatalogRule], action: RuleAction) -> Iterable[tuple[CatalogRule, object]]:
    return ((rule, entry) for rule in rules if rule.rule.action is action for entry in rule.rule.entries)


def _choose(cases: Sequence[tuple[str, str]], otherwise: str) -> str:
    if not cases:
        return otherwise
    return "multiIf(" + ", ".join(f"{condition}, {answer}" for condition, answer in cases) + f", {otherwise})"
