import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.contract.names import Severity
from keibi.errors import InputError
from keibi.protection.base import Text
from keibi.protection.integrity_monitoring.engine import (
    PREFIX_INTACT,
    changed_attributes,
    check_samples,
    compile_rules,
    judge,
    resolve_attributes,
)
from keibi.protection.integrity_monitoring.rules import Change, EntitySet, EntityType, Rule, Sample, Samples
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings

SETTINGS = IntegrityMonitoringSettings()


def rule(*sets: EntitySet, name: str = "im-test", severity: Severity = Severity.MEDIUM, **more: object) -> Rule:
    return Rule(id=name, version=1, title=Text(en="t"), description=Text(en="d"), severity=severity, entities=list(sets), **more)


def files(base: str, **more: object) -> EntitySet:
    return EntitySet(type=EntityType.FILE, base=base, **more)


def watches(compiled, path: bytes, type_=EntityType.FILE) -> bool:
    return bool(compiled.sets_for(type_, path))


def test_a_set_watches_what_its_patterns_say_below_its_base():
    compiled = compile_rules([rule(files("/etc", include=["*.conf", "ssh/**"], exclude=["ssh/moduli"]))], SETTINGS)
    assert watches(compiled, b"/etc/a.conf")
    assert watches(compiled, b"/etc/ssh/sshd_config")
    assert not watches(compiled, b"/etc/ssh/moduli")
    assert not watches(compiled, b"/etc/d/a.conf")
    assert not watches(compiled, b"/etcetera/a.conf")
    assert not watches(compiled, b"/etc")


def test_a_base_that_is_a_file_watches_that_file():
    compiled = compile_rules([rule(files("/etc/passwd"))], SETTINGS)
    assert watches(compiled, b"/etc/passwd")
    assert not watches(compiled, b"/etc/passwd-")
    assert compiled.watch_roots() == [b"/etc/passwd"]


def test_what_is_excluded_is_excluded_with_all_below_it():
    compiled = compile_rules([rule(files("/srv", exclude=["cache", "tmp/**"]))], SETTINGS)
    assert not watches(compiled, b"/srv/cache/a/b")
    assert not watches(compiled, b"/srv/tmp/x")
    assert compiled.sets_reaching(b"/srv/cache") == []
    assert compiled.sets_reaching(b"/srv/tmp") == []
    assert compiled.sets_reaching(b"/srv/cached")


def test_the_policy_can_exclude_paths_of_all_rules():
    compiled = compile_rules([rule(files("/srv"))], IntegrityMonitoringSettings(excluded_paths=["/srv/*/cache", "/srv/**/*.tmp"]))
    assert not watches(compiled, b"/srv/a/cache/deep/x")
    assert not watches(compiled, b"/srv/a/b/c.tmp")
    assert watches(compiled, b"/srv/a/b/c.txt")


@given(
    st.lists(st.sampled_from(["a", "b", "c.conf", "cache"]), min_size=1, max_size=5),
    st.lists(st.sampled_from(["**", "a/**", "*/b", "**/c.conf", "a/b/*"]), min_size=1, max_size=3),
    st.lists(st.sampled_from(["cache", "**/cache", "a/b/**", "*.conf"]), max_size=2),
)
def test_no_watched_file_lies_in_a_directory_that_is_not_walked(parts, include, exclude):
    compiled = compile_rules([rule(files("/r", include=include, exclude=exclude))], SETTINGS)
    path = "/r/" + "/".join(parts)
    if watches(compiled, path.encode()):
        for depth in range(len(parts)):
            directory = "/".join(["/r", *parts[:depth]])
            assert compiled.sets_reaching(directory.encode()), directory


def test_roots_below_other_roots_are_one():
    compiled = compile_rules([rule(files("/etc"), files("/etc/ssh"), files("/usr/bin"), files("/usr/bin2"))], SETTINGS)
    assert compiled.watch_roots() == [b"/etc", b"/usr/bin", b"/usr/bin2"]


def test_a_root_is_one_with_its_parent_though_a_name_sorts_between_them():
    compiled = compile_rules([rule(files("/usr/bin"), files("/usr/bin-x"), files("/usr/bin/y"))], SETTINGS)
    assert sorted(compiled.watch_roots()) == [b"/usr/bin", b"/usr/bin-x"]


def test_a_set_without_the_value_of_its_variable_is_left_out_and_told():
    rules = [rule(files("${WEB_ROOT}"), files("/etc"))]
    compiled = compile_rules(rules, SETTINGS)
    assert [problem.place for problem in compiled.problems] == ["entities[0]"]
    assert "WEB_ROOT" in compiled.problems[0].message
    assert watches(compiled, b"/etc/x")
    filled = compile_rules(rules, IntegrityMonitoringSettings(variables={"WEB_ROOT": "/srv/www"}))
    assert watches(filled, b"/srv/www/index.html")
    assert filled.problems == ()


@pytest.mark.parametrize(
    ("entities", "said"),
    [
        (files("etc"), "not an absolute path"),
        (files("/etc/*"), "no patterns"),
        (files("/etc/../x"), r"\.\."),
        (files("/etc", include=["a**"]), "whole part"),
        (files("/etc", attributes=["contentz"]), "contentz"),
        (EntitySet(type=EntityType.USER, base="/etc"), "have no base"),
        (EntitySet(type=EntityType.REGISTRY_KEY, base="/mnt/SOFTWARE"), "names no registry key"),
    ],
)
def test_a_rule_that_is_wrong_in_itself_refuses_the_whole_policy(entities, said):
    with pytest.raises(InputError, match=said) as refused:
        compile_rules([rule(files("/ok")), rule(entities, name="im-bad")], SETTINGS)
    assert "rule im-bad, entities[0]" in refused.value.where


