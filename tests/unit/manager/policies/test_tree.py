"""Inheritance, changes that are whole or nothing, and the shape of the tree."""

import pytest

from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from keibi.errors import AccessError, InputError
from keibi.manager.policies.overrides import PolicyChange
from tests.unit.manager.policies.world import OWN_RULE, im, principal

IM = ModuleId.INTEGRITY_MONITORING
LINUX, DEBIAN = "Base > Linux", "Base > Linux > Debian and Ubuntu"


def module(world, path):
    return world.policies.effective_settings(world.alice, world.policy_id(path)).modules[IM]


def test_a_new_tenant_has_policies_that_only_watch(world):
    nodes = world.policies.tree(world.alice)
    assert [(node.path, node.level) for node in nodes] == [
        ("Base", 0),
        (LINUX, 1),
        (DEBIAN, 2),
        ("Base > Linux > RHEL family", 2),
    ]
    for node in nodes:
        assert world.policies.effective_settings(world.alice, node.policy_id).modules[IM].state.value == ModuleState.REAL_TIME


def test_every_value_says_where_it_comes_from_and_what_it_would_be_without_this_policy(world):
    world.change("Base", settings={"cpu_percent": 50})
    world.change(LINUX, settings={"cpu_percent": 25})
    here = module(world, LINUX).settings["cpu_percent"]
    assert (here.value, here.origin_name, here.is_overridden, here.inherited_value) == (25, LINUX, True, 50)
    below = module(world, DEBIAN).settings["cpu_percent"]
    assert (below.value, below.origin_name, below.is_overridden, below.inherited_value) == (25, LINUX, False, 25)
    untouched = module(world, DEBIAN).settings["full_rehash_days"]
    assert (untouched.value, untouched.origin_policy_id, untouched.origin_name) == (7, None, "")


def test_null_returns_a_value_to_the_inherited_one(sqlite_world):
    sqlite_world.change("Base", settings={"cpu_percent": 50})
    sqlite_world.change(LINUX, settings={"cpu_percent": 25})
    sqlite_world.change(LINUX, settings={"cpu_percent": None})
    assert module(sqlite_world, LINUX).settings["cpu_percent"].value == 50
    assert not module(sqlite_world, LINUX).settings["cpu_percent"].is_overridden


def test_a_rule_is_overridden_part_by_part(sqlite_world):
    sqlite_world.change(DEBIAN, rules={"im-linux-cron": {"severity": "critical", "added_excludes": ["/etc/cron.d/backup"]}})
    rule = next(rule for rule in module(sqlite_world, DEBIAN).rules if rule.rule_id == "im-linux-cron")
    assert (rule.is_assigned.value, rule.is_assigned.origin_name) == (True, LINUX)
    assert (rule.severity.value, rule.severity.is_overridden, rule.severity.inherited_value) == ("critical", True, "medium")
    assert rule.added_excludes.value == ["/etc/cron.d/backup"]
    above = next(rule for rule in module(sqlite_world, LINUX).rules if rule.rule_id == "im-linux-cron")
    assert above.severity.value == "medium"


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"settings": {"cpu_percnt": 5}}, "setting_unknown", "cpu_percent"),
        ({"settings": {"cpu_percent": 1}}, "setting_invalid", ">= 5"),
        ({"settings": {"cpu_percent": "many"}}, "setting_invalid", "many"),
        ({"settings": {"scan_schedule": "every day"}}, "setting_invalid", "every day"),
        ({"state": "prevent"}, "state_invalid", "real-time"),
        ({"rules": {"im-linux-cronn": {"is_assigned": True}}}, "rule_unknown", "im-linux-cron"),
        ({"rules": {"im-linux-cron": {"added_excludes": ["/opt/x"]}}}, "exclude_outside", "/opt/x"),
        ({"rules": {"im-linux-cron": {"added_excludes": ["/etc/cron.d/a**b"]}}}, "pattern_invalid", "**"),
        ({"settings": {"excluded_paths": ["relative/path"]}}, "path_not_absolute", "relative/path"),
    ],
)
def test_a_change_that_is_wrong_is_refused_and_the_old_policy_stays(sqlite_world, change, code, told):
    before = sqlite_world.policies.effective_settings(sqlite_world.alice, sqlite_world.policy_id(LINUX))
    with pytest.raises(InputError) as refused:
        sqlite_world.change(LINUX, **{**change, "settings": {"full_rehash_days": 3, **change.get("settings", {})}})
    assert refused.value.code == code
    assert told in str(refused.value)
    assert sqlite_world.policies.effective_settings(sqlite_world.alice, sqlite_world.policy_id(LINUX)) == before


