"""Which rules watch an entity, and whether what became of it matters. Pure: facts in, verdicts out.

Rules are compiled once for a policy (`compile_rules`), then asked for single entities (`sets_for`, `judge`) and, to walk no
further than needed, for directories (`directory_watch`). Keys are raw bytes here; verdicts carry them escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keibi.contract.names import Severity
from keibi.errors import InputError
from keibi.protection.base import escape_name, outermost
from keibi.protection.integrity_monitoring.rules import (
    ATTRIBUTE_GROUPS,
    FILE_ATTRIBUTES,
    Change,
    EntitySet,
    EntityType,
    Rule,
)
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings
from keibi.protection.patterns import Patterns, has_variable, substitute

FILE_TYPES = (EntityType.FILE, EntityType.DIRECTORY)
REGISTRY_TYPES = (EntityType.REGISTRY_KEY, EntityType.REGISTRY_VALUE)
_GROWS = frozenset({"size", "modified_at", "changed_at", "contents", "accessed_at"})
MAX_REMEMBERED_DIRECTORIES = 8192
PREFIX_INTACT = "prefix_is_intact"
"""Extra attribute of `after` for an append-only file: whether its beginning is still what the whole of it was before."""

_NOUNS = {
    EntityType.FILE: "file",
    EntityType.DIRECTORY: "directory",
    EntityType.PROCESS: "program",
    EntityType.PORT: "listening port",
    EntityType.USER: "user",
    EntityType.GROUP: "group",
    EntityType.SERVICE: "service",
    EntityType.SOFTWARE: "package",
    EntityType.REGISTRY_KEY: "registry key",
    EntityType.REGISTRY_VALUE: "registry value",
}
_VERBS = {
    (EntityType.PROCESS, Change.CREATED): "runs for the first time",
    (EntityType.PROCESS, Change.DELETED): "runs no more",
    (EntityType.PORT, Change.CREATED): "was opened",
    (EntityType.PORT, Change.DELETED): "was closed",
    (EntityType.SOFTWARE, Change.CREATED): "was installed",
    (EntityType.SOFTWARE, Change.DELETED): "was removed",
}
_PLAIN_VERBS = {
    Change.CREATED: "was created",
    Change.UPDATED: "was changed",
    Change.DELETED: "was deleted",
    Change.RENAMED: "was renamed",
}


@dataclass(frozen=True)
class SetProblem:
    """A part of a rule that cannot run on this computer; the rest does."""

    rule_id: str
    place: str  # "entities[0].base"
    message: str


@dataclass(frozen=True)
class CompiledSet:
    """One entity set of one rule, ready to be asked."""

    rule: Rule
    type: EntityType
    base: bytes  # "" where the type has none
    include: Patterns
    exclude: Patterns
    attributes: frozenset[str]
    append_only: bool
    follow_links: bool
    cross_filesystems: bool

    def matches(self, key: bytes) -> bool:
        """Whether this set watches the entity of its type with this key."""
        relative = self._relative(key)
        return relative is not None and self.include.match(relative) and not self._excludes(relative)

    def _excludes(self, relative: bytes) -> bool:
        if self.exclude.match(relative):
            return True
        # What is excluded is excluded with all below it.
        at = relative.rfind(b"/")
        while at > 0:
            if self.exclude.match(relative[:at]):
                return True
            at = relative.rfind(b"/", 0, at)
        return False

    def _relative(self, key: bytes) -> bytes | None:
        """Return the key as the patterns see it, below the base; None when it lies elsewhere."""
        if not self.base:
            return key
        if self.type in REGISTRY_TYPES:
            key = key.replace(b"//", b"/")
        prefix = self.base if self.base.endswith((b"/", b"!")) else self.base + b"/"
        if key.startswith(prefix) and len(key) > len(prefix):
            return key[len(prefix) :]
        # A base that names one entity watches it.
        return key.rpartition(b"/")[2] if key == self.base and self.include.matches_everything else None

    def reaches(self, directory: bytes) -> bool:
        """Whether something directly in this directory or below it may be watched by this set."""
        relative = self._below_base(directory)
        if relative is None:
            return False
        if not relative:
            return True
        return self.include.may_match_below(relative) and not self.exclude.match_with_all_below(relative)

    def takes_all_of(self, directory: bytes) -> bool:
        """Whether every entry of this directory is watched, so that names need not be looked at."""
        relative = self._below_base(directory)
        return relative is not None and self.include.matches_everything and not self.exclude.patterns

    def _below_base(self, directory: bytes) -> bytes | None:
        if directory == self.base:
            return b""
        prefix = b"/" if self.base == b"/" else self.base + b"/"
        return directory[len(prefix) :] if directory.startswith(prefix) else None


@dataclass(frozen=True)
class Verdict:
    """A difference that matters, with its reason."""

    type: EntityType
    key: str
    change: Change
    rule: Rule  # the gravest that watches it
    matching_rules: list[str]
    before: dict[str, Any]
    after: dict[str, Any]
    changed_attributes: list[str]
    message: str
    previous_key: str = ""

    @property
    def severity(self) -> Severity:
        """The gravest rule's."""
        return self.rule.severity

    @property
    def kind(self) -> str:
        """The event's kind: "file.updated"."""
        return f"{self.type}.{self.change}"


