"""Allowing and blocking: previewed, made, seen in the list of what is open, and undone."""

import threading

import msgspec
import pytest

from keibi.contract.names import ModuleId
from keibi.errors import AccessError, InputError, KeibiError
from keibi.manager.audit.model import AuditFilter
from keibi.manager.policies.overrides import PolicyChange
from keibi.manager.rules.model import RuleInvalidError
from keibi.manager.software import planning
from keibi.manager.software.choosing import entries_of
from keibi.manager.software.model import ChangeFilter, DecisionRequest, Standing
from keibi.protection.application_control.rules import (
    HashEntry,
    InterpreterEntry,
    PackageEntry,
    PathEntry,
    Rule,
    RuleAction,
    SignerEntry,
)
from tests.unit.manager.policies.world import principal
from tests.unit.manager.software.making import a_change, sha256_of

ALLOW, BLOCK = RuleAction.ALLOW, RuleAction.BLOCK
ALLOWED, BLOCKED = "ac-own-allowed-software", "ac-own-blocked-software"


def of_hashes(action, *names, **more):
    return DecisionRequest(action=action, entries=tuple(HashEntry(sha256=sha256_of(name), name=name) for name in names), **more)


def standings(world, by="hash"):
    return {group.key: group.standing for group in world.software.changes(world.alice, ChangeFilter(), by, None, 1000).items}


def agent_rules(world, computer_id):
    module = next(m for m in world.world.effective(computer_id).modules if m.module is ModuleId.APPLICATION_CONTROL)
    return {rule.rule_id: msgspec.json.decode(rule.body, type=Rule) for rule in module.rules}


def test_a_global_block_goes_to_the_root_and_reaches_every_computer(world):
    first, second = world.world.computer("web-1"), world.world.computer("db-1", os_name="rocky")
    world.tell(first, a_change("/tmp/miner", name="miner"))
    preview = world.software.decisions.preview(world.alice, of_hashes(BLOCK, "miner"))
    assert [path for _, path in preview.policies] == ["Base"]
    assert (preview.change.computer_count, preview.change.computer_names) == (2, ["db-1", "web-1"])
    assert preview.rule_ids == (BLOCKED,)
    assert any("Blocked software" in line.sentence.en and "assigned" in line.sentence.en for line in preview.change.lines)
    assert preview.off_count + preview.detect_count + preview.prevent_count == 2
    assert standings(world) == {sha256_of("miner"): Standing.OPEN}
    before = world.world.effective(first).generation
    decision = world.software.decisions.decide(world.alice, of_hashes(BLOCK, "miner", note="Found at night"))
    assert decision.computer_count == 2
    for computer in (first, second):
        rule = agent_rules(world, computer)[BLOCKED]
        assert rule.action is BLOCK
        assert [entry.sha256 for entry in rule.entries] == [sha256_of("miner")]
    assert world.world.effective(first).generation == before + 1
    assert standings(world) == {sha256_of("miner"): Standing.BLOCKED}
    assert world.software.open_count(world.alice) == 0


def test_an_allowance_goes_to_the_policies_of_the_computers_that_have_it(world):
    linux = world.world.computer("web-1", policy="Base > Linux")
    red_hat = world.world.computer("db-1", os_name="rocky", policy="Base > Linux > RHEL family")
    world.tell(red_hat, a_change("/opt/tool", name="tool"))
    decision = world.software.decisions.decide(world.alice, of_hashes(ALLOW, "tool"))
    assert decision.policies == ("Base > Linux > RHEL family",)
    assert ALLOWED in agent_rules(world, red_hat)
    assert ALLOWED not in agent_rules(world, linux)
    # Where it was not allowed it is open as soon as it comes.
    assert world.software.open_count(world.alice) == 0
    world.tell(linux, a_change("/opt/tool", name="tool"))
    assert standings(world) == {sha256_of("tool"): Standing.OPEN}
    assert standings(world, "computer") == {linux: Standing.OPEN, red_hat: Standing.ALLOWED}


def test_one_decision_is_one_record_in_the_audit_trail(world):
    world.world.computer("web-1")
    count = len(world.world.actions())
    world.software.decisions.decide(world.alice, of_hashes(BLOCK, "a", "b"))
    assert world.world.actions()[: len(world.world.actions()) - count] == ["software.block"]
    record = world.world.audit.list(world.alice, AuditFilter(), limit=1).items[0]
    assert record.summary == "Blocked 2 items of software; reaches 1 computer."
    assert record.detail["policies"] == ["Base"]
    assert world.world.audit.verify(world.alice, world.tenant_id).is_intact


