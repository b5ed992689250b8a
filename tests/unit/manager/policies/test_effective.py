"""What computers get: only what fits them, under generations that grow with the content and with nothing else."""

import threading
import time

import msgspec
import pytest

from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from keibi.errors import InputError
from keibi.manager.policies.compiler import compile_policy
from keibi.manager.policies.overrides import Overrides, PolicyChange, applied
from keibi.manager.policies.resolution import Layer, resolve
from keibi.manager.policies.settings_help import known_to
from keibi.protection.catalog import MODULES
from keibi.protection.integrity_monitoring.rules import Rule
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings
from tests.unit.manager.policies.world import OWN_RULE, im, rule_ids, settings_of

IM = ModuleId.INTEGRITY_MONITORING
LINUX, DEBIAN = "Base > Linux", "Base > Linux > Debian and Ubuntu"


def test_a_computer_nobody_gave_a_policy_uses_the_one_of_its_system(sqlite_world):
    names = {
        os_name: sqlite_world.effective(sqlite_world.computer(os_name, os_name)).policy_name
        for os_name in ("ubuntu", "rocky", "arch")
    }
    assert names == {"ubuntu": DEBIAN, "rocky": "Base > Linux > RHEL family", "arch": LINUX}


def test_an_agent_can_read_what_it_gets(sqlite_world):
    policy = sqlite_world.effective(sqlite_world.computer("web-1"))
    assert policy.modules[0].state is ModuleState.REAL_TIME
    msgspec.json.decode(policy.modules[0].settings, type=IntegrityMonitoringSettings)
    rules = [msgspec.json.decode(rule.body, type=Rule) for rule in policy.modules[0].rules]
    assert len(rules) > 50
    assert all(rule.samples is None for rule in rules)


def test_rules_for_another_system_are_left_out_by_themselves(sqlite_world):
    sqlite_world.change(
        "Base", rules={"im-debian-apt-sources": {"is_assigned": True}, "im-rhel-repositories": {"is_assigned": True}}
    )
    debian = rule_ids(sqlite_world.effective(sqlite_world.computer("a", "debian", LINUX)))
    rocky = rule_ids(sqlite_world.effective(sqlite_world.computer("b", "rocky", LINUX)))
    assert "im-debian-apt-sources" in debian
    assert "im-rhel-repositories" not in debian
    assert "im-debian-apt-sources" not in rocky
    assert "im-rhel-repositories" in rocky


def test_the_generation_grows_only_when_what_the_computer_gets_differs(world):
    computer_id = world.computer("web-1")
    assert [world.effective(computer_id).generation for _ in range(3)] == [1, 1, 1]
    world.change("Base > Linux > RHEL family", settings={"cpu_percent": 10})  # elsewhere
    world.policies.rename(world.alice, world.policy_id(DEBIAN), "Debian", world.version(DEBIAN))
    assert world.effective(computer_id).generation == 1
    world.change(LINUX, settings={"cpu_percent": 10})
    assert world.effective(computer_id).generation == 2
    world.change(LINUX, settings={"cpu_percent": None})
    assert world.effective(computer_id).generation == 3  # it never goes back, even to content that was there before


def test_an_own_rule_that_changes_reaches_the_computers_that_use_it(world):
    world.rules.create(world.alice, IM, OWN_RULE)
    world.change(LINUX, rules={"im-own-shop": {"is_assigned": True}})
    computer_id = world.computer("web-1")
    first = world.effective(computer_id)
    world.rules.update(world.alice, "im-own-shop", OWN_RULE.replace("medium", "high"))
    second = world.effective(computer_id)
    assert second.generation == first.generation + 1
    rule = next(rule for rule in second.modules[0].rules if rule.rule_id == "im-own-shop")
    assert (rule.version, msgspec.json.decode(rule.body, type=Rule).severity) == (2, "high")


def test_a_level_changes_rules_as_it_says(world):
    world.change(
        DEBIAN,
        rules={"im-linux-cron": {"severity": "critical", "is_real_time": False, "added_excludes": ["/etc/cron.d/ours", "x.tmp"]}},
    )
    policy = world.effective(world.computer("web-1"))
    rule = next(rule for rule in policy.modules[0].rules if rule.rule_id == "im-linux-cron")
    body = msgspec.json.decode(rule.body, type=Rule)
    assert (body.severity, body.is_real_time) == ("critical", False)
    assert body.entities[0].exclude[-2:] == ["cron.d/ours", "x.tmp"]
    assert body.entities[1].exclude[-1] == "x.tmp"
    assert "cron.d/ours" not in body.entities[1].exclude


