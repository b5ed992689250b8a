"""The verdict on one file: facts and rules in, allowed or not and why out. No I/O.

The most specific opinion decides: content, package, signer, path, then the inventory, then the setting for what is unrecognised.
Between two entries of one kind that disagree, the one that blocks wins. The floor goes before everything: what it holds can never
be blocked, since a computer that nobody can sign in to is worse than one rule that does not hold.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from keibi.contract.names import Severity
from keibi.protection.application_control.events import FileKind, PackageRecord, ReasonCode
from keibi.protection.application_control.rules import (
    HashEntry,
    InlineKind,
    InterpreterEntry,
    PackageEntry,
    PathEntry,
    Rule,
    RuleAction,
    Sample,
    SignerEntry,
)
from keibi.protection.application_control.settings import ApplicationControlSettings, InlineCode, Unrecognised
from keibi.protection.patterns import Patterns


class Standing(StrEnum):
    """What the inventory says of a content at a path."""

    UNKNOWN = "unknown"  # neither the content nor the path
    TRUSTED = "trusted"
    CHANGED = "changed"  # the path is known with another content
    UNRECOGNISED = "unrecognised"  # it was seen, and nobody trusts it
    MALICIOUS = "malicious"  # anti-malware found a threat in the content


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One file as it is now, and who wants it. `path` is where it is opened, other names of it may exist."""

    path: bytes
    sha256: str
    size: int = 0
    kind: FileKind = FileKind.PROGRAM
    package: PackageRecord | None = None  # only when the content is the package's own
    is_root_writable_only: bool = False  # the file and every directory above it
    user: str = ""
    uid: int = 0
    standing: Standing = Standing.UNKNOWN
    trusted_by: ReasonCode = ReasonCode.INVENTORY  # how it became trusted: INVENTORY, TRUSTED_UPDATER or MAINTENANCE
    threat: str = ""  # what anti-malware found in the content
    floor: str = ""  # why it must never be blocked; "" when it may
    has_writer: bool = False
    inline: InlineKind | None = None  # then the file is the interpreter


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is answered, and why."""

    is_allowed: bool  # what the kernel is told
    would_block: bool  # it is not allowed, or would not be if the policy prevented
    reason_code: ReasonCode
    reason: str  # a sentence without subject: "is not in the inventory"
    rule: Rule | None = None

    @property
    def rule_id(self) -> str:
        """The rule that decided; "" when none did."""
        return self.rule.id if self.rule else ""

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        if self.rule is not None:
            return self.rule.severity
        return Severity.HIGH if self.would_block and not self.is_allowed else Severity.MEDIUM


_BY_CONTENT = "by its content"


@dataclass(frozen=True, slots=True)
class _Glob:
    """An entry with patterns; `matches` is its test."""

    rule: Rule
    matches: Callable[[Facts], bool]


@dataclass(slots=True)
class CompiledRules:
    """Rules ready to judge by. Within each list the entries that block come first."""

    rules: tuple[Rule, ...] = ()
    settings: ApplicationControlSettings = field(default_factory=ApplicationControlSettings)
    has_block_rules: bool = False
    depends_on_user: bool = False  # an entry speaks of who runs a file, so a verdict does not hold for everybody
    blocks_inline: bool = False  # a rule blocks inline code of some interpreter
    hashes: dict[str, list[tuple[Rule, int | None]]] = field(default_factory=dict)
    packages: list[_Glob] = field(default_factory=list)
    signers: list[_Glob] = field(default_factory=list)
    paths: list[_Glob] = field(default_factory=list)
    interpreters: list[_Glob] = field(default_factory=list)

    def opinion(self, facts: Facts) -> tuple[Rule, str] | None:
        """Return the rule that decides about a file and what of it matched, or None when none speaks of it."""
        for rule, size in self.hashes.get(facts.sha256, ()):
            if size is None or size == facts.size:
                return rule, _BY_CONTENT
        if facts.package is not None:
            if (rule_ := _first(self.packages, facts)) is not None:
                return rule_, f"by its package {facts.package.name}"
            if (rule_ := _first(self.signers, facts)) is not None:
                return rule_, "by the key that signed its package"
        if (rule_ := _first(self.paths, facts)) is not None:
            return rule_, "by its path"
        return None


def compile_rules(rules: Sequence[Rule], settings: ApplicationControlSettings) -> CompiledRules:
    """Return rules ready to judge by.

    Raises:
        InputError: `pattern_invalid`.
    """
    compiled = CompiledRules(tuple(rules), settings, any(rule.action is RuleAction.BLOCK and rule.entries for rule in rules))
    # Those that block first: a later one of the same kind must not hide them.
    for rule in sorted(rules, key=lambda one: (one.action is not RuleAction.BLOCK, one.id)):
        for entry in rule.entries:
            match entry:
                case HashEntry():
                    compiled.hashes.setdefault(entry.sha256, []).append((rule, entry.size))
                case PackageEntry():
                    compiled.packages.append(_Glob(rule, _package_test(entry)))
                case SignerEntry():
                    compiled.signers.append(_Glob(rule, _signer_test(entry)))
                case PathEntry():
                    compiled.depends_on_user = compiled.depends_on_user or bool(entry.user)
                    compiled.paths.append(_Glob(rule, _path_test(entry, rule.action)))
                case InterpreterEntry():
                    compiled.blocks_inline = compiled.blocks_inline or rule.action is RuleAction.BLOCK
                    compiled.interpreters.append(_Glob(rule, _interpreter_test(entry)))
    return compiled


def judge(facts: Facts, rules: CompiledRules, *, prevents: bool) -> Verdict:
    """Return the verdict on a file. `prevents`: the policy prevents, or this is a proof, so what is not recognised is stopped."""
    if facts.inline is not None:
        return _judge_inline(facts, facts.inline, rules, prevents=prevents)
    if facts.floor:
        return Verdict(True, False, ReasonCode.FLOOR, facts.floor)
    if (found := rules.opinion(facts)) is not None:
        rule, how = found
        if rule.action is RuleAction.BLOCK:
            return Verdict(False, True, ReasonCode.BLOCK_RULE, f"is blocked {how}", rule)
        if facts.standing is Standing.MALICIOUS and how != _BY_CONTENT:
            # Whoever allows a package or a folder does not mean this; whoever allows the content knows it.
            return _malicious(facts, prevents)
        return _unless_written(Verdict(True, False, ReasonCode.ALLOW_RULE, f"is allowed {how}", rule), facts, rules, prevents)
    match facts.standing:
        case Standing.TRUSTED:
            verdict = Verdict(True, False, facts.trusted_by, _TRUSTED_WORDS[facts.trusted_by])
            return _unless_written(verdict, facts, rules, prevents)
        case Standing.CHANGED:
            return _unrecognised(ReasonCode.CHANGED, "has changed since the inventory was taken", rules, prevents)
        case Standing.MALICIOUS:
            return _malicious(facts, prevents)
        case _:
            return _unrecognised(ReasonCode.UNRECOGNISED, "is not recognised", rules, prevents)


_TRUSTED_WORDS = {
    ReasonCode.INVENTORY: "is in the inventory",
    ReasonCode.TRUSTED_UPDATER: "was brought by a trusted updater",
    ReasonCode.MAINTENANCE: "was brought during maintenance",
}


def _judge_inline(facts: Facts, inline: InlineKind, rules: CompiledRules, *, prevents: bool) -> Verdict:
    what = f"runs code {_INLINE_WORDS[inline]}"
    if facts.floor:
        return Verdict(True, False, ReasonCode.FLOOR, facts.floor)
    if (rule := _first(rules.interpreters, facts)) is not None:
        if rule.action is RuleAction.BLOCK:
            return Verdict(False, True, ReasonCode.BLOCK_RULE, f"{what}, which a rule blocks", rule)
        return Verdict(True, False, ReasonCode.ALLOW_RULE, f"{what}, which a rule allows", rule)
    settings = rules.settings
    if settings.inline_code is InlineCode.BLOCK and facts.uid >= settings.inline_code_from_uid:
        return Verdict(not prevents, True, ReasonCode.INLINE_CODE, what)
    return Verdict(True, False, ReasonCode.INLINE_CODE, what)


_INLINE_WORDS = {
    InlineKind.COMMAND: "from its command line",
    InlineKind.STDIN: "from its standard input",
    InlineKind.ODD_NAME: "from a file that looks like no script",
}


def reports_inline(facts: Facts, settings: ApplicationControlSettings) -> bool:
    """Whether inline code that is let run is told of."""
    return settings.inline_code is InlineCode.REPORT and facts.uid >= settings.inline_code_from_uid


def _unless_written(verdict: Verdict, facts: Facts, rules: CompiledRules, prevents: bool) -> Verdict:
    """Take back a trust in content that a writer can still exchange after it was judged."""
    if not facts.has_writer or facts.kind is FileKind.SCRIPT:
        return verdict
    return _unrecognised(ReasonCode.BEING_WRITTEN, "is open for writing, so what runs is not what was judged", rules, prevents)


def _unrecognised(code: ReasonCode, reason: str, rules: CompiledRules, prevents: bool) -> Verdict:
    if rules.settings.unrecognised is Unrecognised.ALLOW:
        return Verdict(True, False, ReasonCode.UNRECOGNISED_ALLOWED, f"{reason}, and allowed until a rule blocks it")
    return Verdict(not prevents, True, code, reason)


def _malicious(facts: Facts, prevents: bool) -> Verdict:
    # Also where what is not recognised is allowed until somebody blocks it: anti-malware is that somebody.
    return Verdict(not prevents, True, ReasonCode.MALWARE, f"holds {facts.threat or 'a threat'}, which anti-malware found")


def _first(globs: Iterable[_Glob], facts: Facts) -> Rule | None:
    return next((glob.rule for glob in globs if glob.matches(facts)), None)


def _package_test(entry: PackageEntry) -> Callable[[Facts], bool]:
    name = re.compile(fnmatch.translate(entry.name)).match
    version = re.compile(fnmatch.translate(entry.version)).match if entry.version else None

    def test(facts: Facts) -> bool:
        package = facts.package
        return (
            package is not None
            and name(package.name) is not None
            and (not entry.origin or entry.origin == package.origin)
            and (version is None or version(package.version) is not None)
        )

    return test


def _signer_test(entry: SignerEntry) -> Callable[[Facts], bool]:
    wanted = entry.key_id.upper()

    def test(facts: Facts) -> bool:
        signer = facts.package.signer.upper() if facts.package is not None else ""
        # A key may be named by its last 16 digits on either side.
        return len(signer) >= 16 and (signer.endswith(wanted) or wanted.endswith(signer))

    return test


def _path_test(entry: PathEntry, action: RuleAction) -> Callable[[Facts], bool]:
    matches = Patterns([entry.pattern]).match
    needs_root = entry.only_root_writable and action is RuleAction.ALLOW

    def test(facts: Facts) -> bool:
        return (
            matches(facts.path)
            and (not needs_root or facts.is_root_writable_only)
            and (not entry.user or entry.user in (facts.user, str(facts.uid)))
        )

    return test


def _interpreter_test(entry: InterpreterEntry) -> Callable[[Facts], bool]:
    matches = Patterns([entry.path]).match

    def test(facts: Facts) -> bool:
        return facts.inline in entry.inline and facts.uid >= entry.from_uid and matches(facts.path)

    return test


def facts_of(sample: Sample) -> Facts:
    """Return the facts that a sample describes."""
    package = PackageRecord(sample.package, sample.version, sample.origin, sample.signer) if sample.package else None
    return Facts(
        path=sample.path.encode(),
        sha256=sample.sha256,
        size=sample.size,
        package=package,
        is_root_writable_only=sample.is_root_writable_only,
        user=sample.user,
        uid=sample.uid,
        inline=sample.inline,
    )


def speaks_of(compiled: CompiledRules, facts: Facts) -> bool:
    """Whether any rule has an opinion on these facts."""
    if facts.inline is not None:
        return _first(compiled.interpreters, facts) is not None
    return compiled.opinion(facts) is not None


def check_samples(rule: Rule) -> list[str]:
    """Return what is wrong with a rule's samples: none at all, one that it should match and does not, or a near miss."""
    if rule.samples is None or not rule.samples.match or not rule.samples.no_match:
        return ["a shipped rule needs samples: at least one under match and one under no_match"]
    compiled = compile_rules([rule], ApplicationControlSettings())
    wrong = []
    for wanted, samples in ((True, rule.samples.match), (False, rule.samples.no_match)):
        for number, sample in enumerate(samples):
            if speaks_of(compiled, facts_of(sample)) is not wanted:
                name = "match" if wanted else "no_match"
                wrong.append(f"{name}[{number}] ({sample.path}) is {'not ' if wanted else ''}matched")
    return wrong
