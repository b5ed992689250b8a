"""Policies as YAML: written out, reviewed, kept under version control, and read in again, as a whole or not at all.

```yaml
keibi: policies/1
policies:
  - name: Web servers
    parent: Base > Linux          # path of the parent; none for a root
    description: What serves pages.
    modules:
      integrity_monitoring:
        state: real-time
        settings: {cpu_percent: 50}
        rules:
          im-linux-web-root: true             # assigned
          im-linux-cron: {severity: high}     # overridden, assignment inherited
rules: {}                          # own rules that these policies name: id -> YAML text
```

A policy is known by its path. What a file says of a policy is all that the policy says afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.contract.names import ModuleId, new_id
from keibi.contract.policy import ModuleState
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database, Scope
from keibi.manager.policies import forest as forests
from keibi.manager.policies.editing import PolicyWriter, checked_description, checked_name, found_policy
from keibi.manager.policies.effective import lock_tree
from keibi.manager.policies.forest import NO_OVERRIDES, Branch, Forest
from keibi.manager.policies.model import PATH_SEPARATOR, ImportResult, ImportStep
from keibi.manager.policies.overrides import HeartbeatSeconds, ModuleOverrides, Overrides, RuleOverride, said
from keibi.manager.policies.pattern_names import PatternSource, check_pattern_names
from keibi.manager.policies.proposals import Proposals, computers_of
from keibi.manager.rules.model import CatalogRule, RuleSource
from keibi.manager.rules.service import RuleService
from keibi.manager.rules.tables import OwnRuleRecord
from keibi.manager.rules.yaml_text import YamlProblem, parse_path, read_yaml, write_path

FORMAT = "policies/1"


class ModuleText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file says of one module. A rule is true (assigned), false (not assigned) or a mapping of overrides."""

    state: ModuleState | None = None
    settings: dict[str, Any] = {}
    rules: dict[str, bool | RuleOverride] = {}


class PolicyText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file says of one policy. `template` is for the shipped ones only."""

    name: str
    parent: str = ""
    description: str = ""
    template: str = ""
    heartbeat_seconds: HeartbeatSeconds | None = None
    modules: dict[ModuleId, ModuleText] = {}

    @property
    def path(self) -> str:
        """The names from the root."""
        return PATH_SEPARATOR.join([*_parts(self.parent), self.name.strip()])

    def overrides(self) -> Overrides:
        """Return what the policy says itself."""
        modules = {}
        for module, part in self.modules.items():
            rules = {key: RuleOverride(is_assigned=rule) if isinstance(rule, bool) else rule for key, rule in part.rules.items()}
            modules[module] = ModuleOverrides(
                state=part.state,
                settings={key: value for key, value in sorted(part.settings.items()) if value is not None},
                rules={key: rule for key, rule in sorted(rules.items()) if said(rule)},
            )
        return Overrides(
            modules={module: part for module, part in sorted(modules.items()) if part != ModuleOverrides()},
            heartbeat_seconds=self.heartbeat_seconds,
        )


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole file."""

    keibi: Literal["policies/1"]
    policies: list[PolicyText]
    rules: dict[str, str] = {}


def read_file(text: str) -> PolicyFile:
    """Return what a YAML text says.

    Raises:
        InputError: it is no such file, with line and column.
    """
    try:
        document = read_yaml(text)
    except YamlProblem as problem:
        where = f"line {problem.place.line}, column {problem.place.column}"
        raise InputError("policy_file_invalid", problem.message, where=where, hint=problem.hint) from problem
    try:
        return msgspec.convert(document.value, PolicyFile)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        path = document.known_part(parse_path(place.strip("`")))
        found = document.place_of(path)
        raise InputError(
            "policy_file_invalid",
            f"{message} at {write_path(path) or 'the top'}",
            where=f"line {found.line}, column {found.column}",
            hint=f"a file begins with `keibi: {FORMAT}` and has `policies:`; export a policy to see the form",
        ) from error


@dataclass(frozen=True)
class _Plan:
    """What a file makes of a tree, tried in memory."""

    after: Forest
    catalog: Mapping[str, CatalogRule]
    steps: list[ImportStep]