def test_a_computer_overrides_on_top_of_its_policy(world):
    one, other = world.computer("web-1"), world.computer("web-2")
    applied = world.policies.computers.change(
        world.alice, one, im(settings={"cpu_percent": 5}, rules={"im-linux-cron": {"is_assigned": False}}), 0
    )
    assert applied.version == 1
    assert applied.preview.computer_names == ["web-1"]
    assert settings_of(world.effective(one))["cpu_percent"] == 5
    assert "im-linux-cron" not in rule_ids(world.effective(one))
    assert settings_of(world.effective(other))["cpu_percent"] == 100
    assert world.effective(one).policy_name == DEBIAN
    shown = world.policies.computers.effective_settings(world.alice, one)
    cpu = shown.modules[IM].settings["cpu_percent"]
    assert (cpu.value, cpu.origin_name, cpu.is_overridden, cpu.inherited_value) == (5, "web-1", True, 100)
    world.policies.computers.change(world.alice, one, im(settings={"cpu_percent": None}, rules={"im-linux-cron": None}), 1)
    assert settings_of(world.effective(one)) == settings_of(world.effective(other))
    assert world.policies.computers.get(world.alice, one).generation == world.effective(one).generation == 2


def test_thousands_of_heartbeats_of_one_policy_are_one_compilation(world):
    computers = [world.computer(f"web-{number}") for number in range(20)]
    for computer_id in computers:
        world.effective(computer_id)
    before = world.policies.compilations
    started = time.perf_counter()
    for _ in range(10):
        for computer_id in computers:
            world.effective(computer_id)
    seconds = (time.perf_counter() - started) / 200
    assert world.policies.compilations == before == 1
    assert seconds < 0.05


def test_heartbeats_at_the_same_moment_agree_on_the_generation(world):
    computer_id = world.computer("web-1")
    world.effective(computer_id)
    world.change(LINUX, settings={"cpu_percent": 42})
    generations = []
    threads = [threading.Thread(target=lambda: generations.append(world.effective(computer_id).generation)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert generations == [2] * 8


def test_an_agent_gets_only_settings_that_its_version_knows(sqlite_world):
    computer_id = sqlite_world.computer("web-1")
    assert sqlite_world.effective(computer_id, {"integrity_monitoring": 1}).modules
    assert sqlite_world.effective(computer_id, {"firewall": 1}).modules == []  # it has no integrity monitoring
    assert known_to(MODULES[0], {"cpu_percent": 1}, 1) == {"cpu_percent": 1}
    assert known_to(MODULES[0], {"cpu_percent": 1}, 0) == {}


def test_without_any_policy_nothing_is_protected():
    nothing = resolve([], MODULES)
    assert nothing.modules[IM].state.value is ModuleState.OFF
    assert compile_policy(nothing, MODULES, {}, "debian").modules[0].rules == []


def test_equal_content_has_an_equal_digest_and_a_name_is_no_content():
    layer = Layer("p", "Base", applied(Overrides(), im(settings={"cpu_percent": 7})))
    one = compile_policy(resolve([layer], MODULES), MODULES, {}, "debian", policy_name="a")
    other = compile_policy(resolve([Layer("q", "Other", layer.overrides)], MODULES), MODULES, {}, "debian", policy_name="b")
    assert one.digest == other.digest


def test_policies_are_assigned_to_computers_and_whole_groups_at_once_with_a_preview(world):
    parent = world.group("Shop")
    group_id = world.group("Shop web", parent)
    web = world.policies.create(world.alice, "Web", world.policy_id(DEBIAN), change=im(settings={"cpu_percent": 10}))
    in_group, alone, outside = world.computer("web-1", group_id=group_id), world.computer("web-2"), world.computer("db-1")
    preview = world.policies.computers.preview_assign(world.alice, web.policy_id, [alone], [parent])
    assert preview.computer_names == ["web-1", "web-2"]
    assert preview.lines[0].sentence.en == f"2 computers go from the default of their system to {web.path}."
    assert world.effective(in_group).policy_name == DEBIAN
    world.policies.computers.assign(world.alice, web.policy_id, [alone], [parent])
    assert [world.effective(key).policy_name for key in (in_group, alone, outside)] == [web.path, web.path, DEBIAN]
    assert world.policies.get(world.alice, web.policy_id).computer_count == 2
    world.policies.computers.assign(world.alice, None, [alone])
    assert world.effective(alone).policy_name == DEBIAN
    with pytest.raises(InputError) as refused:
        world.policies.computers.assign(world.alice, web.policy_id, ["no-such-computer"])
    assert refused.value.code == "computer_not_found"


def test_a_policy_is_not_assigned_to_another_tenants_computer(world):
    foreign = world.computer("theirs", tenant_id=world.other_tenant_id)
    with pytest.raises(InputError) as refused:
        world.policies.computers.assign(world.alice, world.policy_id(LINUX), [foreign])
    assert refused.value.code == "computer_not_found"
    for call in (
        lambda: world.policies.computers.get(world.alice, foreign),
        lambda: world.policies.computers.change(world.alice, foreign, PolicyChange(), 0),
    ):
        with pytest.raises(InputError) as refused:
            call()
        assert refused.value.code == "computer_not_found"
