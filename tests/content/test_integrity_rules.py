"""Every shipped rule: loads, speaks both languages, holds its samples, and keeps quiet when nothing happens."""

import hashlib
import os
import pathlib
import re
import stat

import msgspec
import pytest
import yaml

from keibi.contract.names import ModuleId, Severity
from keibi.contract.policy import ModuleState
from keibi.manager.policies.as_code import read_file
from keibi.manager.rules.catalog import read_content
from keibi.protection.base import Text
from keibi.protection.integrity_monitoring.engine import check_samples, compile_rules, judge
from keibi.protection.integrity_monitoring.rules import Change, EntityType, Rule
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings

CONTENT = pathlib.Path(__file__).resolve().parents[2] / "content"
SHIPPED = read_content(str(CONTENT))
RULES: dict[str, Rule] = {
    rule_id: found.rule for rule_id, found in SHIPPED.rules.items() if found.module is ModuleId.INTEGRITY_MONITORING
}
# Rules that watch for no attack: the folder that `keibi prove` writes in.
NO_ATTACK = {"im-keibi-prove"}
JAPANESE = re.compile(r"[぀-ヿ一-鿿]")


def test_every_file_is_a_rule_without_a_problem():
    assert [str(problem) for problem in SHIPPED.problems] == []
    assert len(RULES) == len(list((CONTENT / "integrity_monitoring").glob("*.yaml"))) >= 45


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_rule_is_complete_in_both_languages(rule):
    for text in (rule.title, rule.description):
        assert text.en.strip(), text
        assert JAPANESE.search(text.ja), text
    assert len(rule.title.en) <= 80
    assert len(rule.title.ja) <= 60
    assert not rule.title.en.endswith(".")
    assert rule.description.en.endswith(".")
    assert rule.description.ja.endswith("。")
    assert not JAPANESE.search(rule.title.en + rule.description.en)
    assert rule.techniques or rule.id in NO_ATTACK
    assert check_samples(rule) == []
    assert rule.samples.match
    assert rule.samples.no_match


def test_titles_are_told_apart_in_both_languages():
    for language in ("en", "ja"):
        titles = [rule.title.in_language(language) for rule in RULES.values()]
        assert len(set(titles)) == len(titles)


def test_severities_are_used_with_thought():
    counts = {severity: sum(rule.severity is severity for rule in RULES.values()) for severity in Severity}
    assert counts[Severity.CRITICAL] <= len(RULES) // 8
    assert min(counts.values()) >= 3


def test_families_and_kinds_of_things_are_covered():
    assert {entities.type for rule in RULES.values() for entities in rule.entities} >= set(EntityType) - {EntityType.REGISTRY_KEY}
    systems = {name for rule in RULES.values() for name in rule.applies_to.os}
    assert systems == {"debian", "rhel", "fedora"}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_what_editors_and_package_managers_leave_for_a_moment_is_no_event(rule):
    compiled = compile_rules([rule], IntegrityMonitoringSettings(variables={"WEB_ROOT": "/srv/w", "WINDOWS_ROOT": "/mnt/c"}))
    assert compiled.problems == ()
    for sample in rule.samples.match:
        if sample.type is not EntityType.FILE or sample.change is Change.DELETED:
            continue
        key = sample.key.replace("${WEB_ROOT}", "/srv/w")
        folder, name = os.path.split(key)
        for passing in passing_names(folder, name):
            watched = compiled.sets_for(EntityType.FILE, f"{folder}/{passing}".encode())
            assert watched == [], f"{rule.id} watches {folder}/{passing}"


def passing_names(folder: str, name: str) -> list[str]:
    """Return what may lie in a folder for a moment.

    Programs' folders are written by package managers only: to let an editor's names pass there too would be a place to hide.
    """
    by_editors = [".x.swp", "x~", ".#x", f".{name}.swp", f"{name}~"]
    by_packages = ["x.dpkg-new", "x.dpkg-tmp", "x.dpkg-dist", "x.rpmnew", "x.rpmsave", f"{name}.dpkg-new", f"{name};65a1b2c3"]
    if folder.startswith("/etc"):
        return by_editors + by_packages
    if folder.startswith(("/usr/local", "/usr/share/nginx", "/root", "/home", "/srv", "/var/www")):
        return by_editors
    return by_packages if folder.startswith(("/usr", "/boot")) else []


