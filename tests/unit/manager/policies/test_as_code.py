"""Policies as YAML: out and in again, as a whole or not at all."""

import pytest

from keibi.contract.names import ModuleId
from keibi.errors import InputError
from tests.unit.manager.policies.world import OWN_RULE

IM = ModuleId.INTEGRITY_MONITORING

SHOP = """\
keibi: policies/1
policies:
  - name: Shop web
    parent: Base > Linux > Shop
    modules:
      integrity_monitoring:
        settings: {cpu_percent: 20}
  - name: Shop
    parent: Base > Linux
    description: All of the shop.
    modules:
      integrity_monitoring:
        rules:
          im-linux-cron: {severity: critical}
          im-linux-at: false
"""


def test_what_is_exported_comes_back_the_same_in_another_tenant(world):
    world.rules.create(world.alice, IM, OWN_RULE)
    world.change(
        "Base > Linux",
        settings={"cpu_percent": 30, "variables": {"WEB_ROOT": "/srv"}},
        rules={"im-own-shop": {"is_assigned": True}},
    )
    text = world.policies.code.export(world.alice, world.policy_id("Base"), with_children=True)
    planned = world.policies.code.preview_import(world.eve, text)
    assert [step.action for step in planned.steps] == ["unchanged", "change", "unchanged", "unchanged"]
    assert [(step.path, step.action) for step in planned.rules] == [("im-own-shop", "create")]
    done = world.policies.code.import_file(world.eve, text)
    assert done.is_applied
    assert done.steps == planned.steps
    theirs = world.policies.effective_settings(world.eve, world.policy_id("Base > Linux", world.other_tenant_id)).modules[IM]
    assert theirs.settings["cpu_percent"].value == 30
    assert world.rules.get(world.eve, "im-own-shop").tenant_id == world.other_tenant_id
    again = world.policies.code.preview_import(world.eve, text)
    assert {step.action for step in [*again.steps, *again.rules]} == {"unchanged"}


def test_a_file_makes_parents_before_children_and_a_dry_run_makes_nothing(world):
    world.computer("web-1")
    planned = world.policies.code.preview_import(world.alice, SHOP)
    assert [(step.path, step.action) for step in planned.steps] == [
        ("Base > Linux > Shop", "create"),
        ("Base > Linux > Shop > Shop web", "create"),
    ]
    assert not planned.is_applied
    assert planned.computer_count == 0
    assert len(world.policies.tree(world.alice)) == 4
    world.policies.code.import_file(world.alice, SHOP)
    shown = world.policies.effective_settings(world.alice, world.policy_id("Base > Linux > Shop > Shop web")).modules[IM]
    severity = next(rule.severity for rule in shown.rules if rule.rule_id == "im-linux-cron")
    assert (severity.value, severity.origin_name) == ("critical", "Base > Linux > Shop")
    assert "policy.import" in world.actions()


def test_importing_again_changes_what_the_file_says_and_shows_it(world):
    world.policies.code.import_file(world.alice, SHOP)
    world.computer("web-1", policy="Base > Linux > Shop > Shop web")
    planned = world.policies.code.preview_import(world.alice, SHOP.replace("cpu_percent: 20", "cpu_percent: 80"))
    assert [step.action for step in planned.steps] == ["unchanged", "change"]
    assert [line.sentence.en for line in planned.steps[1].lines] == ["CPU for scans: 20 % → 80 %."]
    assert planned.computer_names == ["web-1"]


@pytest.mark.parametrize(
    ("before", "after", "code", "told"),
    [
        ("cpu_percent: 20", "cpu_percent: 2", "setting_invalid", "Shop web"),
        ("im-linux-cron:", "im-linux-cronn:", "rule_unknown", "im-linux-cron"),
        ("parent: Base > Linux\n", "parent: Base > Linucs\n", "parent_unknown", "Linucs"),
        (
            "severity: critical",
            "severity: grave",
            "policy_file_invalid",
            "policies[1].modules.integrity_monitoring.rules.im-linux-cron.severity in line 14",
        ),
        ("    description", "    discription", "policy_file_invalid", "discription"),
        ("keibi: policies/1", "keibi: policies/9", "policy_file_invalid", "policies/1"),
        ("name: Shop web", "name: [Shop, web", "policy_file_invalid", "line"),
        ("name: Shop web", "name: &a [*a]", "policy_file_invalid", "itself"),
    ],
)
def test_a_file_with_an_error_is_refused_as_a_whole_with_its_place(sqlite_world, before, after, code, told):
    assert before in SHOP
    with pytest.raises(InputError) as refused:
        sqlite_world.policies.code.import_file(sqlite_world.alice, SHOP.replace(before, after))
    assert refused.value.code == code
    assert told in str(refused.value)
    assert len(sqlite_world.policies.tree(sqlite_world.alice)) == 4


def test_a_file_cannot_replace_a_shipped_rule(sqlite_world):
    text = 'keibi: policies/1\npolicies: []\nrules:\n  im-linux-cron: "id: im-linux-cron"\n'
    with pytest.raises(InputError, match="shipped"):
        sqlite_world.policies.code.import_file(sqlite_world.alice, text)