def test_an_undone_decision_leaves_everything_open_again(world):
    computer = world.world.computer("web-1")
    world.tell(computer, a_change("/opt/a", name="a"), a_change("/opt/b", name="b"))
    world.software.decisions.decide(world.alice, of_hashes(ALLOW, "a"))
    second = world.software.decisions.decide(world.alice, of_hashes(ALLOW, "a", "b"))
    assert [entry.name for entry in second.entries] == ["b"]
    assert world.software.decisions.preview_undo(world.alice, second.decision_id).computer_count == 1
    undone = world.software.decisions.undo(world.alice, second.decision_id, second.version)
    assert undone.undone_by == "user:alice"
    assert standings(world) == {sha256_of("a"): Standing.ALLOWED, sha256_of("b"): Standing.OPEN}
    with pytest.raises(InputError) as refused:
        world.software.decisions.undo(world.alice, second.decision_id)
    assert refused.value.code == "decision_undone"
    assert world.software.decisions.list(world.alice).items[0].decision_id == second.decision_id
    assert "software.undo" in world.world.actions()


def test_who_changes_their_mind_moves_the_entry_and_undoing_brings_it_back(world):
    computer = world.world.computer("web-1")
    world.tell(computer, a_change("/opt/a", name="a"))
    world.software.decisions.decide(world.alice, of_hashes(BLOCK, "a"))
    change = world.software.decisions.decide(world.alice, of_hashes(ALLOW, "a"))
    rules = agent_rules(world, computer)
    assert rules[BLOCKED].entries == []
    assert len(rules[ALLOWED].entries) == 1
    assert standings(world) == {sha256_of("a"): Standing.ALLOWED}
    world.software.decisions.undo(world.alice, change.decision_id)
    rules = agent_rules(world, computer)
    assert (len(rules[BLOCKED].entries), len(rules[ALLOWED].entries)) == (1, 0)
    assert standings(world) == {sha256_of("a"): Standing.BLOCKED}


def test_undoing_brings_nothing_back_that_was_undone_itself(sqlite_world):
    """Allowed, then blocked; then both are undone, in the order in which they were made: nobody allows it now."""
    decisions, alice = sqlite_world.software.decisions, sqlite_world.alice
    sqlite_world.tell(sqlite_world.world.computer("web-1"), a_change("/opt/a", name="a"))
    allowed = decisions.decide(alice, of_hashes(ALLOW, "a"))
    blocked = decisions.decide(alice, of_hashes(BLOCK, "a"))
    decisions.undo(alice, allowed.decision_id)
    assert standings(sqlite_world) == {sha256_of("a"): Standing.BLOCKED}
    decisions.undo(alice, blocked.decision_id)
    assert standings(sqlite_world) == {sha256_of("a"): Standing.OPEN}
    with pytest.raises(InputError) as again:
        decisions.undo(alice, blocked.decision_id)
    assert again.value.code == "decision_undone"


@pytest.mark.parametrize(
    ("entry", "decided"),
    [
        (PackageEntry(name="tool", origin="Debian"), {"t"}),
        (PackageEntry(name="to*"), {"t"}),
        (PackageEntry(name="tool", origin="Elsewhere"), set()),
        (PackageEntry(name="tool", version="2.*"), set()),
        (SignerEntry(key_id="0123456789ABCDEF"), {"t"}),
        (PathEntry(pattern="/opt/**", only_root_writable=False), {"r"}),
        (PathEntry(pattern="/opt/*", only_root_writable=False), set()),
        (PathEntry(pattern="/opt/?pp/r*n"), {"r"}),
        (PathEntry(pattern="/opt/app/run", only_root_writable=False, user="mallory"), set()),
        (InterpreterEntry(path="/usr/bin/python*"), {"i"}),
    ],
)
@pytest.mark.parametrize("action", [ALLOW, BLOCK])
def test_an_entry_decides_about_what_it_speaks_of_and_nothing_else(sqlite_world, entry, decided, action):
    world = sqlite_world
    computer = world.world.computer("web-1", policy="Base")  # which uses none of the shipped rulesets
    package = {"name": "tool", "version": "1.2", "origin": "Debian", "signer": "AAAA0123456789ABCDEF"}
    world.tell(
        computer,
        a_change("/opt/app/run", name="r"),
        a_change("/usr/bin/tool", name="t", package=package),
        a_change("/usr/bin/python3.11", name="p", kind="software.inline_code", reason_code="inline_code"),
    )
    keys = {"r": sha256_of("r"), "t": sha256_of("t"), "i": "inline:/usr/bin/python3.11"}
    request = DecisionRequest(action=action, entries=(entry,), policy_ids=(world.world.policy_id("Base"),))
    world.software.decisions.decide(world.alice, request)
    now = standings(world)
    wanted = Standing.ALLOWED if action is ALLOW else Standing.BLOCKED
    assert {name for name, key in keys.items() if now[key] is wanted} == decided
    assert {name for name, key in keys.items() if now[key] is Standing.OPEN} == keys.keys() - decided


