"""The catalogue: shipped rules for all, own rules for one tenant, every version kept."""

import pytest
from sqlalchemy import select

from keibi.contract.names import ModuleId, Severity
from keibi.errors import AccessError, InputError
from keibi.manager.audit.model import AuditFilter
from keibi.manager.database import Scope
from keibi.manager.policies.effective import touch
from keibi.manager.rules.catalog import read_content
from keibi.manager.rules.model import RuleFilter, RuleInvalidError, RuleSource
from keibi.manager.rules.tables import OwnRuleRecord
from tests.unit.manager.policies.world import OWN_RULE, principal

IM = ModuleId.INTEGRITY_MONITORING


def test_every_tenant_sees_the_shipped_rules_and_only_its_own(world):
    world.rules.create(world.alice, IM, OWN_RULE)
    mine = {row.rule_id for row in world.rules.list(world.alice, limit=1000).items}
    theirs = {row.rule_id for row in world.rules.list(world.eve, limit=1000).items}
    assert mine - theirs == {"im-own-shop"}
    assert len(theirs) >= 45
    for call in (
        lambda: world.rules.get(world.eve, "im-own-shop"),
        lambda: world.rules.update(world.eve, "im-own-shop", OWN_RULE),
        lambda: world.rules.delete(world.eve, "im-own-shop"),
        lambda: world.rules.versions(world.eve, "im-own-shop"),
        lambda: world.rules.duplicate(world.eve, "im-own-shop", "im-own-stolen"),
    ):
        with pytest.raises(InputError) as refused:
            call()
        assert refused.value.code == "rule_not_found"


def test_two_tenants_may_use_the_same_id(world):
    world.rules.create(world.alice, IM, OWN_RULE)
    theirs = world.rules.create(world.eve, IM, OWN_RULE.replace("medium", "low"))
    assert (theirs.severity, world.rules.get(world.alice, "im-own-shop").severity) == (Severity.LOW, Severity.MEDIUM)


def test_pages_hold_every_rule_once_the_gravest_first(world):
    seen, cursor = [], None
    while True:
        page = world.rules.list(world.alice, RuleFilter(), cursor, 7)
        seen += page.items
        assert page.total == len(world.rules.shipped.rules)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len({row.rule_id for row in seen}) == len(world.rules.shipped.rules)
    ranks = [row.severity.rank for row in seen]
    assert ranks == sorted(ranks, reverse=True)
    with pytest.raises(InputError):
        world.rules.list(world.alice, RuleFilter(), "nonsense")


@pytest.mark.parametrize(
    ("filters", "has", "has_not"),
    [
        (RuleFilter(text="cron"), "im-linux-cron", "im-linux-pam"),
        (RuleFilter(text="認証 手順"), "im-linux-pam", "im-linux-cron"),
        (RuleFilter(severity_at_least=Severity.CRITICAL), "im-linux-ld-preload", "im-linux-cron"),
        (RuleFilter(os="ubuntu"), "im-debian-apt-sources", "im-rhel-repositories"),
        (RuleFilter(os="rocky"), "im-rhel-repositories", "im-debian-apt-sources"),
        (RuleFilter(technique="T1053"), "im-linux-cron", "im-linux-pam"),
        (RuleFilter(entity_type="user"), "im-linux-users", "im-linux-cron"),
        (RuleFilter(source=RuleSource.OWN), "im-own-shop", "im-linux-cron"),
        (RuleFilter(source=RuleSource.SHIPPED), "im-linux-cron", "im-own-shop"),
        (RuleFilter(is_assigned=True), "im-linux-cron", "im-own-shop"),
        (RuleFilter(is_assigned=False), "im-own-shop", "im-linux-cron"),
    ],
)
def test_filters_narrow_the_list(sqlite_world, filters, has, has_not):
    sqlite_world.rules.create(sqlite_world.alice, IM, OWN_RULE)
    found = {row.rule_id for row in sqlite_world.rules.list(sqlite_world.alice, filters, limit=1000).items}
    assert has in found
    assert has_not not in found