class PolicyCode:
    """Writes trees out and reads them in."""

    def __init__(
        self, database: Database, audit: AuditService, rules: RuleService, proposals: Proposals, patterns: PatternSource
    ) -> None:
        self._database = database
        self._rules = rules
        self._proposals = proposals
        self._patterns = patterns
        self._writer = PolicyWriter(audit)

    def export(self, principal: Principal, policy_id: str, *, with_children: bool = False) -> str:
        """Return a policy (and all below it) as YAML, with the own rules that it names.

        Raises:
            InputError: there is no such policy that the principal may see.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = found_policy(session, principal, policy_id)
            forest = forests.load(session, record.tenant_id)
            catalog = self._rules.catalog(session, record.tenant_id)
        branches = [branch for branch, _ in forest.walk(policy_id)] if with_children else [forest.branches[policy_id]]
        policies = [_written(forest, branch) for branch in branches]
        named = {key for branch in branches for part in branch.overrides.modules.values() for key in part.rules}
        own = {key: catalog[key].text for key in sorted(named) if key in catalog and catalog[key].source is RuleSource.OWN}
        content: dict[str, Any] = {"keibi": FORMAT, "policies": policies}
        if own:
            content["rules"] = own
        return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)

    def preview_import(self, principal: Principal, text: str) -> ImportResult:
        """Say what reading a file in would do (a dry run).

        Raises:
            As `import_file`.
        """
        return self._import(principal, text, is_dry_run=True)

    def import_file(self, principal: Principal, text: str) -> ImportResult:
        """Read a file in: make and change the policies and own rules that it names, all of them or none.

        Raises:
            AccessError: the principal may not. InputError: with the line, or with the value that is wrong and its place.
        """
        return self._import(principal, text, is_dry_run=False)

    def provision(self, session: Session, tenant_id: str, text: str) -> None:
        """Make the policies of a shipped file for a tenant that has none of them, in the caller's transaction."""
        who = Scope(frozenset({tenant_id}), "system:policies")
        plan = self._plan(session, tenant_id, read_file(text), is_shipped=True)
        self._write_all(session, who, tenant_id, plan)

    def _import(self, principal: Principal, text: str, *, is_dry_run: bool) -> ImportResult:
        file = read_file(text)
        tenant_id = principal.home_tenant_id
        principal.require("policies.edit", tenant_id=tenant_id)
        if file.rules:
            principal.require("rules.edit", tenant_id=tenant_id)
        undo = _DryRunError()
        try:
            # A dry run does everything and takes it back: so it finds exactly what the real one would find.
            with self._database.session(Scope(frozenset({tenant_id}), principal.actor)) as session:
                lock_tree(session, tenant_id)
                rule_steps = [self._import_rule(session, principal, tenant_id, *item) for item in file.rules.items()]
                before = forests.load(session, tenant_id)
                computers = computers_of(session, tenant_id)
                plan = self._plan(session, tenant_id, file)
                impact = self._proposals.impact(before, plan.after, computers, plan.catalog)
                self._proposals.check_forest(plan.after, plan.catalog, _changed_ids(before, plan.after), computers)
                self._write_all(session, principal, tenant_id, plan)
                undo.result = ImportResult(
                    is_applied=not is_dry_run,
                    steps=plan.steps,
                    rules=rule_steps,
                    computer_count=impact.computer_count,
                    computer_names=impact.computer_names,
                )
                if is_dry_run:
                    raise undo
        except _DryRunError:
            pass
        return undo.result

    def _plan(self, session: Session, tenant_id: str, file: PolicyFile, *, is_shipped: bool = False) -> _Plan:
        before = forests.load(session, tenant_id)
        catalog = self._rules.catalog(session, tenant_id)
        after = before
        steps = []
        for text in sorted(file.policies, key=lambda policy: len(_parts(policy.parent))):
            ids = {after.path(key): key for key in after.branches}
            parent_path = PATH_SEPARATOR.join(_parts(text.parent))
            if parent_path and parent_path not in ids:
                raise InputError(
                    "parent_unknown", f"there is no policy {parent_path!r} to be the parent of {text.name!r}", where=text.path
                )
            old = after.branches.get(ids.get(text.path, ""))
            branch = Branch(
                policy_id=old.policy_id if old else new_id(),
                parent_id=ids.get(parent_path) if parent_path else None,
                name=checked_name(text.name),
                description=checked_description(text.description),
                template=old.template if old else (text.template if is_shipped else ""),
                version=old.version if old else 0,
                overrides=text.overrides(),
            )
            try:
                known = old.overrides if old else NO_OVERRIDES
                self._proposals.check_overrides(branch.overrides, catalog, known)
                check_pattern_names(self._patterns.contents(session, tenant_id), branch.overrides, known)
            except InputError as error:
                raise InputError(error.code, error.message, where=f"{text.path}, {error.where}", hint=error.hint) from error
            tried = after.with_branch(branch)
            self._proposals.check_compiles(tried.layers(branch.policy_id), catalog)
            lines = self._proposals.lines(after.layers(old.policy_id), tried.layers(branch.policy_id), catalog) if old else []
            action = "create" if old is None else ("unchanged" if branch == old else "change")
            steps.append(ImportStep(text.path, action, old.policy_id if old else None, lines))
            after = tried
        return _Plan(after, catalog, steps)

    def _write_all(self, session: Session, who: Principal | Scope, tenant_id: str, plan: _Plan) -> None:
        wanted = {step.path: step.action for step in plan.steps}
        for branch, _ in list(plan.after.walk()):
            path = plan.after.path(branch.policy_id)
            if wanted.get(path) in ("create", "change"):
                summary = f"{'Made' if wanted[path] == 'create' else 'Changed'} the policy {path} from a file."
                self._writer.write(session, who, tenant_id, branch, "policy.import", summary)

    def _import_rule(self, session: Session, principal: Principal, tenant_id: str, rule_id: str, text: str) -> ImportStep:
        if rule_id in self._rules.shipped.rules:
            raise InputError("rule_exists", f"{rule_id!r} is a shipped rule and cannot be imported", where=f"rules.{rule_id}")
        record = session.scalar(
            select(OwnRuleRecord).where(OwnRuleRecord.tenant_id == tenant_id, OwnRuleRecord.rule_id == rule_id).with_for_update()
        )
        if record is not None and record.text.strip() == text.strip():
            return ImportStep(rule_id, "unchanged", None, [])
        if record is not None:
            made = self._rules.update_in(session, principal, record, text)
        else:
            made = self._rules.create_in(session, principal, tenant_id, _module_of_rule(rule_id), text)
        if made.rule_id != rule_id:
            raise InputError("rule_id_fixed", f"the text of {rule_id!r} has the id {made.rule_id!r}", where=f"rules.{rule_id}")
        return ImportStep(rule_id, "create" if record is None else "change", None, [])


