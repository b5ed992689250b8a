"""From a rule's YAML to its struct, by the module that will run it; with the line of everything that is wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.rules.application_rules import read_application_rule, try_application_rule
from keibi.manager.rules.malware_rules import read_malware_rule, try_malware_rule
from keibi.manager.rules.model import Problem, Trial, Words
from keibi.manager.rules.yaml_text import YamlProblem, parse_path, read_yaml, write_path
from keibi.protection.integrity_monitoring.engine import CompiledRules, compile_rules, judge
from keibi.protection.integrity_monitoring.rule_files import rule_from_builtins
from keibi.protection.integrity_monitoring.rules import Change, Rule, Sample
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings
from keibi.protection.patterns import substitute
from keibi.protection.rule_shape import RuleProblem


class FoundProblem(Protocol):
    """What the modules say of a problem: its place ("entities[0].base"), what it is, and what to do."""

    @property
    def path(self) -> str:
        """Where it is, "" for the whole."""

    @property
    def message(self) -> str:
        """What it is."""

    @property
    def hint(self) -> str:
        """What to do."""


@dataclass(frozen=True)
class _RuleKind:
    """How one module reads and tries its rules."""

    read: Callable[[object, bool], tuple[Any | None, Sequence[FoundProblem]]]
    try_change: Callable[[Any, Mapping[str, Any], Mapping[str, str]], Trial]


def check_text(
    module: ModuleId,
    text: str,
    *,
    default_version: int | None = None,
    needs_samples: bool = False,
    tries_samples: bool = True,
) -> tuple[Any | None, list[Problem]]:
    """Return the rule that a text describes, and its problems; the rule may be None only when there are some.

    With `default_version` a text without a version has that one. Without `tries_samples` they are read and not tried.
    """
    kind = _KINDS.get(module)
    if kind is None:
        return None, [Problem(f"the module {module.value!r} is not built yet", hint=f"there are: {', '.join(_KINDS)}")]
    try:
        document = read_yaml(text)
    except YamlProblem as problem:
        return None, [problem_of(problem)]
    value = document.value
    if not isinstance(value, dict):
        return None, [Problem("a rule is a mapping of names to values", hint="begin with `id: …`")]
    if default_version is not None:
        value = {"version": default_version, **value}
    untried = value.pop("samples", None) if not tries_samples else None
    rule, found = kind.read(value, needs_samples and tries_samples)
    if rule is not None and untried is not None:
        rule = _with_samples(rule, untried)
    problems = []
    for one in found:
        path = parse_path(one.path)
        place = document.place_of(path)
        # A block of text begins on the line after its key: what is wrong inside it is counted from there.
        line, column = getattr(one, "line", 0), getattr(one, "column", 0)
        problems.append(Problem(one.message, place.line + line, column or place.column, write_path(path), one.hint))
    return rule, problems


def _with_samples(rule: Any, samples: Any) -> Any:
    type_of = next(field.type for field in msgspec.structs.fields(rule) if field.name == "samples")
    try:
        return msgspec.structs.replace(rule, samples=msgspec.convert(samples, type_of))
    except msgspec.ValidationError:
        return rule  # without them it does the same


def try_change(module: ModuleId, rule: Any, change: Mapping[str, Any], variables: Mapping[str, str]) -> Trial:
    """Say whether a rule would report a change.

    Raises:
        InputError: the change is not of the form of the module's samples.
    """
    return _KINDS[module].try_change(rule, change, variables)


def problem_of(problem: YamlProblem) -> Problem:
    """Return what is wrong with a text as YAML."""
    return Problem(problem.message, problem.place.line, problem.place.column, problem.path, problem.hint, "yaml_invalid")


def _read_integrity_rule(value: object, needs_samples: bool) -> tuple[Any | None, list[RuleProblem]]:
    return rule_from_builtins(value, needs_samples=needs_samples)


def _try_integrity_rule(rule: Rule, change: Mapping[str, Any], variables: Mapping[str, str]) -> Trial:
    try:
        sample = msgspec.convert(dict(change), Sample)
    except msgspec.ValidationError as error:
        hint = "a change has type, key, change, and before and after as far as they exist"
        raise InputError("change_invalid", f"the change is wrong: {error}", hint=hint) from error
    known = dict(variables)
    compiled = compile_rules([rule], IntegrityMonitoringSettings(variables=known))
    if compiled.problems:
        first = compiled.problems[0]
        if not compiled.sets:
            raise InputError("variable_unknown", first.message, where=first.place, hint="give it among the variables")
    key = substitute(sample.key, known).encode("utf-8", "surrogateescape")
    sets = compiled.sets_for(sample.type, key)
    if not sets:
        return _not_watched(compiled, sample)
    before = None if sample.change is Change.CREATED else sample.before
    after = None if sample.change is Change.DELETED else sample.after
    previous = b"?" if sample.change is Change.RENAMED else None
    verdict = judge(sets, key, before, after, previous_key=previous)
    number = compiled.sets.index(sets[0]) + 1
    if verdict is not None:
        return Trial(True, Words(verdict.message, f"「{rule.title.in_language('ja')}」として検知します。"), rule.severity, number)
    watched = ", ".join(sorted(frozenset[str]().union(*(one.attributes for one in sets)))) or "existence only"
    reason = Words(
        f"The rule watches this, but none of the attributes that it compares differ. It compares: {watched}.",
        f"監視対象ですが、比較する属性に差分がありません。比較する属性：{watched}",
    )
    return Trial(False, reason, None, number)


def _not_watched(compiled: CompiledRules, sample: Sample) -> Trial:
    same_type = compiled.of_type(sample.type)
    if not same_type:
        words = Words(f"The rule watches nothing of the type {sample.type}.", f"種類「{sample.type}」は監視対象ではありません。")
    elif any(one.include.match(relative) for one in same_type if (relative := _below(sample.key, one.base)) is not None):
        words = Words("An exclude of the rule lets this pass.", "ルールの除外に一致するため検知しません。")
    else:
        words = Words(
            "It lies outside what the rule watches: below no base, or matched by no include.",
            "監視範囲外です（ベースの外、または対象パターンに一致しません）。",
        )
    return Trial(False, words)


def _below(key: str, base: bytes) -> bytes | None:
    raw = key.encode("utf-8", "surrogateescape")
    if not base:
        return raw
    prefix = base if base.endswith((b"/", b"!")) else base + b"/"
    return raw[len(prefix) :] if raw.startswith(prefix) else None


# One line for each module that is built.
_KINDS: Mapping[ModuleId, _RuleKind] = {
    ModuleId.INTEGRITY_MONITORING: _RuleKind(_read_integrity_rule, _try_integrity_rule),
    ModuleId.APPLICATION_CONTROL: _RuleKind(read_application_rule, try_application_rule),
    ModuleId.ANTI_MALWARE: _RuleKind(read_malware_rule, try_malware_rule),
}
