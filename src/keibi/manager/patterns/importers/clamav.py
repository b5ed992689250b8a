"""ClamAV databases, plain or in containers: SHA-256 hashes go to Keibi's own list too, all stays for clamd.

clamd refuses a whole database for one malformed line, and then protects nobody; so lines are looked at first, and those that
clamd would stumble over are left out and named.
"""

import io
import re
from collections import defaultdict

from keibi.errors import InputError
from keibi.manager.patterns.importers import cvd
from keibi.manager.patterns.importers.hash_lists import HashLists
from keibi.manager.patterns.importers.model import Content, ContentKind, Tally
from keibi.manager.patterns.importers.reading import Member, members
from keibi.manager.patterns.importers.yara_sets import YaraSets, is_yara

CONTAINERS = (".cvd", ".cld", ".cud")
_NAME = r"[^:;\s]{1,256}"
_LEVELS = r"(:\d{1,5}){0,2}"
_HEX_BODY = r"[0-9A-Fa-f?*{}()|!\[\]\-<>LWB~^]+"
_LINE: dict[str, re.Pattern[str]] = {
    suffix: re.compile(pattern)
    for suffixes, pattern in (
        ("hdb hdu hsb hsu", rf"([0-9A-Fa-f]{{64}}|[0-9A-Fa-f]{{40}}|[0-9A-Fa-f]{{32}}):(\d+|\*):{_NAME}{_LEVELS}"),
        ("mdb mdu", rf"(\d+|\*):[0-9A-Fa-f]{{32}}:{_NAME}{_LEVELS}"),
        ("msb msu", rf"(\d+|\*):([0-9A-Fa-f]{{64}}|[0-9A-Fa-f]{{40}}):{_NAME}{_LEVELS}"),
        ("imp", rf"[0-9A-Fa-f]{{32}}:(\d+|\*):{_NAME}{_LEVELS}"),
        ("ndb ndu", rf"{_NAME}:\d{{1,2}}:[^:]+:{_HEX_BODY}{_LEVELS}"),
        ("ldb ldu", r"[^:;\s]{1,256};[^;]+;[^;]+(;.+)+"),
        ("fp", r"[0-9A-Fa-f]{32}:(\d+|\*):[^:]+(:\d+){0,2}"),
        ("sfp", r"([0-9A-Fa-f]{64}|[0-9A-Fa-f]{40}):(\d+|\*):[^:]+(:\d+){0,2}"),
        # Their lines are not looked at: they are few, and come from ClamAV itself.
        ("cdb crb idb ign ign2 ftm pdb wdb gdb zmd rmd db pwdb", r".+"),
    )
    for suffix in suffixes.split()
}
_FILE_HASHES = frozenset({"hdb", "hdu", "hsb", "hsu"})
"""Their lines are told apart by the length of the hash, and not by the suffix."""
_NOT_TAKEN = {
    "cbc": ("bytecode_refused", "bytecode is a program that would run inside clamd: it is not taken"),
    "cfg": ("not_a_database", "settings of ClamAV are not taken from a database"),
    "sign": ("not_a_database", "a detached signature: put the database beside it"),
}
_QUIET = frozenset({"info", "txt", "md", ""})
"""Licence texts and the like: nothing is lost."""
_ENGINE = re.compile(r"Engine:(\d{1,5})-")