def test_what_comes_after_an_allowance_by_path_shows_that_it_does_not_hold_there(sqlite_world):
    world = sqlite_world
    computer = world.world.computer("web-1")
    world.tell(computer, a_change("/opt/app/run", name="r", ago=10))
    world.software.decisions.decide(world.alice, DecisionRequest(action=ALLOW, entries=(PathEntry(pattern="/opt/app/run"),)))
    assert world.software.open_count(world.alice) == 0
    world.tell(computer, a_change("/opt/app/run", name="r", ago=-5))
    assert world.software.open_count(world.alice) == 1


def test_deciders_at_the_same_moment_lose_nothing(world):
    world.world.computer("web-1")
    failures = []

    def decide(number):
        try:
            world.software.decisions.decide(world.alice, of_hashes(ALLOW, f"n{number}"))
        except KeibiError as error:
            failures.append(error)

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    entries = world.software.rulesets.entries(world.alice, ALLOWED).items
    assert {row.entry.name for row in entries} == {f"n{number}" for number in range(8)}
    assert world.world.rules.get(world.alice, ALLOWED).version == 8


def test_a_full_ruleset_is_followed_by_another_that_the_same_policies_use(sqlite_world, monkeypatch):
    world = sqlite_world
    monkeypatch.setattr(planning, "FULL_ENTRIES", 3)
    computer = world.world.computer("web-1")
    decision = world.software.decisions.decide(world.alice, of_hashes(BLOCK, *"abcdefg"))
    assert decision.rule_ids == (BLOCKED, f"{BLOCKED}-2", f"{BLOCKED}-3")
    rules = agent_rules(world, computer)
    assert [len(rules[key].entries) for key in decision.rule_ids] == [3, 3, 1]
    assert rules[f"{BLOCKED}-2"].title.ja == "ブロックしたソフトウェア (2)"
    more = world.software.decisions.decide(world.alice, of_hashes(BLOCK, "a", "h"))
    assert more.rule_ids == (f"{BLOCKED}-3",)
    world.software.decisions.undo(world.alice, decision.decision_id)
    assert [entry.name for key in decision.rule_ids for entry in agent_rules(world, computer)[key].entries] == ["h"]


def test_thousands_are_decided_at_once_and_more_than_ten_thousand_are_not(sqlite_world):
    world = sqlite_world
    computer = world.world.computer("web-1")
    names = [f"n{number}" for number in range(2500)]
    world.tell(computer, *(a_change(f"/opt/{name}", name=name) for name in names))
    groups = world.software.all_of(world.alice, ChangeFilter(standing=Standing.OPEN))
    request = DecisionRequest(action=ALLOW, entries=tuple(entries_of(groups)))
    decision = world.software.decisions.decide(world.alice, request)
    assert len(decision.entries) == 2500
    assert len(decision.rule_ids) == 3
    assert world.software.open_count(world.alice) == 0
    with pytest.raises(InputError) as refused:
        world.software.decisions.decide(world.alice, of_hashes(ALLOW, *(f"m{number}" for number in range(10_001))))
    assert refused.value.code == "too_many_chosen"


def test_a_ruleset_of_ones_own_keeps_its_comments_and_takes_decisions(sqlite_world):
    world = sqlite_world
    computer = world.world.computer("web-1")
    text = f"""\
# Ours, with care.
id: ac-own-shop
version: 1
title: {{en: Shop}}
description: {{en: What the shop runs.}}
severity: low
action: allow
entries:
  # the till
  - kind: hash
    sha256: {sha256_of("till")}
  - {{kind: path, pattern: /srv/shop/**}}
# the end
applies_to: {{os: [debian]}}
"""
    world.world.rules.create(world.alice, ModuleId.APPLICATION_CONTROL, text)
    decided = world.software.decisions.decide(world.alice, of_hashes(ALLOW, "printer", "till", rule_id="ac-own-shop"))
    assert [entry.name for entry in decided.entries] == ["printer"]
    kept = world.world.rules.get(world.alice, "ac-own-shop").text
    assert "# the till" in kept
    assert "# the end" in kept
    assert [type(entry).__name__ for entry in agent_rules(world, computer)["ac-own-shop"].entries] == [
        "HashEntry",
        "PathEntry",
        "HashEntry",
    ]
    assert world.software.decisions.remove_entries(world.alice, "ac-own-shop", [HashEntry(sha256=sha256_of("till"))]) == 1
    assert len(agent_rules(world, computer)["ac-own-shop"].entries) == 2
    with pytest.raises(InputError) as refused:
        world.software.decisions.decide(world.alice, of_hashes(BLOCK, "x", rule_id="ac-own-shop"))
    assert refused.value.code == "ruleset_action"