def test_every_version_of_an_own_rule_is_kept_and_can_be_compared(world):
    world.rules.create(world.alice, IM, OWN_RULE)
    changed = world.rules.update(world.alice, "im-own-shop", OWN_RULE.replace("medium", "high"), expected_version=1)
    assert changed.version == 2
    assert "version: 2" in changed.text
    assert "# Ours: what the shop runs." in changed.text
    assert [(v.version, v.what, v.by) for v in world.rules.versions(world.alice, "im-own-shop")] == [
        (2, "changed", "user:alice"),
        (1, "created", "user:alice"),
    ]
    difference = world.rules.compare(world.alice, "im-own-shop", 1, 2).difference
    assert "-severity: medium" in difference
    assert "+severity: high" in difference
    with pytest.raises(InputError) as refused:
        world.rules.update(world.alice, "im-own-shop", OWN_RULE, expected_version=1)
    assert refused.value.code == "changed_meanwhile"
    with pytest.raises(InputError) as refused:
        world.rules.compare(world.alice, "im-own-shop", 1, 9)
    assert refused.value.code == "rule_version_not_found"


def test_a_rule_in_use_is_not_deleted_silently(world):
    world.rules.create(world.alice, IM, OWN_RULE)
    world.change("Base > Linux", rules={"im-own-shop": {"is_assigned": True}})
    computer_id = world.computer("web-1")
    assert "im-own-shop" in {rule.rule_id for rule in world.effective(computer_id).modules[0].rules}
    with pytest.raises(InputError, match="Base > Linux") as refused:
        world.rules.delete(world.alice, "im-own-shop")
    assert refused.value.code == "rule_in_use"
    assert [use.name for use in world.rules.get(world.alice, "im-own-shop").uses] == ["Base > Linux"]
    world.rules.delete(world.alice, "im-own-shop", also_unassign=True)
    assert "im-own-shop" not in {rule.rule_id for rule in world.effective(computer_id).modules[0].rules}
    again = world.rules.create(world.alice, IM, OWN_RULE)
    assert again.version == 3  # events name id and version: a number is never used twice
    actions = {entry.action for entry in world.audit.list(world.alice, AuditFilter(target_id="im-own-shop")).items}
    assert actions == {"rule.create", "rule.delete"}


def test_a_shipped_rule_is_duplicated_and_never_changed(world):
    for call in (
        lambda: world.rules.update(world.alice, "im-linux-cron", OWN_RULE),
        lambda: world.rules.delete(world.alice, "im-linux-cron"),
    ):
        with pytest.raises(InputError) as refused:
            call()
        assert refused.value.code == "rule_is_shipped"
    copy = world.rules.duplicate(world.alice, "im-linux-cron", "im-own-cron")
    assert (copy.source, copy.version, copy.title) == (RuleSource.OWN, 1, world.rules.get(world.alice, "im-linux-cron").title)
    with pytest.raises(InputError) as refused:
        world.rules.duplicate(world.alice, "im-linux-cron", "im-linux-at")
    assert refused.value.code == "rule_exists"
    with pytest.raises(RuleInvalidError):
        world.rules.duplicate(world.alice, "im-linux-cron", "Not An Id")


@pytest.mark.parametrize(
    ("before", "after", "line", "path", "told", "hint"),
    [
        ("severity: medium", "severity: grave", 6, "severity", "grave", ""),
        ("severity: medium", "severty: medium", 6, "severty", "severty", "severity"),
        ('include: ["**/*.conf"]', 'include: ["a**/*.conf"]', 10, "entities[0].include[0]", "**", ""),
        ("base: /srv/shop", "base: srv/shop", 9, "entities[0].base", "srv/shop", ""),
        ("type: file", "type: fil", 8, "entities[0].type", "fil", ""),
        ("id: im-own-shop", "id: Shop", 2, "id", "Shop", "im-"),
        ("title: {en: Shop settings}", "title: {en: [Shop}", 4, "", "YAML", ""),
    ],
)
def test_what_is_wrong_with_a_text_is_said_with_its_line(sqlite_world, before, after, line, path, told, hint):
    assert before in OWN_RULE
    validation = sqlite_world.rules.validate(IM, OWN_RULE.replace(before, after))
    assert not validation.is_valid
    problem = validation.problems[0]
    assert (problem.line, problem.path) == (line, path)
    assert told in problem.message
    assert hint in problem.hint
    with pytest.raises(RuleInvalidError) as refused:
        sqlite_world.rules.create(sqlite_world.alice, IM, OWN_RULE.replace(before, after))
    assert refused.value.problems == validation.problems


