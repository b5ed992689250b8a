"""The YAML text of a rule: checked as a whole, or with its id or version put in."""

from typing import Any

from keibi.contract.names import ModuleId
from keibi.manager.rules.checking import check_text, problem_of
from keibi.manager.rules.model import RuleInvalidError
from keibi.manager.rules.yaml_text import YamlProblem, with_fields


def checked(module: ModuleId, text: str) -> Any:
    """Return the rule's struct.

    Raises:
        RuleInvalidError: with every problem that was found.
    """
    rule, problems = check_text(module, text, default_version=1)
    if rule is None or problems:
        raise RuleInvalidError(problems)
    return rule


def with_version(text: str, version: int) -> str:
    """Return the text with that version in it.

    Raises:
        RuleInvalidError: it cannot be put in.
    """
    return _with(text, {"version": version})


def with_id(text: str, rule_id: str) -> str:
    """Return the text as the first version of another rule.

    Raises:
        RuleInvalidError: it cannot be put in.
    """
    return _with(text, {"id": rule_id, "version": 1})


def _with(text: str, fields: dict[str, str | int]) -> str:
    try:
        return with_fields(text, fields)
    except YamlProblem as problem:
        raise RuleInvalidError([problem_of(problem)]) from problem
