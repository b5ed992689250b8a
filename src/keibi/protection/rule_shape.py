"""What is checked of a rule of any module alike: its shape, its names, and how a problem says its place."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from keibi.protection.base import Text

_TECHNIQUE = re.compile(r"T\d{4}(\.\d{3})?")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `([^`]*)`")


@dataclass(frozen=True)
class RuleProblem:
    """One thing that is wrong with a rule. `path` is its place: "entities[0].include[2]", or "" for the whole.

    `line` and `column`, which count from 1, say where inside the text at `path`; 0 where that is not known.
    """

    path: str
    message: str
    hint: str = ""
    line: int = 0
    column: int = 0


class NamedRule(Protocol):
    """What the rules of all modules have."""

    @property
    def id(self) -> str:
        """The id, which begins with the module's letters."""

    @property
    def version(self) -> int:
        """The version, from 1."""

    @property
    def title(self) -> Text:
        """The title."""


def fields_of(structs: Iterable[type[msgspec.Struct]], *others: str) -> list[str]:
    """Return the names of fields that a rule may use, for `shape_problem`; `others` are names that no field bears."""
    return sorted({field.name for struct in structs for field in msgspec.structs.fields(struct)} | set(others))


def shape_problem(error: msgspec.ValidationError, fields: Sequence[str]) -> RuleProblem:
    """Return what msgspec says of a wrong shape, with the field among `fields` that may have been meant."""
    message, _, place = str(error).partition(" - at `")
    path = place.rstrip("`").removeprefix("$").removeprefix(".")
    if found := _UNKNOWN_FIELD.search(message):
        near = difflib.get_close_matches(found[1], fields, n=1)
        return RuleProblem(
            f"{path}.{found[1]}".lstrip("."), f"there is no field {found[1]!r} here", f"did you mean {near[0]!r}?" if near else ""
        )
    return RuleProblem(path, message)


def check_names(rule: NamedRule, prefix: str) -> list[RuleProblem]:
    """Return what is wrong with a rule's id (which begins with `prefix` and a hyphen), version and title."""
    problems = []
    if not re.fullmatch(rf"{prefix}-[a-z0-9]+(-[a-z0-9]+)*", rule.id):
        hint = f"begin with {prefix}-, then words in lower case with - between them"
        problems.append(RuleProblem("id", f"{rule.id!r} is no rule id", hint))
    if rule.version < 1:
        problems.append(RuleProblem("version", f"a version counts from 1, and this is {rule.version}"))
    if not rule.title.en.strip():
        problems.append(RuleProblem("title.en", "a rule needs a title"))
    return problems


def check_techniques(techniques: Iterable[str]) -> list[RuleProblem]:
    """Return the techniques that are no MITRE ATT&CK technique."""
    return [
        RuleProblem(f"techniques[{number}]", f"{technique!r} is no MITRE ATT&CK technique", "write T1053 or T1053.003")
        for number, technique in enumerate(techniques)
        if not _TECHNIQUE.fullmatch(technique)
    ]
