"""Every shipped ruleset of application control: loads, speaks both languages, and says what its samples say."""

import pathlib
import re

import msgspec
import pytest

from keibi.contract.names import ModuleId
from keibi.manager.policies.as_code import read_file
from keibi.manager.rules.catalog import read_content
from keibi.protection.application_control.engine import check_samples, compile_rules, facts_of, speaks_of
from keibi.protection.application_control.rules import InterpreterEntry, PackageEntry, PathEntry, Rule, RuleAction
from keibi.protection.application_control.settings import ApplicationControlSettings

CONTENT = pathlib.Path(__file__).resolve().parents[2] / "content"
SHIPPED = read_content(str(CONTENT))
RULES: dict[str, Rule] = {
    rule_id: found.rule for rule_id, found in SHIPPED.rules.items() if found.module is ModuleId.APPLICATION_CONTROL
}
ALLOWING = {rule_id: rule for rule_id, rule in RULES.items() if rule.action is RuleAction.ALLOW}
BLOCKING = {rule_id: rule for rule_id, rule in RULES.items() if rule.action is RuleAction.BLOCK}
JAPANESE = re.compile(r"[぀-ヿ一-鿿]")


def assigned() -> set[str]:
    texts = [path.read_text() for path in sorted((CONTENT / "policies").glob("*.yaml"))]
    parts = [policy.modules.get(ModuleId.APPLICATION_CONTROL) for text in texts for policy in read_file(text).policies]
    return {key for part in parts if part is not None for key in part.rules}


def test_every_file_is_a_ruleset_without_a_problem():
    assert len(RULES) == len(list((CONTENT / "application_control").glob("*.yaml"))) >= 15
    assert len(ALLOWING) >= 6
    assert len(BLOCKING) >= 6


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_ruleset_is_complete_in_both_languages(rule):
    for text in (rule.title, rule.description):
        assert text.en.strip(), text
        assert JAPANESE.search(text.ja), text
    assert len(rule.title.en) <= 80
    assert not rule.title.en.endswith(".")
    assert rule.description.en.endswith(".")
    assert rule.description.ja.endswith("。")
    assert check_samples(rule) == []
    assert all(sample.why for sample in rule.samples.no_match)
    assert rule.id.startswith(f"ac-{rule.action}-")


def test_titles_are_told_apart_in_both_languages():
    for language in ("en", "ja"):
        titles = [rule.title.in_language(language) for rule in RULES.values()]
        assert len(set(titles)) == len(titles)


def test_no_ruleset_that_blocks_is_assigned_from_the_start():
    assert assigned() <= set(ALLOWING)
    assert {"ac-allow-agent", "ac-allow-package-manager"} <= assigned()


def test_what_allows_by_path_demands_that_root_alone_can_write():
    entries = [entry for rule in ALLOWING.values() for entry in rule.entries if isinstance(entry, PathEntry)]
    assert entries
    assert all(entry.only_root_writable for entry in entries)


def test_what_allows_by_package_names_an_origin():
    entries = [entry for rule in ALLOWING.values() for entry in rule.entries if isinstance(entry, PackageEntry)]
    assert entries
    assert all(entry.origin for entry in entries)


def test_no_ruleset_that_blocks_speaks_of_what_a_ruleset_that_allows_is_shown_with():
    """All of both kinds assigned at once: a server still starts, updates itself and runs its jobs."""
    compiled = compile_rules(BLOCKING.values(), ApplicationControlSettings())
    for rule in ALLOWING.values():
        for sample in rule.samples.match:
            assert not speaks_of(compiled, facts_of(sample)), f"{rule.id}: {sample.path}"


def test_interpreters_are_named_with_both_of_their_folders():
    for rule in RULES.values():
        paths = {entry.path for entry in rule.entries if isinstance(entry, InterpreterEntry)}
        assert {path.removeprefix("/usr") for path in paths if path.startswith("/usr/bin/") and path.endswith("sh")} - paths <= {
            "/bin/zsh"
        }


def test_rulesets_fit_through_the_wire_without_their_samples():
    for rule in RULES.values():
        body = msgspec.json.encode(msgspec.structs.replace(rule, samples=None))
        assert msgspec.json.decode(body, type=Rule).id == rule.id
