"""Application control's rulesets in the catalogue: reading them, and trying one on software that somebody describes."""

from collections.abc import Mapping
from typing import Any

import msgspec

from keibi.errors import InputError
from keibi.manager.rules.model import Trial, Words
from keibi.protection.application_control.engine import compile_rules, facts_of
from keibi.protection.application_control.rule_files import rule_from_builtins
from keibi.protection.application_control.rules import Rule, RuleAction, Sample
from keibi.protection.application_control.settings import ApplicationControlSettings
from keibi.protection.rule_shape import RuleProblem

_HINT = "software has path, and as far as they matter sha256, package, version, origin, signer, user, uid and inline"


def read_application_rule(value: object, needs_samples: bool) -> tuple[Rule | None, list[RuleProblem]]:
    """Return the ruleset that plain values describe, and what is wrong with it."""
    return rule_from_builtins(value, needs_samples=needs_samples)


def try_application_rule(rule: Rule, software: Mapping[str, Any], _variables: Mapping[str, str]) -> Trial:
    """Say whether a ruleset speaks of the software that is described, and what it then does.

    Raises:
        InputError: the description is not of the form of the module's samples.
    """
    try:
        sample = msgspec.convert(dict(software), Sample)
    except msgspec.ValidationError as error:
        raise InputError("change_invalid", f"the software is described wrongly: {error}", hint=_HINT) from error
    compiled = compile_rules([rule], ApplicationControlSettings())
    facts = facts_of(sample)
    if facts.inline is not None:
        found = next((glob.rule for glob in compiled.interpreters if glob.matches(facts)), None)
        how = "by its interpreter" if found else ""
    else:
        opinion = compiled.opinion(facts)
        found, how = (opinion[0], opinion[1]) if opinion else (None, "")
    if found is None:
        words = Words("No entry of this ruleset speaks of it.", "このルールセットに該当するエントリはありません。")
        return Trial(False, words)
    if rule.action is RuleAction.BLOCK:
        return Trial(True, Words(f"It is blocked {how}.", "このルールセットによりブロックします。"), rule.severity)
    return Trial(True, Words(f"It is allowed {how}.", "このルールセットにより許可します。"), rule.severity)
