"""What importers make: contents in memory, and a report of what was taken and what was not."""

from collections import Counter
from enum import StrEnum

import msgspec

MAX_REFUSED_NAMED = 1000
"""So many refusals are listed one by one; the others are counted."""
MAX_REASON_CHARACTERS = 300


class ContentKind(StrEnum):
    """What a content is; the words that agents know (`ContentReference.kind`)."""

    YARA_SOURCE = "yara_source"
    SHA256_LIST = "sha256_list"
    CLAMAV = "clamav"


class ImportKind(StrEnum):
    """What an upload is taken for. AUTO looks at the names of files and their first bytes."""

    AUTO = "auto"
    YARA = "yara"
    HASHES = "hashes"
    CLAMAV = "clamav"


class Refused(msgspec.Struct, frozen=True):
    """One thing that was not taken, and why."""

    where: str  # "webshells.yar:120", "main.cvd/main.hsb:7"
    what: str  # the rule's name, the start of the line
    reason: str
    code: str


class Licence(msgspec.Struct, frozen=True):
    """A licence that the patterns name themselves, and how many of them do; "" counts those that name none."""

    name: str
    count: int


class Report(msgspec.Struct, frozen=True):
    """What became of an upload."""

    kind: ImportKind
    files_count: int
    accepted: dict[str, int]  # "rules", "hashes", "signatures" -> how many
    refused_count: int
    refused: list[Refused]
    licences: list[Licence] = []
    notes: list[str] = []


class Content(msgspec.Struct, frozen=True):
    """One file for computers."""

    kind: ContentKind
    name: str
    data: bytes


class Imported(msgspec.Struct, frozen=True):
    """All that came of an upload."""

    report: Report
    contents: list[Content]


class Tally:
    """Gathers what a report is made of."""

    def __init__(self) -> None:
        self.files_count = 0
        self.accepted: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()
        self.notes: list[str] = []
        self.refused: list[Refused] = []
        self.refused_count = 0

    def refuse(self, where: str, what: str, reason: str, code: str) -> None:
        """Note something that is not taken."""
        self.refused_count += 1
        if len(self.refused) < MAX_REFUSED_NAMED:
            self.refused.append(Refused(one_line(where), one_line(what, 120), one_line(reason), code))

    def report(self, kind: ImportKind) -> Report:
        """Return the report."""
        licences = [Licence(name, count) for name, count in self.licences.most_common(50)]
        accepted = dict(sorted(self.accepted.items()))
        return Report(kind, self.files_count, accepted, self.refused_count, self.refused, licences, self.notes)


def one_line(text: str, most: int = MAX_REASON_CHARACTERS) -> str:
    """Return a text of unknown origin as one printable line of bounded length."""
    line = "".join(character if character.isprintable() else " " for character in text[: most * 2]).strip()
    return line if len(line) <= most else line[: most - 1] + "…"
