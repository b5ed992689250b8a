"""Checking a rule as it was written: the shape, then what it means, with every problem and its place at once."""

import difflib
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from keibi.errors import InputError
from keibi.protection.integrity_monitoring.engine import check_base, check_samples, resolve_attributes
from keibi.protection.integrity_monitoring.patterns import Patterns
from keibi.protection.integrity_monitoring.rules import AppliesTo, EntitySet, Rule, Sample, Samples

_ID = re.compile(r"im-[a-z0-9]+(-[a-z0-9]+)*")
_TECHNIQUE = re.compile(r"T\d{4}(\.\d{3})?")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `([^`]*)`")
_FIELDS = sorted(
    {field.name for struct in (Rule, EntitySet, AppliesTo, Samples, Sample) for field in msgspec.structs.fields(struct)}
)


@dataclass(frozen=True)
class RuleProblem:
    """One thing that is wrong with a rule. `path` is its place: "entities[0].include[2]", or "" for the whole."""

    path: str
    message: str
    hint: str = ""


def rule_from_builtins(written: object, *, needs_samples: bool = False) -> tuple[Rule | None, list[RuleProblem]]:
    """Return the rule that plain dictionaries and lists describe, and what is wrong with it.

    The rule is None when its shape is wrong; with a rule and problems, its shape is right and its meaning is not. Samples,
    where there are any, must hold; shipped rules need them (`needs_samples`).
    """
    try:
        rule = msgspec.convert(written, Rule)
    except msgspec.ValidationError as error:
        return None, [_shape_problem(str(error))]
    problems = [
        *_check_names(rule),
        *(problem for number, entities in enumerate(rule.entities) for problem in _check_set(entities, f"entities[{number}]")),
    ]
    if not problems and (rule.samples is not None or needs_samples):
        problems += [RuleProblem("samples", wrong) for wrong in check_samples(rule)]
    return rule, problems


def _shape_problem(said: str) -> RuleProblem:
    message, _, place = said.partition(" - at `")
    path = place.rstrip("`").removeprefix("$").removeprefix(".")
    if found := _UNKNOWN_FIELD.search(message):
        near = difflib.get_close_matches(found[1], _FIELDS, n=1)
        return RuleProblem(
            f"{path}.{found[1]}".lstrip("."), f"there is no field {found[1]!r} here", f"did you mean {near[0]!r}?" if near else ""
        )
    return RuleProblem(path, message)


def _check_names(rule: Rule) -> list[RuleProblem]:
    problems = []
    if not _ID.fullmatch(rule.id):
        problems.append(
            RuleProblem("id", f"{rule.id!r} is no rule id", "begin with im-, then words in lower case with - between them")
        )
    if rule.version < 1:
        problems.append(RuleProblem("version", f"a version counts from 1, and this is {rule.version}"))
    if not rule.title.en.strip():
        problems.append(RuleProblem("title.en", "a rule needs a title"))
    if not rule.entities:
        problems.append(RuleProblem("entities", "a rule that watches nothing does nothing", "add at least one entity set"))
    problems += [
        RuleProblem(f"techniques[{number}]", f"{technique!r} is no MITRE ATT&CK technique", "write T1053 or T1053.003")
        for number, technique in enumerate(rule.techniques)
        if not _TECHNIQUE.fullmatch(technique)
    ]
    return problems


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
