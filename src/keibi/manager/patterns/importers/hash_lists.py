"""Lists of SHA-256 hashes: one on a line, alone or among other columns."""

import re

from keibi.manager.patterns.importers.model import Content, ContentKind, Tally
from keibi.manager.patterns.importers.reading import Member
from keibi.protection.anti_malware.hash_list import build_hash_list

SUFFIXES = (".sha256", ".hashes", ".txt", ".csv", ".list", ".ioc")
EMPTY_FILE = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
MAX_HASHES = 10_000_000
_HEX = re.compile(r"(?<![0-9A-Fa-f])([0-9A-Fa-f]{64}|[0-9A-Fa-f]{40}|[0-9A-Fa-f]{32})(?![0-9A-Fa-f])")
_COMMENTS = ("#", ";", "//")
_OTHER_HASHES = {32: "an MD5 hash", 40: "a SHA-1 hash"}


class HashLists:
    """Gathers hashes from files."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._hashes: set[bytes] = set()

    def take(self, member: Member) -> None:
        """Take the SHA-256 hashes of a file, line by line."""
        self._tally.files_count += 1
        for number, raw in enumerate(member.data.splitlines(), 1):
            line = raw.decode("utf-8", "replace").strip().lstrip("\ufeff")
            if line and not line.startswith(_COMMENTS):
                self._take_line(f"{member.name}:{number}", line)

    def add(self, where: str, sha256: str) -> None:
        """Take one hash of 64 digits."""
        if sha256.lower() == EMPTY_FILE:
            self._tally.refuse(where, sha256, "this is the hash of an empty file, which every computer has", "hash_of_nothing")
        elif len(self._hashes) >= MAX_HASHES:
            self._tally.refuse(where, sha256, f"there are more than {MAX_HASHES} hashes", "too_many_hashes")
        else:
            self._hashes.add(bytes.fromhex(sha256))
            self._tally.accepted["hashes"] = len(self._hashes)

    def drop(self, sha256: str) -> bool:
        """Take a hash away again, as a list of known good files asks; returns whether it was there."""
        is_there = bytes.fromhex(sha256) in self._hashes
        self._hashes.discard(bytes.fromhex(sha256))
        if is_there:
            self._tally.accepted["hashes"] = len(self._hashes)
        return is_there

    def contents(self, set_name: str) -> list[Content]:
        """Return the list as agents search it; what it finds is called after the set."""
        if not self._hashes:
            return []
        return [Content(ContentKind.SHA256_LIST, f"{set_name}.sha256", build_hash_list(self._hashes, set_name))]

    def _take_line(self, where: str, line: str) -> None:
        found = [match.group(1) for match in _HEX.finditer(line)]
        strong = [one for one in found if len(one) == 64]
        if strong:
            self.add(where, strong[0])
        elif found:
            what = _OTHER_HASHES[len(found[0])]
            reason = f"{what} alone: files with the same one can be made at will, so only SHA-256 is compared"
            self._tally.refuse(where, found[0], reason, "hash_weak")
        elif self._tally.accepted["hashes"] or self._tally.refused_count:
            self._tally.refuse(where, line, "there is no SHA-256 hash of 64 hexadecimal digits in it", "hash_missing")
        # Else it is taken for the heading of a table.


def is_hash_list(name: str) -> bool:
    """Whether a file may be a list of hashes by its name."""
    return name.lower().endswith(SUFFIXES)