class ClamavDatabases:
    """Gathers signatures from plain files and containers."""

    def __init__(self, tally: Tally, hashes: HashLists, rules: YaraSets) -> None:
        self._tally = tally
        self._hashes = hashes
        self._rules = rules
        self._kept: dict[str, list[str]] = defaultdict(list)
        self._known_good: set[str] = set()
        self._newer_count = 0

    def take(self, member: Member) -> None:
        """Take the signatures of a database.

        Raises:
            InputError: a container is broken or of a newer engine. RefusedError: it was altered, or is a bomb.
        """
        if member.data.startswith(cvd.MAGIC):
            self._take_container(member)
            return
        suffix = _suffix(member.name)
        if is_yara(member.name):
            # ClamAV's own YARA loads four rules of five and says nothing of the fifth; ours takes them.
            self._rules.take(member)
        elif suffix in _NOT_TAKEN:
            code, reason = _NOT_TAKEN[suffix]
            self._tally.refuse(member.name, member.name, reason, code)
        elif suffix in _LINE:
            self._tally.files_count += 1
            self._take_lines(member, suffix)
        elif suffix not in _QUIET:
            self._tally.refuse(member.name, member.name, f"a .{suffix} file is no ClamAV database", "unknown_file")

    def contents(self, set_name: str) -> list[Content]:
        """Return what is for clamd as one container; ask the hash list and the rules for theirs."""
        dropped = sum(self._hashes.drop(sha256) for sha256 in self._known_good)
        if dropped:
            self._tally.notes.append(f"{dropped} hashes were left out because the database itself lists them as known good")
        if self._newer_count:
            self._tally.notes.append(f"{self._newer_count} signatures are for a newer engine; clamd passes over them")
        if not self._kept:
            return []
        files = {f"keibi.{suffix}": ("\n".join(lines) + "\n").encode() for suffix, lines in self._kept.items()}
        count = sum(len(lines) for lines in self._kept.values())
        return [Content(ContentKind.CLAMAV, f"{set_name}.cud", cvd.write_container(files, count))]

    def _take_container(self, member: Member) -> None:
        header = cvd.read_header(member.data, member.name)
        inner = cvd.packed(member.data, header, member.name)
        signed = "signed; the signature is not checked here" if header.is_signed else "unsigned"
        self._tally.notes.append(
            f"{member.name}: version {header.version}, built {header.built_at}, {header.signatures_count} signatures, {signed}"
        )
        count = 0
        for one in members(io.BytesIO(inner), member.name):
            if one.data.startswith(cvd.MAGIC) and not one.name.lower().endswith(".info"):
                self._tally.refuse(f"{member.name}/{one.name}", one.name, "a container within a container", "unknown_file")
                continue
            count += 1
            self.take(Member(f"{member.name}/{one.name}", b"" if one.name.lower().endswith(".info") else one.data))
        if not count:
            raise InputError("clamav_broken", "there is nothing in the database", where=member.name)

    def _take_lines(self, member: Member, suffix: str) -> None:
        shape = _LINE[suffix]
        for number, raw in enumerate(member.data.split(b"\n"), 1):
            line = raw.decode("latin-1").rstrip("\r")
            if not line or line.startswith("#"):
                continue
            where = f"{member.name}:{number}"
            if not shape.fullmatch(line) or "\0" in line:
                self._tally.refuse(where, line[:80], f"no line of a .{suffix} database: clamd would refuse all", "malformed")
                continue
            first = line.partition(":")[0]
            if suffix in _FILE_HASHES and len(first) == 64:
                # Our engines find the file by it, and clamd what it alone takes out of installers, mail and packed programs.
                self._hashes.add(where, first)
                self._kept[suffix].append(line)
                continue
            if suffix == "sfp" and len(first) == 64:
                self._known_good.add(first)
            self._newer_count += _level_of(line, suffix) > cvd.KNOWN_FUNCTIONALITY_LEVEL
            self._tally.accepted["signatures"] += suffix not in ("fp", "sfp", "ign", "ign2")
            self._kept[suffix].append(line)


def is_clamav(name: str, head: bytes = b"") -> bool:
    """Whether a file is a ClamAV database by its name or its first bytes."""
    suffix = _suffix(name)
    return head.startswith(cvd.MAGIC) or suffix in _LINE or suffix in _NOT_TAKEN or f".{suffix}" in CONTAINERS


def _suffix(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""


def _level_of(line: str, suffix: str) -> int:
    """Return the lowest functionality level that a signature asks for, 0 where it names none."""
    if suffix in ("ldb", "ldu"):
        found = _ENGINE.search(line, 0, 400)
        return int(found[1]) if found else 0
    fields = line.split(":")
    position = 4 if suffix.startswith("n") else 3
    is_named = suffix[:2] in ("hd", "hs", "md", "ms", "nd") and len(fields) > position
    return int(fields[position]) if is_named and fields[position].isdecimal() else 0