def test_a_change_above_that_would_break_a_policy_below_is_refused_with_its_name(world):
    world.rules.create(world.alice, IM, OWN_RULE)
    world.change(DEBIAN, rules={"im-own-shop": {"is_assigned": True, "added_excludes": ["/srv/shop/cache/**"]}})
    with pytest.raises(InputError, match="Debian and Ubuntu"):
        world.rules.update(world.alice, "im-own-shop", OWN_RULE.replace("/srv/shop", "/opt/shop"))
    assert world.rules.get(world.alice, "im-own-shop").version == 1


def test_the_second_of_two_who_changed_the_same_version_is_told_so(world):
    policy_id, version = world.policy_id(LINUX), world.version(LINUX)
    world.policies.change(world.alice, policy_id, im(settings={"cpu_percent": 30}), version)
    with pytest.raises(InputError) as refused:
        world.policies.change(world.alice, policy_id, im(settings={"cpu_percent": 40}), version)
    assert refused.value.code == "changed_meanwhile"
    assert module(world, LINUX).settings["cpu_percent"].value == 30


def test_a_preview_shows_sentences_in_both_languages_and_whom_it_reaches_and_changes_nothing(world):
    world.computer("web-1", "debian")
    world.computer("db-1", "rocky")
    world.computer("own-1", "debian")
    world.change("Base > Linux > RHEL family", settings={"cpu_percent": 10})
    version = world.version(LINUX)
    preview = world.policies.preview(
        world.alice,
        world.policy_id(LINUX),
        im(settings={"cpu_percent": 50}, rules={"im-linux-cron": {"severity": "high"}, "im-linux-at": {"is_assigned": False}}),
    )
    sentences = [line.sentence for line in preview.lines]
    assert [words.en for words in sentences] == [
        "CPU for scans: 100 % → 50 %.",
        "Rule “Jobs of at changed” is no longer assigned.",
        "Rule “Cron jobs changed”: severity: medium → high.",
    ]
    assert [words.ja for words in sentences] == [
        "検索のCPU使用率：100 % → 50 %",
        "ルール「at ジョブの変更」の割り当てを解除します。",
        "ルール「cron ジョブの変更」の重要度：中 → 高",
    ]
    assert (preview.computer_count, preview.computer_names) == (3, ["db-1", "own-1", "web-1"])
    assert world.version(LINUX) == version
    only_cpu = world.policies.preview(world.alice, world.policy_id(LINUX), im(settings={"cpu_percent": 50}))
    assert only_cpu.computer_names == ["own-1", "web-1"]  # RHEL family says its own


def test_policies_are_made_moved_duplicated_and_deleted(world):
    web = world.policies.create(world.alice, "Web servers", world.policy_id(LINUX), "What serves pages.")
    assert web.path == "Base > Linux > Web servers"
    copy = world.policies.duplicate(world.alice, world.policy_id(LINUX), "Linux copy")
    assert module(world, "Base > Linux copy").rules == [
        rule for rule in module(world, "Base > Linux copy").rules if rule.is_assigned.origin_name == "Base > Linux copy"
    ]
    world.policies.move(world.alice, web.policy_id, copy.policy_id, web.version)
    assert world.policies.get(world.alice, web.policy_id).path == "Base > Linux copy > Web servers"
    with pytest.raises(InputError) as refused:
        world.policies.delete(world.alice, copy.policy_id)
    assert refused.value.code == "policy_has_children"
    world.policies.delete(world.alice, web.policy_id)
    world.policies.delete(world.alice, copy.policy_id)
    assert len(world.policies.tree(world.alice)) == 4
    assert {"policy.create", "policy.duplicate", "policy.move", "policy.delete"} <= set(world.actions())


def test_a_policy_is_not_moved_below_itself_nor_beside_its_namesake(sqlite_world):
    with pytest.raises(InputError) as refused:
        sqlite_world.policies.move(
            sqlite_world.alice, sqlite_world.policy_id("Base"), sqlite_world.policy_id(DEBIAN), sqlite_world.version("Base")
        )
    assert refused.value.code == "policy_below_itself"
    with pytest.raises(InputError) as refused:
        sqlite_world.policies.create(sqlite_world.alice, "linux", sqlite_world.policy_id("Base"))
    assert refused.value.code == "policy_exists"
    for name in ("", " ", "a > b", "x" * 101, "tab\tname"):
        with pytest.raises(InputError) as refused:
            sqlite_world.policies.create(sqlite_world.alice, name)
        assert refused.value.code == "policy_name"