def test_what_cannot_be_decided_is_said_and_changes_nothing(world):
    world.world.computer("web-1")
    group = world.world.group("Tokyo")
    cases = [
        (world.alice, DecisionRequest(action=BLOCK, entries=()), InputError, "nothing_chosen"),
        (world.alice, of_hashes(BLOCK, "a", rule_id="ac-nowhere"), InputError, "rule_not_found"),
        (world.alice, of_hashes(BLOCK, "a", policy_ids=("f" * 32,)), InputError, "policy_not_found"),
        (world.alice, of_hashes(BLOCK, "a", note="x" * 501), InputError, "note_too_long"),
        (world.alice, DecisionRequest(action=BLOCK, entries=(HashEntry(sha256="short"),)), RuleInvalidError, "rule_invalid"),
        (world.alice, DecisionRequest(action=BLOCK, entries=(PathEntry(pattern="/**"),)), RuleInvalidError, "rule_invalid"),
        (principal(world.tenant_id, group=group), of_hashes(BLOCK, "a"), AccessError, "not_allowed"),
        (principal(world.tenant_id, permissions=frozenset({"rules.edit", "rules.view"})), of_hashes(BLOCK, "a"), AccessError, ""),
        (principal(world.tenant_id, world.world.other_tenant_id), of_hashes(BLOCK, "a"), InputError, "tenant_not_chosen"),
    ]
    for who, request, family, code in cases:
        for call in (world.software.decisions.preview, world.software.decisions.decide):
            with pytest.raises(family) as refused:
                call(who, request)
            assert not code or refused.value.code == code
    assert world.software.rulesets.list(world.alice) == [
        row for row in world.software.rulesets.list(world.alice) if not row.is_own
    ]
    assert world.software.decisions.list(world.alice).items == []
    decision = world.software.decisions.decide(world.alice, of_hashes(BLOCK, "a"))
    with pytest.raises(InputError) as refused:
        world.software.decisions.undo(world.world.eve, decision.decision_id)
    assert refused.value.code == "decision_not_found"


def test_rulesets_are_listed_with_where_they_apply(world):
    computer = world.world.computer("web-1")
    world.tell(computer, a_change("/opt/a", name="a"))
    world.software.decisions.decide(world.alice, of_hashes(ALLOW, "a", "b", "c"))
    row = world.software.rulesets.get(world.alice, ALLOWED)
    assert (row.entry_count, row.computer_count, row.action) == (3, 1, ALLOW)
    assert [path for _, path in row.policies] == ["Base > Linux > Debian and Ubuntu"]
    page = world.software.rulesets.entries(world.alice, ALLOWED, limit=2)
    assert ([entry.entry.name for entry in page.items], page.total) == (["c", "b"], 3)
    assert [entry.number for entry in world.software.rulesets.entries(world.alice, ALLOWED, cursor=page.next_cursor).items] == [0]
    assert world.software.rulesets.entries(world.alice, ALLOWED, text=sha256_of("b")[:9]).total == 1
    assert world.software.rulesets.entries(world.alice, ALLOWED, kind="path").total == 0
    with pytest.raises(InputError):
        world.software.rulesets.get(world.world.eve, ALLOWED)


def test_the_preview_counts_whom_the_policy_leaves_unguarded(sqlite_world):
    world = sqlite_world
    world.world.computer("off", policy="Base")
    world.world.computer("watching", policy="Base > Linux")
    for path, state in (("Base", "off"), ("Base > Linux", "detect")):
        change = msgspec.convert({"modules": {"application_control": {"state": state}}}, PolicyChange)
        world.world.policies.change(world.alice, world.world.policy_id(path), change, world.world.version(path))
    preview = world.software.decisions.preview(world.alice, of_hashes(BLOCK, "a"))
    assert (preview.off_count, preview.detect_count, preview.prevent_count) == (1, 1, 0)
