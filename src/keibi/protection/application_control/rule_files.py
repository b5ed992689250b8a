"""Checking a ruleset as it was written: the shape, then what it means, with every problem and its place at once."""

import re

import msgspec

from keibi.errors import InputError
from keibi.protection.application_control.engine import check_samples
from keibi.protection.application_control.rules import (
    AppliesTo,
    Entry,
    HashEntry,
    InterpreterEntry,
    PackageEntry,
    PathEntry,
    Rule,
    RuleAction,
    Sample,
    Samples,
    SignerEntry,
)
from keibi.protection.patterns import Patterns
from keibi.protection.rule_shape import RuleProblem, check_names, check_techniques, fields_of, shape_problem

_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY_ID = re.compile(r"([0-9A-Fa-f]{16}|[0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})")
_FIELDS = fields_of((Rule, HashEntry, PackageEntry, SignerEntry, PathEntry, InterpreterEntry, AppliesTo, Samples, Sample), "kind")


def rule_from_builtins(written: object, *, needs_samples: bool = False) -> tuple[Rule | None, list[RuleProblem]]:
    """Return the ruleset that plain dictionaries and lists describe, and what is wrong with it.

    The rule is None when its shape is wrong; with a rule and problems, its shape is right and its meaning is not. Samples,
    where there are any, must hold; shipped rules need them (`needs_samples`).
    """
    try:
        rule = msgspec.convert(written, Rule)
    except msgspec.ValidationError as error:
        return None, [shape_problem(error, _FIELDS)]
    problems = [
        *check_names(rule, "ac"),
        *check_techniques(rule.techniques),
        *(problem for number, entry in enumerate(rule.entries) for problem in _check_entry(entry, rule, f"entries[{number}]")),
    ]
    if not problems and (rule.samples is not None or needs_samples):
        problems += [RuleProblem("samples", wrong) for wrong in check_samples(rule)]
    return rule, problems


def _check_entry(entry: Entry, rule: Rule, path: str) -> list[RuleProblem]:
    match entry:
        case HashEntry():
            return _check_hash(entry, path)
        case PackageEntry():
            if not entry.name.strip():
                return [RuleProblem(f"{path}.name", "a package needs a name", "write * for every package of an origin")]
            if entry.name == "*" and not entry.origin and rule.action is RuleAction.BLOCK:
                return [RuleProblem(f"{path}.name", "this blocks every package", "name packages, or their origin")]
        case SignerEntry():
            if not _KEY_ID.fullmatch(entry.key_id):
                hint = "write the last 16, or all 40, hexadecimal digits of its fingerprint"
                return [RuleProblem(f"{path}.key_id", f"{entry.key_id!r} is no id of a key", hint)]
        case PathEntry():
            return _check_pattern(entry.pattern, f"{path}.pattern", rule)
        case InterpreterEntry():
            problems = _check_pattern(entry.path, f"{path}.path", rule)
            if not entry.inline:
                problems.append(RuleProblem(f"{path}.inline", "nothing is named, so the entry does nothing"))
            if entry.from_uid < 0:
                problems.append(RuleProblem(f"{path}.from_uid", f"{entry.from_uid} is no number of a user"))
            return problems
    return []


def _check_hash(entry: HashEntry, path: str) -> list[RuleProblem]:
    problems = []
    if not _SHA256.fullmatch(entry.sha256):
        hint = "write it in lower case" if _SHA256.fullmatch(entry.sha256.lower()) else "sha256sum prints it"
        problems.append(RuleProblem(f"{path}.sha256", f"{entry.sha256[:80]!r} is no SHA-256 of 64 digits", hint))
    if entry.size is not None and entry.size < 0:
        problems.append(RuleProblem(f"{path}.size", f"{entry.size} is no size"))
    return problems


def _check_pattern(pattern: str, path: str, rule: Rule) -> list[RuleProblem]:
    if not pattern.startswith("/"):
        return [RuleProblem(path, f"{pattern!r} is not absolute", "begin with /")]
    try:
        Patterns([pattern.lstrip("/")])
    except InputError as error:
        return [RuleProblem(path, error.message, error.hint)]
    if rule.action is RuleAction.BLOCK and pattern in ("/**", "/*/**"):
        return [RuleProblem(path, f"{pattern!r} blocks everything", "name a folder")]
    return []
