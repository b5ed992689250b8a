"""Checking a rule as it was written: the shape, then what it means, with every problem and its place at once."""

import re
from typing import Any

import msgspec

from keibi.errors import InputError
from keibi.protection.integrity_monitoring.engine import check_base, check_samples, resolve_attributes
from keibi.protection.integrity_monitoring.rules import AppliesTo, EntitySet, Rule, Sample, Samples
from keibi.protection.patterns import Patterns
from keibi.protection.rule_shape import RuleProblem, check_names, check_techniques, fields_of, shape_problem

_FIELDS = fields_of((Rule, EntitySet, AppliesTo, Samples, Sample))


def rule_from_builtins(written: object, *, needs_samples: bool = False) -> tuple[Rule | None, list[RuleProblem]]:
    """Return the rule that plain dictionaries and lists describe, and what is wrong with it.

    The rule is None when its shape is wrong; with a rule and problems, its shape is right and its meaning is not. Samples,
    where there are any, must hold; shipped rules need them (`needs_samples`).
    """
    try:
        rule = msgspec.convert(written, Rule)
    except msgspec.ValidationError as error:
        return None, [shape_problem(error, _FIELDS)]
    problems = [
        *_check_names(rule),
        *(problem for number, entities in enumerate(rule.entities) for problem in _check_set(entities, f"entities[{number}]")),
    ]
    if not problems and (rule.samples is not None or needs_samples):
        problems += [RuleProblem("samples", wrong) for wrong in check_samples(rule)]
    return rule, problems


def _check_names(rule: Rule) -> list[RuleProblem]:
    problems = check_names(rule, "im")
    if not rule.entities:
        problems.append(RuleProblem("entities", "a rule that watches nothing does nothing", "add at least one entity set"))
    return problems + check_techniques(rule.techniques)


def _check_set(entities: EntitySet, path: str) -> list[RuleProblem]:
    problems = []

    def check(place: str, action: Any) -> None:
        try:
            action()
        except InputError as error:
            problems.append(RuleProblem(f"{path}.{place}", error.message, error.hint))

    check("base", lambda: check_base(entities.type, entities.base))
    for name in ("include", "exclude"):
        for number, pattern in enumerate(getattr(entities, name)):
            readable = re.sub(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", "x", pattern)
            check(f"{name}[{number}]", lambda readable=readable: Patterns([readable]))
    if not entities.include:
        problems.append(RuleProblem(f"{path}.include", "nothing is included, so the set watches nothing"))
    for number, attribute in enumerate(entities.attributes):
        check(f"attributes[{number}]", lambda attribute=attribute: resolve_attributes(entities.type, [attribute]))
    return problems
