"""Sets of YARA rules: each rule is compiled by the engine that agents use, the good ones are kept, the others are named.

All good rules become one source, since agents compile a content as a whole. So a name can be used once only; what stands before
the first rule of a file (authors, licence) travels with its rules, as does their metadata.
"""

import re
from collections.abc import Iterable

import yara_x

from keibi.errors import InputError
from keibi.manager.patterns.importers.model import Content, ContentKind, Tally, one_line
from keibi.manager.patterns.importers.reading import Member
from keibi.manager.patterns.importers.yara_text import Unit, cut
from keibi.protection.anti_malware.yara_rules import EXTERNALS, FORBIDDEN_MODULES

SUFFIXES = (".yar", ".yara", ".rule", ".rules")
MAX_SOURCE_BYTES = 64 * 1024 * 1024
MAX_RULE_CHARACTERS = 1024 * 1024
COMPILED = (b"YARA-X\0\0", b"YARA")
"""How compiled rules begin: those of yara-x and of the older YARA. Both belong to one version of one engine."""
_WORD = re.compile(r"[A-Za-z_]\w*")
_LICENCE_KEYS = frozenset({"license", "licence", "license_name", "licence_name"})


class YaraSets:
    """Gathers rules from files."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._sources: list[str] = []
        self._size = 0
        self._came_from: dict[str, str] = {}
        self._imports: set[str] = set()
        self._accepted: dict[str, Unit] = {}

    def take(self, member: Member) -> None:
        """Take the good rules of a file.

        Raises:
            InputError: the file is compiled for one version of an engine, or all together is too much.
        """
        if member.data.startswith(COMPILED):
            raise InputError(
                "yara_compiled",
                "this file holds compiled rules, made by and for one version of one engine",
                where=member.name,
                hint="import the source: text files with the suffix .yar",
            )
        try:
            text = member.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._tally.refuse(member.name, member.name, f"the file is not UTF-8 (byte {error.start})", "not_utf8")
            return
        self._tally.files_count += 1
        parts = cut(text)
        strays = [(unit.line, unit.stray) for unit in parts.units if unit.stray]
        if parts.rest:
            strays.append((text.count("\n", 0, text.rfind(parts.rest)) + 1, parts.rest))
        for line, stray in strays:
            reason = "this is no rule, or one whose end is missing"
            self._tally.refuse(f"{member.name}:{line}", stray[:100], reason, "yara_unfinished")
        kept = [unit for unit in parts.units if self._is_wanted(member.name, unit)]
        good = self._good(member.name, self._borrowed(parts.units, kept), kept)
        if good:
            self._keep(member.name, parts.header, good)

    def contents(self, set_name: str) -> list[Content]:
        """Return the one source of all rules.

        Raises:
            InputError: the good rules do not compile together, which would be a fault of ours.
        """
        if not self._sources:
            return []
        imports = "".join(f'import "{name}"\n' for name in sorted(self._imports))
        source = imports + "\n".join(self._sources)
        compiler = _compiler()
        try:
            compiler.add_source(source)
        except (yara_x.CompileError, ValueError) as error:
            raise InputError("yara_invalid", f"the good rules do not compile together: {one_line(str(error))}") from error
        for rule in compiler.build():
            named = [str(value).strip()[:100] for key, value in rule.metadata if key.lower() in _LICENCE_KEYS]
            self._tally.licences[named[0] if named else ""] += 1
        return [Content(ContentKind.YARA_SOURCE, f"{set_name}.yar", source.encode())]

    def _is_wanted(self, file: str, unit: Unit) -> bool:
        where = f"{file}:{unit.line}"
        if unit.kind == "include":
            self._tally.refuse(where, f"include {unit.name}", "includes are not followed: import that file too", "yara_include")
            return False
        if unit.kind == "import":
            return False  # written once, at the top, for the rules that need it
        if "global" in unit.modifiers:
            reason = "a global rule would silence every other rule where it does not match"
            self._tally.refuse(where, unit.name, reason, "yara_global")
            return False
        if unit.name in self._came_from:
            reason = f"a rule of that name came already from {self._came_from[unit.name]}"
            self._tally.refuse(where, unit.name, reason, "yara_duplicate")
            return False
        if len(unit.text) > MAX_RULE_CHARACTERS:
            self._tally.refuse(where, unit.name, f"it has more than {MAX_RULE_CHARACTERS} characters", "yara_too_large")
            return False
        self._came_from[unit.name] = where
        return True

    def _borrowed(self, units: list[Unit], kept: list[Unit]) -> list[Unit]:
        """Return rules of earlier files that rules of this one build upon, where this one has rules of the same names."""
        names = {unit.name for unit in units if unit.kind == "rule" and unit.name in self._accepted} - {
            unit.name for unit in kept
        }
        words = {word for unit in kept for word in _WORD.findall(unit.text)}
        return [self._accepted[name] for name in sorted(names & words)]

    def _good(self, file: str, borrowed: list[Unit], units: list[Unit]) -> list[Unit]:
        """Return the rules that compile: all at once where all do, else one after another, until the rest do together."""
        while not self._compiles([*borrowed, *units]):
            # A rule that fails may leave its name in the compiler, so rules that build upon it fail in the next round only.
            compiler = _compiler()
            good: tuple[list[Unit], list[Unit]] = ([], [])
            for are_ours, unit in [*((0, one) for one in borrowed), *((1, one) for one in units)]:
                try:
                    compiler.add_source(_imports_of([unit]) + unit.text)
                except (yara_x.CompileError, ValueError) as error:
                    if are_ours:
                        self._came_from.pop(unit.name, None)
                        self._tally.refuse(f"{file}:{unit.line}", unit.name, _reason(error), "yara_invalid")
                else:
                    good[are_ours].append(unit)
            if len(good[0]) == len(borrowed) and len(good[1]) == len(units):
                self._tally.refuse(file, file, "its rules compile one by one and not together", "yara_invalid")
                return []
            borrowed, units = good
        return units

    def _compiles(self, units: list[Unit]) -> bool:
        try:
            _compiler().add_source(_imports_of(units) + "\n".join(unit.text for unit in units))
        except (yara_x.CompileError, ValueError):
            return False
        return True

    def _keep(self, file: str, header: str, units: list[Unit]) -> None:
        self._imports.update(name for name in _modules() if any(f"{name}." in unit.text for unit in units))
        shown = "".join(character if character.isprintable() else " " for character in file)
        text = "\n".join([f"// From {shown}", header, *(unit.text.strip() for unit in units)])
        self._size += len(text)
        if self._size > MAX_SOURCE_BYTES:
            raise InputError("yara_too_large", f"the rules have more than {MAX_SOURCE_BYTES} characters", hint="make two sets")
        self._sources.append(text + "\n")
        self._accepted.update({unit.name: unit for unit in units})
        self._tally.accepted["rules"] += len(units)


def is_yara(name: str) -> bool:
    """Whether a file is one of YARA rules by its name."""
    return name.lower().endswith(SUFFIXES)


def _modules() -> Iterable[str]:
    names: list[str] = list(yara_x.module_names())  # type: ignore[attr-defined]
    return [name for name in names if name not in FORBIDDEN_MODULES]


def _imports_of(units: list[Unit]) -> str:
    return "".join(f'import "{name}"\n' for name in _modules() if any(f"{name}." in unit.text for unit in units))


def _compiler() -> yara_x.Compiler:
    compiler = yara_x.Compiler(relaxed_re_syntax=True, includes_enabled=False)
    for name in EXTERNALS:
        compiler.define_global(name, "")
    return compiler


def _reason(error: Exception) -> str:
    first, _, rest = str(error).partition("\n")
    notes = [line.partition("^ ")[2] for line in rest.splitlines() if "^ " in line]
    return ": ".join([first, *notes[:1]])