def test_samples_of_an_own_rule_must_hold(sqlite_world):
    samples = "samples:\n  match:\n    - {type: file, key: /srv/shop/a.txt, change: created}\n  no_match: []\n"
    problem = sqlite_world.rules.validate(IM, OWN_RULE + samples).problems[0]
    assert "/srv/shop/a.txt" in problem.message
    assert problem.line == 12


def test_a_rule_is_tried_on_a_change_and_says_why(sqlite_world):
    def tried(key, change="updated", rule_id="", text=OWN_RULE, type_="file", **more):
        event = {"type": type_, "key": key, "change": change, "before": {"contents": "a"}, "after": {"contents": "b"}, **more}
        return sqlite_world.rules.try_rule(sqlite_world.alice, event, rule_id=rule_id, text=text)

    found = tried("/srv/shop/a.conf")
    assert (found.matches, found.severity, found.set_number) == (True, Severity.MEDIUM, 1)
    assert "outside" in tried("/srv/other/a.conf").reason.en
    assert "type" in tried("bob", type_="user").reason.en
    assert "compares" in tried("/srv/shop/a.conf", before={"inode": 1}, after={"inode": 2}).reason.en
    excluded = OWN_RULE.replace('["**/*.swp"]', '["old/**"]')
    assert "exclude" in tried("/srv/shop/old/a.conf", text=excluded).reason.en
    assert tried("/etc/crontab", rule_id="im-linux-cron").matches
    with pytest.raises(InputError) as refused:
        tried("/srv/shop/a.conf", change="eaten")
    assert refused.value.code == "change_invalid"


def test_who_may_only_look_writes_no_rule(sqlite_world):
    auditor = principal(sqlite_world.tenant_id, permissions=frozenset({"rules.view"}))
    assert sqlite_world.rules.get(auditor, "im-linux-cron").text
    for call in (
        lambda: sqlite_world.rules.create(auditor, IM, OWN_RULE),
        lambda: sqlite_world.rules.duplicate(auditor, "im-linux-cron", "im-own-cron"),
        lambda: sqlite_world.rules.list(principal(sqlite_world.tenant_id, permissions=frozenset({"events.view"}))),
    ):
        with pytest.raises(AccessError):
            call()


def test_a_shipped_file_with_a_problem_is_left_out_and_named(tmp_path):
    folder = tmp_path / "integrity_monitoring"
    folder.mkdir()
    (folder / "im-own-shop.yaml").write_text(OWN_RULE)  # no samples
    (folder / "im-bad.yaml").write_bytes(b"\xff\xfe")
    (folder / "notes.txt").write_text("not a rule")
    content = read_content(str(tmp_path))
    assert content.rules == {}
    assert [str(problem).partition(":")[0] for problem in content.problems] == [
        "integrity_monitoring/im-bad.yaml",
        "integrity_monitoring/im-own-shop.yaml",
    ]
    with pytest.raises(InputError) as refused:
        read_content(str(tmp_path / "nowhere"))
    assert refused.value.code == "content_missing"


def test_texts_of_shipped_rules_are_kept_when_they_change(world):
    shipped = world.rules.shipped
    assert [version.what for version in world.rules.versions(world.alice, "im-linux-cron")] == ["shipped"]
    world.rules.load_shipped(shipped)
    assert len(world.rules.versions(world.alice, "im-linux-cron")) == 1


def test_an_own_rule_that_can_no_longer_be_read_does_not_keep_the_others_from_agents(world):
    world.rules.create(world.alice, IM, OWN_RULE)
    world.change("Base > Linux", rules={"im-own-shop": {"is_assigned": True}})
    computer_id = world.computer("web-1")
    with world.database.session(Scope.system("test")) as session:
        record = session.scalars(select(OwnRuleRecord)).one()
        record.text = "this is no rule"
    with world.database.session(Scope.system("test")) as session:
        touch(session, world.tenant_id)
    sent = {rule.rule_id for rule in world.effective(computer_id).modules[0].rules}
    assert "im-linux-cron" in sent
    assert "im-own-shop" not in sent
    assert "im-own-shop" not in {row.rule_id for row in world.rules.list(world.alice, limit=1000).items}
