"""Shipped rules: read from the folders under `content/`, one folder a module, one file a rule."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.rules.checking import check_text
from keibi.manager.rules.model import CatalogRule, Problem, RuleSource
from keibi.manager.rules.yaml_text import MAX_TEXT_BYTES
from keibi.protection.catalog import MODULES


@dataclass(frozen=True)
class FileProblem:
    """A shipped file that is left out, and why."""

    path: str
    problem: Problem

    def __str__(self) -> str:
        hint = f" ({self.problem.hint})" if self.problem.hint else ""
        return f"{self.path}:{self.problem.line}:{self.problem.column}: {self.problem.message}{hint}"


@dataclass(frozen=True)
class ShippedRules:
    """All shipped rules that could be read. `digest` stands for all of their texts together."""

    rules: Mapping[str, CatalogRule] = field(default_factory=dict)
    problems: tuple[FileProblem, ...] = ()
    digest: str = ""


def read_content(content_directory: str, *, tries_samples: bool = True) -> ShippedRules:
    """Return the rules under `content_directory`. A file with a problem is left out and named; the rest is used.

    A manager that starts does not try the samples: that takes a second, and was done when the rules were made.

    Raises:
        InputError: there is no such directory.
    """
    if not os.path.isdir(content_directory):
        raise InputError(
            "content_missing", f"there is no directory {content_directory!r} with the shipped rules", hint="reinstall Keibi"
        )
    rules: dict[str, CatalogRule] = {}
    problems: list[FileProblem] = []
    digest = hashlib.sha256()
    for module in MODULES:
        folder = os.path.join(content_directory, module.module)
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        for name in names:
            if not name.endswith((".yaml", ".yml")) or name.startswith("."):
                continue
            path = os.path.join(module.module, name)
            text, problem = _read(os.path.join(folder, name))
            found = [problem] if problem else []
            if not found:
                rule, found = check_text(module.module, text, needs_samples=True, tries_samples=tries_samples)
                if rule is not None and not found:
                    found = _misplaced(rule.id, name, rules)
                if rule is not None and not found:
                    rules[rule.id] = _shipped(rule, module.module, text)
                    digest.update(f"{rule.id}\0{hashlib.sha256(text.encode()).hexdigest()}\0".encode())
            problems += [FileProblem(path, problem) for problem in found]
    return ShippedRules(rules, tuple(problems), digest.hexdigest())


def _shipped(rule: object, module: ModuleId, text: str) -> CatalogRule:
    return CatalogRule(rule=rule, module=module, source=RuleSource.SHIPPED, text=text)


def _misplaced(rule_id: str, name: str, rules: Mapping[str, CatalogRule]) -> list[Problem]:
    if rule_id in rules:
        return [Problem(f"another file has the id {rule_id!r} too", path="id")]
    if os.path.splitext(name)[0] != rule_id:
        return [Problem(f"the file is called {name!r} but its rule {rule_id!r}", path="id", hint="a file is named like its rule")]
    return []


def _read(path: str) -> tuple[str, Problem | None]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        return data.decode(), None
    except OSError as error:
        return "", Problem(f"the file cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return "", Problem("the file is not UTF-8")