@dataclass(frozen=True)
class CompiledRules:
    """All rules of a policy, ready to be asked."""

    rules: tuple[Rule, ...]
    sets: tuple[CompiledSet, ...]
    problems: tuple[SetProblem, ...]
    never: Patterns
    _by_type: dict[EntityType, tuple[CompiledSet, ...]] = field(default_factory=dict)
    _by_directory: dict[tuple[EntityType, bytes], tuple[CompiledSet, ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def of_type(self, type_: EntityType) -> tuple[CompiledSet, ...]:
        """Return the sets of one entity type."""
        return self._by_type.get(type_, ())

    @property
    def types(self) -> frozenset[EntityType]:
        """The entity types that any rule watches."""
        return frozenset(self._by_type)

    def watch_roots(self, *, only_real_time: bool = False) -> list[bytes]:
        """Return the bases of all file and directory sets, without those that lie below another."""
        return outermost(
            one.base for type_ in FILE_TYPES for one in self.of_type(type_) if one.rule.is_real_time or not only_real_time
        )

    def registry_bases(self) -> set[tuple[str, str]]:
        """Return (hive file, key) of each registry set's base."""
        found = set()
        for type_ in REGISTRY_TYPES:
            for one in self.of_type(type_):
                hive, _, key = one.base.partition(b"!")
                found.add((hive.decode("utf-8", "surrogateescape"), key.decode("utf-8", "surrogateescape")))
        return found

    def sets_for(self, type_: EntityType, key: bytes, *, only_real_time: bool = False) -> list[CompiledSet]:
        """Return the sets that watch this entity; none when the policy excludes its path."""
        candidates = self._near(type_, key) if type_ in FILE_TYPES else self.of_type(type_)
        sets = [one for one in candidates if one.matches(key) and (one.rule.is_real_time or not only_real_time)]
        return [] if sets and type_ in FILE_TYPES and self.excludes(key) else sets

    def _near(self, type_: EntityType, path: bytes) -> tuple[CompiledSet, ...]:
        """Return the sets whose base is the path or above it; remembered by directory, since neighbours have the same."""
        directory = path.rpartition(b"/")[0] or b"/"
        near = self._by_directory.get((type_, directory))
        if near is None:
            if len(self._by_directory) >= MAX_REMEMBERED_DIRECTORIES:
                self._by_directory.clear()
            near = tuple(
                one
                for one in self.of_type(type_)
                if _is_at_or_below(directory, one.base) or (one.base.rpartition(b"/")[0] or b"/") == directory
            )
            self._by_directory[type_, directory] = near
        return near

    def excludes(self, path: bytes) -> bool:
        """Whether the policy says that this path, or a directory above it, is never watched."""
        if not self.never.patterns:
            return False
        at = len(path)
        while at > 0:
            if self.never.match(path[:at]):
                return True
            at = path.rfind(b"/", 0, at)
        return False

    def sets_reaching(self, directory: bytes) -> list[CompiledSet]:
        """Return the file and directory sets that may watch something in or below this directory; none if it is excluded."""
        if self.excludes(directory):
            return []
        return [one for type_ in FILE_TYPES for one in self.of_type(type_) if one.reaches(directory)]


def compile_rules(rules: Sequence[Rule], settings: IntegrityMonitoringSettings) -> CompiledRules:
    """Return the rules ready to be asked. A set that lacks a variable's value is left out and told among the problems.

    Raises:
        InputError: a rule or an excluded path is wrong in itself; the whole policy is then refused.
    """
    sets: list[CompiledSet] = []
    problems: list[SetProblem] = []
    seen: set[str] = set()
    for rule in rules:
        if rule.id in seen:
            raise InputError("rule_twice", f"the rule {rule.id} is assigned twice")
        seen.add(rule.id)
        for number, entities in enumerate(rule.entities):
            place = f"entities[{number}]"
            try:
                sets.append(_compile_set(rule, entities, settings.variables))
            except InputError as error:
                if error.code == "variable_unknown":
                    problems.append(SetProblem(rule.id, place, f"{error.message} ({error.hint})"))
                    continue
                raise InputError(error.code, error.message, where=f"rule {rule.id}, {place}", hint=error.hint) from error
    for pattern in settings.excluded_paths:
        if not pattern.startswith("/"):
            raise InputError("path_not_absolute", f"{pattern!r} is not an absolute path", where="excluded_paths")
    try:
        never = Patterns(settings.excluded_paths)
    except InputError as error:
        raise InputError(error.code, error.message, where="excluded_paths", hint=error.hint) from error
    by_type = {type_: tuple(one for one in sets if one.type is type_) for type_ in EntityType}
    return CompiledRules(
        tuple(rules), tuple(sets), tuple(problems), never, {type_: found for type_, found in by_type.items() if found}
    )


def _compile_set(rule: Rule, entities: EntitySet, variables: dict[str, str]) -> CompiledSet:
    base = check_base(entities.type, substitute(entities.base, variables), is_substituted=True)
    return CompiledSet(
        rule=rule,
        type=entities.type,
        base=base.encode("utf-8", "surrogateescape"),
        include=Patterns(substitute(pattern, variables) for pattern in entities.include),
        exclude=Patterns(substitute(pattern, variables) for pattern in entities.exclude),
        attributes=resolve_attributes(entities.type, entities.attributes),
        append_only=entities.append_only,
        follow_links=entities.follow_links,
        cross_filesystems=entities.cross_filesystems,
    )


def check_base(type_: EntityType, base: str, *, is_substituted: bool = False) -> str:
    """Return the base in its normal form.

    Raises:
        InputError: the type needs a base and this is none, or it has none and one is given.
    """
    if type_ in FILE_TYPES or type_ in REGISTRY_TYPES:
        if has_variable(base) and not is_substituted:
            return base
        path = base.partition("!")[0] if type_ in REGISTRY_TYPES else base
        if not path.startswith("/"):
            raise InputError(
                "base_not_absolute", f"the base {base!r} is not an absolute path", hint="a base begins with / or ${NAME}"
            )
        if any(part in (".", "..") for part in path.split("/")) or "//" in path or any(mark in path for mark in "*?\0"):
            raise InputError("base_invalid", f"the base {base!r} must name one folder: no patterns, no '..', no empty parts")
        if type_ in REGISTRY_TYPES:
            if "!" not in base:
                raise InputError(
                    "base_no_key", f"the base {base!r} names no registry key", hint="write the hive file, then '!', then a key"
                )
            return path + "!" + base.partition("!")[2].strip("/")
        return base.rstrip("/") or "/"
    if base:
        raise InputError("base_unwanted", f"entities of the type {type_} have no base, and {base!r} is given")
    return ""


def resolve_attributes(type_: EntityType, names: Iterable[str]) -> frozenset[str]:
    """Return the attributes that groups and single names stand for; "-name" takes away what came before it.

    Raises:
        InputError: `attribute_unknown`, with the names that there are.
    """
    groups = ATTRIBUTE_GROUPS[type_]
    known = set(FILE_ATTRIBUTES) if type_ in FILE_TYPES else {name for members in groups.values() for name in members}
    chosen: set[str] = set()
    for name in names:
        plain = name.removeprefix("-")
        members = set(groups[plain]) if plain in groups else {plain}
        if plain not in groups and plain not in known:
            raise InputError(
                "attribute_unknown",
                f"{plain!r} is no attribute of a {_NOUNS[type_]}",
                hint=f"groups: {', '.join(sorted(groups))}; attributes: {', '.join(sorted(known))}",
            )
        chosen = chosen - members if name.startswith("-") else chosen | members
    return frozenset(chosen)


def changed_attributes(
    before: Mapping[str, Any], after: Mapping[str, Any], attributes: frozenset[str], *, append_only: bool = False
) -> list[str]:
    """Return which of `attributes` differ, sorted. An attribute that only one side knows does not count as different.

    For an append-only file, growing is no change while its beginning is intact; that it shrank, or has another beginning, is.
    """
    both = attributes & before.keys() & after.keys()
    changed = {name for name in both if before[name] != after[name]}
    if append_only and after.get(PREFIX_INTACT) is not None:
        if after[PREFIX_INTACT]:
            changed -= _GROWS
        else:
            changed.add("contents")
    return sorted(changed)


def judge(
    sets: Sequence[CompiledSet],
    key: bytes,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    *,
    previous_key: bytes | None = None,
) -> Verdict | None:
    """Return the verdict on one entity, or None when no set sees a difference.

    `sets` are those that watch it (`CompiledRules.sets_for`). `before` is None for a new entity, `after` for one that is
    gone; both with `previous_key` for one that was renamed.
    """
    if previous_key is not None and before is not None and after is not None:
        change, concerned = Change.RENAMED, list(sets)
        attributes = frozenset[str]().union(*(one.attributes for one in sets))
        names = changed_attributes(before, after, attributes - {"changed_at"})
    elif before is None and after is None:
        return None
    elif before is None or after is None:
        change, concerned = (Change.CREATED if before is None else Change.DELETED), list(sets)
        names = []
    else:
        change = Change.UPDATED
        found = {
            number: changed_attributes(before, after, one.attributes, append_only=one.append_only)
            for number, one in enumerate(sets)
        }
        concerned = [one for number, one in enumerate(sets) if found[number]]
        names = sorted({name for changed in found.values() for name in changed})
    if not concerned:
        return None
    gravest = max(concerned, key=lambda one: one.rule.severity.rank)
    shown_key = escape_name(key)
    return Verdict(
        type=gravest.type,
        key=shown_key,
        change=change,
        rule=gravest.rule,
        matching_rules=sorted({one.rule.id for one in concerned}),
        before=_shown(before, names if change in (Change.UPDATED, Change.RENAMED) else None),
        after=_shown(after, names if change in (Change.UPDATED, Change.RENAMED) else None),
        changed_attributes=names,
        message=sentence(gravest.type, shown_key, change, names, escape_name(previous_key) if previous_key else ""),
        previous_key=escape_name(previous_key) if previous_key else "",
    )


def sentence(type_: EntityType, key: str, change: Change, attributes: Sequence[str], previous_key: str = "") -> str:
    """Return one plain English sentence that says what happened."""
    verb = _VERBS.get((type_, change), _PLAIN_VERBS[change])
    if change is Change.RENAMED:
        text = f"The {_NOUNS[type_]} {previous_key} was renamed to {key}"
    else:
        text = f"The {_NOUNS[type_]} {key} {verb}"
    if attributes:
        text += ": " + ", ".join(name.replace("_", " ") for name in attributes)
    return text + "."


def check_samples(rule: Rule, settings: IntegrityMonitoringSettings | None = None) -> list[str]:
    """Return what is wrong with a rule's samples: a match that it does not report, or a near miss that it does."""
    if rule.samples is None:
        return ["there are no samples"]
    chosen = settings or IntegrityMonitoringSettings(variables=_SampleVariables())
    compiled = compile_rules([rule], chosen)
    wrong = []
    for expected, samples in ((True, rule.samples.match), (False, rule.samples.no_match)):
        for sample in samples:
            key = substitute(sample.key, chosen.variables).encode("utf-8", "surrogateescape")
            sets = compiled.sets_for(sample.type, key)
            before = None if sample.change is Change.CREATED else sample.before
            after = None if sample.change is Change.DELETED else sample.after
            previous = b"?" if sample.change is Change.RENAMED else None
            if (judge(sets, key, before, after, previous_key=previous) is not None) is not expected:
                said = "does not report" if expected else "reports"
                wrong.append(f"the rule {said} {sample.type} {sample.change}: {sample.key}")
    if not rule.samples.match:
        wrong.append("there is no sample that the rule must report")
    if not rule.samples.no_match:
        wrong.append("there is no near miss that the rule must let pass")
    return wrong


class _SampleVariables(dict[str, str]):
    """Any variable has a value in samples: a folder of its name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return f"/variable/{name}"


def _shown(attributes: Mapping[str, Any] | None, names: Sequence[str] | None) -> dict[str, Any]:
    if attributes is None:
        return {}
    return {
        name: attributes[name]
        for name in (names if names is not None else attributes)
        if name in attributes and name != PREFIX_INTACT
    }


def _is_at_or_below(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(b"/" if directory == b"/" else directory + b"/")
