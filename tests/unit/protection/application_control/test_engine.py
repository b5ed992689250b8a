"""Verdicts: the most specific opinion decides, block rules hold in detect mode, the floor goes before everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.contract.names import Severity
from keibi.protection.application_control.engine import (
    Facts,
    Standing,
    check_samples,
    compile_rules,
    judge,
    reports_inline,
)
from keibi.protection.application_control.events import FileKind, PackageRecord, ReasonCode
from keibi.protection.application_control.rules import (
    Entry,
    HashEntry,
    InlineKind,
    InterpreterEntry,
    PackageEntry,
    PathEntry,
    Rule,
    RuleAction,
    Sample,
    Samples,
    SignerEntry,
)
from keibi.protection.application_control.settings import ApplicationControlSettings, InlineCode, Unrecognised
from keibi.protection.base import Text

CONTENT, OTHER = "a" * 64, "b" * 64
KEY = "4CB50190207B4758A3F73A796ED0E7B82643E131"
PACKAGE = PackageRecord("nginx", "1.22.1-9", "Debian", KEY)
BLOCK_UNKNOWN = ApplicationControlSettings(unrecognised=Unrecognised.BLOCK)


def rule(action: RuleAction, *entries: Entry, name: str = "") -> Rule:
    return Rule(
        id=name or f"ac-{action}",
        version=3,
        title=Text(en="Test"),
        description=Text(en="Test."),
        severity=Severity.HIGH,
        action=action,
        entries=list(entries),
    )


def facts(**more: object) -> Facts:
    return Facts(**{"path": b"/opt/app/run", "sha256": CONTENT, "size": 10, **more})  # type: ignore[arg-type]


def verdict(of: Facts, *rules: Rule, prevents: bool = True, settings: ApplicationControlSettings = BLOCK_UNKNOWN):
    return judge(of, compile_rules(rules, settings), prevents=prevents)


ENTRIES = {
    "hash": HashEntry(sha256=CONTENT),
    "package": PackageEntry(name="ngin*", origin="Debian", version="1.22*"),
    "signer": SignerEntry(key_id="6ED0E7B82643E131"),
    "path": PathEntry(pattern="/opt/**"),
}
KNOWN = facts(package=PACKAGE, is_root_writable_only=True)


@pytest.mark.parametrize("action", list(RuleAction))
@pytest.mark.parametrize("kind", list(ENTRIES))
@pytest.mark.parametrize("prevents", [True, False])
def test_every_kind_of_entry_allows_and_blocks_in_both_modes(kind, action, prevents):
    found = verdict(KNOWN, rule(action, ENTRIES[kind]), prevents=prevents)
    assert found.is_allowed is (action is RuleAction.ALLOW)
    assert found.would_block is (action is RuleAction.BLOCK)
    assert found.reason_code is (ReasonCode.ALLOW_RULE if action is RuleAction.ALLOW else ReasonCode.BLOCK_RULE)
    assert (found.rule_id, found.severity) == (f"ac-{action}", Severity.HIGH)


@pytest.mark.parametrize("position", range(3))
def test_the_more_specific_entry_decides(position):
    specific, general = list(ENTRIES.values())[position : position + 2]
    for action in RuleAction:
        other = RuleAction.ALLOW if action is RuleAction.BLOCK else RuleAction.BLOCK
        assert verdict(KNOWN, rule(other, general), rule(action, specific)).is_allowed is (action is RuleAction.ALLOW)


@pytest.mark.parametrize("kind", list(ENTRIES))
def test_of_two_equal_entries_the_one_that_blocks_wins(kind):
    assert not verdict(KNOWN, rule(RuleAction.ALLOW, ENTRIES[kind]), rule(RuleAction.BLOCK, ENTRIES[kind])).is_allowed


NEAR_MISSES = {
    "another content": (HashEntry(sha256=OTHER), KNOWN),
    "another size": (HashEntry(sha256=CONTENT, size=11), KNOWN),
    "another package": (PackageEntry(name="apache*"), KNOWN),
    "another origin": (PackageEntry(name="nginx", origin="Ubuntu"), KNOWN),
    "another version": (PackageEntry(name="nginx", version="1.23*"), KNOWN),
    "no package": (PackageEntry(name="*"), facts()),
    "another key": (SignerEntry(key_id="0123456789ABCDEF"), KNOWN),
    "no key": (SignerEntry(key_id="6ED0E7B82643E131"), facts(package=PackageRecord("x"))),
    "another folder": (PathEntry(pattern="/opt/*"), KNOWN),
    "writable by others": (PathEntry(pattern="/opt/**"), facts()),
    "another user": (PathEntry(pattern="/opt/**", user="www-data"), KNOWN),
}


@pytest.mark.parametrize("miss", list(NEAR_MISSES))
def test_a_near_miss_is_not_recognised(miss):
    entry, of = NEAR_MISSES[miss]
    assert verdict(of, rule(RuleAction.ALLOW, entry)).reason_code is ReasonCode.UNRECOGNISED


def test_a_path_entry_that_blocks_asks_for_no_owner_and_heeds_the_user():
    entry = PathEntry(pattern="/tmp/**", user="www-data")
    assert not verdict(facts(path=b"/tmp/x", user="www-data", uid=33), rule(RuleAction.BLOCK, entry)).is_allowed
    numbered = PathEntry(pattern="/tmp/**", user="33")
    assert not verdict(facts(path=b"/tmp/x", user="www-data", uid=33), rule(RuleAction.BLOCK, numbered)).is_allowed
    assert compile_rules([rule(RuleAction.BLOCK, entry)], BLOCK_UNKNOWN).depends_on_user


STANDINGS = {
    Standing.TRUSTED: (True, False, ReasonCode.INVENTORY),
    Standing.UNKNOWN: (False, True, ReasonCode.UNRECOGNISED),
    Standing.UNRECOGNISED: (False, True, ReasonCode.UNRECOGNISED),
    Standing.CHANGED: (False, True, ReasonCode.CHANGED),
}


@pytest.mark.parametrize("standing", list(STANDINGS))
def test_without_a_rule_the_inventory_decides(standing):
    is_allowed, would_block, code = STANDINGS[standing]
    prevented = verdict(facts(standing=standing))
    assert (prevented.is_allowed, prevented.would_block, prevented.reason_code) == (is_allowed, would_block, code)
    detected = verdict(facts(standing=standing), prevents=False)
    assert (detected.is_allowed, detected.would_block, detected.reason_code) == (True, would_block, code)
    lenient = verdict(facts(standing=standing), settings=ApplicationControlSettings(unrecognised=Unrecognised.ALLOW))
    assert lenient.is_allowed
    assert not lenient.would_block


@pytest.mark.parametrize("unrecognised", list(Unrecognised))
def test_what_holds_a_threat_does_not_run_whatever_the_setting_says_unless_its_content_is_allowed(unrecognised):
    settings = ApplicationControlSettings(unrecognised=unrecognised)
    of = facts(standing=Standing.MALICIOUS, threat="Test.Marker", package=PACKAGE, is_root_writable_only=True)
    found = verdict(of, settings=settings)
    assert (found.is_allowed, found.reason_code) == (False, ReasonCode.MALWARE)
    assert found.reason == "holds Test.Marker, which anti-malware found"
    assert verdict(of, settings=settings, prevents=False).is_allowed
    for kind, entry in ENTRIES.items():
        assert verdict(of, rule(RuleAction.ALLOW, entry), settings=settings).is_allowed is (kind == "hash"), kind


def test_the_floor_holds_against_every_rule():
    blocks = [rule(RuleAction.BLOCK, entry, name=f"ac-{kind}") for kind, entry in ENTRIES.items()]
    of = facts(package=PACKAGE, is_root_writable_only=True, floor="is needed to sign in")
    assert verdict(of, *blocks).reason_code is ReasonCode.FLOOR


def test_a_trusted_library_with_a_writer_is_not_what_was_judged():
    for kind, is_allowed in ((FileKind.LIBRARY, False), (FileKind.PROGRAM, False), (FileKind.SCRIPT, True)):
        of = facts(standing=Standing.TRUSTED, has_writer=True, kind=kind)
        assert verdict(of).is_allowed is is_allowed
        assert verdict(of, rule(RuleAction.ALLOW, ENTRIES["hash"])).is_allowed is is_allowed


@pytest.mark.parametrize(
    ("policy", "uid", "prevents", "expected"),
    [
        (InlineCode.ALLOW, 1000, True, (True, False, False)),
        (InlineCode.REPORT, 1000, True, (True, False, True)),
        (InlineCode.REPORT, 999, True, (True, False, False)),
        (InlineCode.BLOCK, 1000, True, (False, True, False)),
        (InlineCode.BLOCK, 1000, False, (True, True, False)),
        (InlineCode.BLOCK, 999, True, (True, False, False)),
    ],
)
def test_inline_code_goes_by_its_setting(policy, uid, prevents, expected):
    settings = ApplicationControlSettings(inline_code=policy, inline_code_from_uid=1000)
    of = facts(path=b"/usr/bin/python3.11", inline=InlineKind.COMMAND, uid=uid)
    found = verdict(of, prevents=prevents, settings=settings)
    assert (found.is_allowed, found.would_block, reports_inline(of, settings)) == expected


def test_an_interpreter_entry_goes_before_the_setting():
    settings = ApplicationControlSettings(inline_code=InlineCode.BLOCK, inline_code_from_uid=0)
    entry = InterpreterEntry(path="/usr/bin/python*", inline=[InlineKind.COMMAND], from_uid=0)
    of = facts(path=b"/usr/bin/python3.11", inline=InlineKind.COMMAND)
    assert verdict(of, rule(RuleAction.ALLOW, entry), settings=settings).is_allowed
    assert not verdict(of, rule(RuleAction.BLOCK, entry), settings=ApplicationControlSettings()).is_allowed
    odd = facts(path=b"/usr/bin/python3.11", inline=InlineKind.STDIN)
    assert verdict(odd, rule(RuleAction.BLOCK, entry), settings=ApplicationControlSettings()).is_allowed


def test_samples_that_do_not_hold_are_named():
    samples = Samples(match=[Sample(sha256=OTHER, path="/x")], no_match=[Sample(sha256=CONTENT, path="/y")])
    base = rule(RuleAction.BLOCK, ENTRIES["hash"])
    wrong = check_samples(type(base)(**{**{name: getattr(base, name) for name in base.__struct_fields__}, "samples": samples}))
    assert wrong == ["match[0] (/x) is not matched", "no_match[0] (/y) is matched"]
    assert "needs samples" in check_samples(base)[0]


# --- engine equals a simple model

contents = st.sampled_from([CONTENT, OTHER])
paths = st.sampled_from(["/opt/app/run", "/tmp/x", "/usr/bin/tool"])
entries = st.one_of(
    st.builds(HashEntry, sha256=contents, size=st.sampled_from([None, 10, 11])),
    st.builds(PackageEntry, name=st.sampled_from(["nginx", "curl", "*"]), origin=st.sampled_from(["", "Debian", "Other"])),
    st.builds(SignerEntry, key_id=st.sampled_from([KEY, KEY[-16:], "0" * 16])),
    st.builds(
        PathEntry,
        pattern=st.sampled_from(["/opt/app/run", "/tmp/*", "/**"]),
        only_root_writable=st.booleans(),
        user=st.sampled_from(["", "alice"]),
    ),
)
rulesets = st.lists(st.tuples(st.sampled_from(list(RuleAction)), st.lists(entries, max_size=4)), max_size=4)
some_facts = st.builds(
    Facts,
    path=paths.map(str.encode),
    sha256=contents,
    size=st.sampled_from([10, 11]),
    package=st.sampled_from([None, PACKAGE, PackageRecord("curl", "8", "Other")]),
    is_root_writable_only=st.booleans(),
    user=st.sampled_from(["alice", "bob"]),
    uid=st.just(1000),
    standing=st.sampled_from(list(Standing)),
    floor=st.sampled_from(["", "", "needed"]),
    has_writer=st.booleans(),
    kind=st.sampled_from([FileKind.PROGRAM, FileKind.LIBRARY, FileKind.SCRIPT]),
)


def model(of: Facts, written: list[tuple[RuleAction, list[Entry]]], prevents: bool, blocks_unknown: bool) -> bool:
    """Whether it may run, said as simply as possible."""
    if of.floor:
        return True
    for rank in (HashEntry, PackageEntry, SignerEntry, PathEntry):
        actions = {action for action, some in written for one in some if type(one) is rank and _says(one, action, of)}
        if RuleAction.BLOCK in actions:
            return False
        if actions and of.standing is Standing.MALICIOUS and rank is not HashEntry:
            return not prevents
        if actions:
            return _trusted(of, prevents, blocks_unknown)
    if of.standing is Standing.TRUSTED:
        return _trusted(of, prevents, blocks_unknown)
    return not (prevents and (blocks_unknown or of.standing is Standing.MALICIOUS))


def _trusted(of: Facts, prevents: bool, blocks_unknown: bool) -> bool:
    return not (of.has_writer and of.kind is not FileKind.SCRIPT and prevents and blocks_unknown)


def _says(entry: Entry, action: RuleAction, of: Facts) -> bool:
    match entry:
        case HashEntry():
            return entry.sha256 == of.sha256 and entry.size in (None, of.size)
        case PackageEntry():
            return of.package is not None and entry.name in (of.package.name, "*") and entry.origin in ("", of.package.origin)
        case SignerEntry():
            return of.package is not None and bool(of.package.signer) and of.package.signer.endswith(entry.key_id)
        case PathEntry():
            path = of.path.decode()
            is_there = {"/opt/app/run": path == "/opt/app/run", "/tmp/*": path == "/tmp/x", "/**": True}[entry.pattern]
            is_roots = of.is_root_writable_only or not entry.only_root_writable or action is RuleAction.BLOCK
            return is_there and is_roots and entry.user in ("", of.user)
    return False


@given(some_facts, rulesets, st.booleans(), st.sampled_from(list(Unrecognised)))
def test_the_engine_equals_a_simple_model(of, written, prevents, unrecognised):
    rules = [rule(action, *some, name=f"ac-{number}") for number, (action, some) in enumerate(written)]
    settings = ApplicationControlSettings(unrecognised=unrecognised)
    found = judge(of, compile_rules(rules, settings), prevents=prevents)
    assert found.is_allowed == model(of, written, prevents, unrecognised is Unrecognised.BLOCK)
    assert found.would_block or found.is_allowed