class _DryRunError(Exception):
    """Ends a dry run's transaction by rolling it back."""

    result: ImportResult


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that a rule inside a file can be read."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _written(forest: Forest, branch: Branch) -> dict[str, Any]:
    chain: Sequence[Branch] = forest.chain(branch.policy_id)
    written: dict[str, Any] = {"name": branch.name}
    if branch.parent_id is not None:
        written["parent"] = PATH_SEPARATOR.join(above.name for above in chain[:-1])
    if branch.description:
        written["description"] = branch.description
    built = msgspec.to_builtins(branch.overrides)
    if "heartbeat_seconds" in built:
        written["heartbeat_seconds"] = built["heartbeat_seconds"]
    for part in built.get("modules", {}).values():
        if "rules" in part:
            part["rules"] = {
                key: rule["is_assigned"] if set(rule) == {"is_assigned"} else rule for key, rule in part["rules"].items()
            }
    if built.get("modules"):
        written["modules"] = built["modules"]
    return written


def _parts(path: str) -> list[str]:
    return [part.strip() for part in path.split(PATH_SEPARATOR.strip()) if part.strip()]


def _changed_ids(before: Forest, after: Forest) -> frozenset[str]:
    changed = [key for key, branch in after.branches.items() if before.branches.get(key) != branch]
    return frozenset(below for key in changed for below in after.subtree(key))


_MODULES_BY_PREFIX = MappingProxyType(
    {"im": ModuleId.INTEGRITY_MONITORING, "am": ModuleId.ANTI_MALWARE, "ac": ModuleId.APPLICATION_CONTROL}
)


def _module_of_rule(rule_id: str) -> ModuleId:
    prefix = rule_id.partition("-")[0]
    if prefix in _MODULES_BY_PREFIX:
        return _MODULES_BY_PREFIX[prefix]
    raise InputError("module_not_built", f"no module has rules that begin with {prefix!r}-", where=f"rules.{rule_id}")