def test_a_policy_that_computers_use_is_not_deleted_and_they_are_named(world):
    policy = world.policies.create(world.alice, "Web", world.policy_id(LINUX))
    world.computer("web-1", policy="Base > Linux > Web")
    with pytest.raises(InputError, match="web-1"):
        world.policies.delete(world.alice, policy.policy_id)


def test_a_policy_returns_to_an_older_version_as_a_new_one(world):
    first = world.version(LINUX)
    world.change(LINUX, settings={"cpu_percent": 50})
    world.change(LINUX, settings={"cpu_percent": 20})
    lines = world.policies.compare_versions(world.alice, world.policy_id(LINUX), first + 1, first + 2)
    assert [line.sentence.en for line in lines] == ["CPU for scans: 50 % → 20 %."]
    applied = world.policies.return_to(world.alice, world.policy_id(LINUX), first + 1, first + 2)
    assert applied.version == first + 3
    assert module(world, LINUX).settings["cpu_percent"].value == 50
    versions = world.policies.versions(world.alice, world.policy_id(LINUX))
    assert [version.version for version in versions] == [first + 3, first + 2, first + 1, first]
    assert versions[0].is_current
    assert "to version" in versions[0].summary


def test_an_empty_change_makes_no_version(world):
    version = world.version(LINUX)
    applied = world.policies.change(world.alice, world.policy_id(LINUX), PolicyChange(), version)
    assert applied.version == version
    assert applied.preview.is_empty


def test_another_tenants_policies_do_not_exist(world):
    policy_id = world.policy_id(LINUX)
    eve = world.eve
    calls = [
        lambda: world.policies.get(eve, policy_id),
        lambda: world.policies.effective_settings(eve, policy_id),
        lambda: world.policies.preview(eve, policy_id, PolicyChange(name="x")),
        lambda: world.policies.change(eve, policy_id, PolicyChange(name="x"), 1),
        lambda: world.policies.move(eve, policy_id, None, 1),
        lambda: world.policies.delete(eve, policy_id),
        lambda: world.policies.duplicate(eve, policy_id, "x"),
        lambda: world.policies.versions(eve, policy_id),
        lambda: world.policies.return_to(eve, policy_id, 1, 1),
        lambda: world.policies.create(eve, "x", policy_id),
        lambda: world.policies.code.export(eve, policy_id),
        lambda: world.policies.computers.assign(eve, policy_id, []),
        lambda: world.policies.move(eve, world.policy_id(LINUX, world.other_tenant_id), policy_id, 1),
    ]
    for call in calls:
        with pytest.raises(InputError) as refused:
            call()
        assert refused.value.code == "policy_not_found"


def test_who_may_only_look_changes_nothing(world):
    auditor = principal(world.tenant_id, permissions=frozenset({"policies.view", "rules.view", "computers.view"}))
    assert world.policies.preview(auditor, world.policy_id(LINUX), im(settings={"cpu_percent": 9})).lines
    for call in (
        lambda: world.policies.change(auditor, world.policy_id(LINUX), im(settings={"cpu_percent": 9}), world.version(LINUX)),
        lambda: world.policies.create(auditor, "x"),
        lambda: world.policies.delete(auditor, world.policy_id(DEBIAN)),
        lambda: world.policies.code.import_file(auditor, "keibi: policies/1\npolicies: []\n"),
    ):
        with pytest.raises(AccessError):
            call()
    with pytest.raises(AccessError):
        world.policies.tree(principal(world.tenant_id, permissions=frozenset({"events.view"})))


def test_a_right_over_one_group_does_not_open_the_tree_for_changes(world):
    group_id = world.group("web")
    computer_id = world.computer("web-1", group_id=group_id)
    operator = principal(world.tenant_id, group=group_id)
    with pytest.raises(AccessError):
        world.policies.change(operator, world.policy_id(LINUX), im(settings={"cpu_percent": 9}), world.version(LINUX))
    assert world.policies.computers.change(operator, computer_id, im(settings={"cpu_percent": 9}), 0).version == 1
    elsewhere = world.computer("db-1")
    with pytest.raises(InputError) as refused:
        world.policies.computers.change(operator, elsewhere, im(settings={"cpu_percent": 9}), 0)
    assert refused.value.code == "computer_not_found"