def test_the_shipped_policies_name_rules_that_there_are_and_hold_nothing_up():
    texts = [path.read_text() for path in sorted((CONTENT / "policies").glob("*.yaml"))]
    policies = [policy for text in texts for policy in read_file(text).policies]
    assert [policy.path for policy in policies] == [
        "Base",
        "Base > Linux",
        "Base > Linux > Debian and Ubuntu",
        "Base > Linux > RHEL family",
    ]
    named = [key for policy in policies for part in policy.modules.values() for key in part.rules]
    assert set(named) <= set(SHIPPED.rules)
    assert len(named) == len(set(named)) >= 90
    states = {module: part.state for policy in policies for module, part in policy.modules.items() if part.state is not None}
    assert states == {
        ModuleId.INTEGRITY_MONITORING: ModuleState.REAL_TIME,
        ModuleId.ANTI_MALWARE: ModuleState.ON,
        ModuleId.APPLICATION_CONTROL: ModuleState.DETECT,
    }
    assert all(SHIPPED.rules[key].rule.action != "block" for key in named if key.startswith("ac-"))


def assigned() -> list[Rule]:
    texts = [path.read_text() for path in sorted((CONTENT / "policies").glob("*.yaml"))]
    named = [
        key for text in texts for policy in read_file(text).policies for part in policy.modules.values() for key in part.rules
    ]
    return [RULES[key] for key in named if key in RULES]


def look_at(root: str) -> dict[bytes, dict[str, object]]:
    """Return all files below `root` as the agent would describe them, as far as these rules compare."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            attributes = {
                "type": stat.S_IFMT(state.st_mode),
                "permissions": stat.S_IMODE(state.st_mode),
                "owner": state.st_uid,
                "group": state.st_gid,
                "size": state.st_size,
                "modified_at": state.st_mtime,
            }
            if stat.S_ISREG(state.st_mode):
                attributes["contents"] = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
            found[os.fsencode(path)] = attributes
    return found


def test_this_computers_etc_is_watched_and_looking_twice_finds_nothing():
    compiled = compile_rules(assigned(), IntegrityMonitoringSettings())
    before, after = look_at("/etc"), look_at("/etc")
    watched = {key: compiled.sets_for(EntityType.FILE, key) for key in before}
    count = sum(1 for sets in watched.values() if sets)
    assert count > 100
    for must in (b"/etc/passwd", b"/etc/crontab", b"/etc/profile"):
        if must in before:
            assert watched[must], must
    verdicts = [judge(sets, key, before[key], after.get(key)) for key, sets in watched.items() if sets and key in after]
    assert [verdict.message for verdict in verdicts if verdict is not None] == []


def test_files_that_a_quiet_computer_rewrites_are_left_alone():
    compiled = compile_rules(assigned(), IntegrityMonitoringSettings())
    quiet = [
        "/etc/mtab", "/etc/ld.so.cache", "/etc/resolv.conf", "/etc/adjtime", "/etc/passwd-", "/etc/shadow-", "/etc/.pwd.lock",
        "/etc/blkid.tab", "/etc/lvm/cache/.cache", "/boot/grub/grubenv", "/root/.bash_history", "/root/.viminfo",
        "/root/.ssh/known_hosts", "/var/log/auth.log", "/var/lib/dpkg/status", "/etc/mailcap", "/etc/aliases.db",
        "/usr/lib/modules/6.1.0/modules.dep", "/usr/lib/python3/dist-packages/x/__pycache__/y.cpython-311.pyc",
        "/etc/network/run/ifstate", "/etc/NetworkManager/system-connections/.nm-generated-1", "/var/spool/cron/atjobs/.SEQ",
    ]  # fmt: skip
    loud = [path for path in quiet if compiled.sets_for(EntityType.FILE, path.encode())]
    assert loud == []


def test_rules_fit_through_the_wire_without_their_samples():
    for rule in RULES.values():
        body = msgspec.json.encode(msgspec.structs.replace(rule, samples=None))
        assert msgspec.json.decode(body, type=Rule).id == rule.id
        assert len(body) < 16_000


def test_texts_hold_no_typed_escape_that_yaml_would_have_read():
    for path in sorted((CONTENT / "integrity_monitoring").glob("*.yaml")):
        written = yaml.safe_load(path.read_text())
        assert written["id"] == path.stem
        assert isinstance(msgspec.convert(written["title"], Text), Text)
        assert "\\" not in written["title"]["en"] + written["description"]["en"]