def test_attribute_groups_can_be_added_to_and_taken_from():
    assert "accessed_at" not in resolve_attributes(EntityType.FILE, ["all"])
    assert resolve_attributes(EntityType.FILE, ["content", "owner"]) == {"contents", "owner"}
    assert "modified_at" not in resolve_attributes(EntityType.FILE, ["standard", "-modified_at"])


def test_only_watched_attributes_count():
    compiled = compile_rules([rule(files("/etc", attributes=["content"]))], SETTINGS)
    sets = compiled.sets_for(EntityType.FILE, b"/etc/a")
    assert judge(sets, b"/etc/a", {"contents": "1", "owner": "root"}, {"contents": "1", "owner": "eve"}) is None
    verdict = judge(sets, b"/etc/a", {"contents": "1", "owner": "root"}, {"contents": "2", "owner": "eve"})
    assert verdict is not None
    assert verdict.changed_attributes == ["contents"]
    assert verdict.before == {"contents": "1"}
    assert verdict.message == "The file /etc/a was changed: contents."


def test_the_gravest_rule_stands_for_all_that_watch():
    compiled = compile_rules(
        [
            rule(files("/etc"), name="im-wide", severity=Severity.LOW),
            rule(files("/etc", include=["shadow"]), name="im-narrow", severity=Severity.CRITICAL),
        ],
        SETTINGS,
    )
    verdict = judge(compiled.sets_for(EntityType.FILE, b"/etc/shadow"), b"/etc/shadow", None, {"size": 1})
    assert verdict is not None
    assert verdict.rule.id == "im-narrow"
    assert verdict.matching_rules == ["im-narrow", "im-wide"]
    assert verdict.kind == "file.created"


def test_a_growing_log_may_grow_and_nothing_else():
    growing = {"attributes": ["growing_log", "contents", "size"], "append_only": True}
    sets = compile_rules([rule(files("/var/log", **growing))], SETTINGS).sets_for(EntityType.FILE, b"/var/log/a")
    before = {"contents": "h1", "size": 10, "inode": 5}
    assert judge(sets, b"/var/log/a", before, {"contents": "h2", "size": 20, "inode": 5, PREFIX_INTACT: True}) is None
    shrunk = judge(sets, b"/var/log/a", before, {"contents": "h2", "size": 3, "inode": 5, PREFIX_INTACT: False})
    assert shrunk is not None
    assert "contents" in shrunk.changed_attributes
    assert PREFIX_INTACT not in shrunk.after
    rewritten = judge(sets, b"/var/log/a", before, {"contents": "h1", "size": 10, "inode": 5, PREFIX_INTACT: False})
    assert rewritten is not None


def test_a_rename_is_one_event_with_both_names():
    sets = compile_rules([rule(files("/etc"))], SETTINGS).sets_for(EntityType.FILE, b"/etc/b")
    verdict = judge(sets, b"/etc/b", {"size": 1, "changed_at": 1}, {"size": 1, "changed_at": 2}, previous_key=b"/etc/a\n")
    assert verdict is not None
    assert verdict.change is Change.RENAMED
    assert verdict.message == "The file /etc/a\\x0a was renamed to /etc/b."


def test_an_attribute_that_one_side_does_not_know_is_no_change():
    assert changed_attributes({"size": 1}, {"size": 1, "acl": "x"}, frozenset({"size", "acl"})) == []


def test_keys_of_types_without_base_are_matched_whole():
    compiled = compile_rules(
        [
            rule(EntitySet(type=EntityType.PORT, include=["tcp/*/22"])),
            rule(EntitySet(type=EntityType.PROCESS, include=["/tmp/**"]), name="im-process"),
            rule(EntitySet(type=EntityType.REGISTRY_VALUE, base="/c/SOFTWARE!Microsoft/Run"), name="im-registry"),
        ],
        SETTINGS,
    )
    assert watches(compiled, b"tcp/0.0.0.0/22", EntityType.PORT)
    assert not watches(compiled, b"udp/0.0.0.0/22", EntityType.PORT)
    assert watches(compiled, b"/tmp/x", EntityType.PROCESS)
    assert watches(compiled, b"/c/SOFTWARE!Microsoft/Run//Updater", EntityType.REGISTRY_VALUE)
    assert compiled.registry_bases() == {("/c/SOFTWARE", "Microsoft/Run")}


def test_samples_that_do_not_hold_are_named():
    good = Sample(type=EntityType.FILE, key="/etc/a", change=Change.CREATED, after={"size": 1})
    bad = Sample(type=EntityType.FILE, key="/srv/a", change=Change.CREATED, after={"size": 1})
    assert check_samples(rule(files("/etc"), samples=Samples(match=[good], no_match=[bad]))) == []
    wrong = check_samples(rule(files("/etc"), samples=Samples(match=[bad], no_match=[good])))
    assert wrong == ["the rule does not report file created: /srv/a", "the rule reports file created: /etc/a"]


@given(
    st.lists(st.sampled_from(["/", "/a", "/a/b", "/a/b/c.conf", "/ab", "/b"]), min_size=1, max_size=4, unique=True),
    st.lists(st.lists(st.sampled_from(["a", "b", "ab", "c.conf"]), min_size=1, max_size=4), min_size=1, max_size=6),
)
def test_looking_only_at_bases_nearby_overlooks_none(bases, paths):
    compiled = compile_rules([rule(files(base), name=f"im-{number}") for number, base in enumerate(bases)], SETTINGS)
    for parts in paths:
        path = ("/" + "/".join(parts)).encode()
        assert compiled.sets_for(EntityType.FILE, path) == [one for one in compiled.of_type(EntityType.FILE) if one.matches(path)]
