"""What was scanned for malware of what the inventory holds. It belongs to content, as trust does.

Only software that was trusted because it was there is scanned: the unchanged file of a package is its distributor's, and what
comes later is a person's or an updater's to vouch for. A file that waits for its scan is *held back*: not trusted, though its row
says already by what it will be. The content of a threat keeps that too, so that it is as it was when somebody allows the threat.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

from keibi.agent.modules.application_control.inventory import Inventory, Software, connect
from keibi.agent.ports import FileExamined, FileToExamine, ThreatNote

MAX_PATHS = 3
MAX_THREATS = 20_000
"""Contents of threats that are remembered, also of files that are not in the inventory; of more, the oldest are forgotten."""
COUNTING_SHARE = 20
"""Counting takes at most one in so many parts of the time, however large the inventory is and however often it changes."""
_NEXT = "SELECT sha256, min(size) FROM to_examine WHERE sha256>? GROUP BY sha256 ORDER BY sha256 LIMIT ?"
_NEXT_THREATS = "SELECT sha256, min(size) FROM with_threat WHERE sha256>? GROUP BY sha256 ORDER BY sha256 LIMIT ?"


@dataclass(frozen=True)
class Counts:
    """How many files of the inventory there are of each kind."""

    unexamined: int = 0  # not scanned for malware, though nobody else vouches for them
    partly_examined: int = 0  # too large, encrypted, excluded by the policy, …
    malicious: int = 0
    held_back: int = 0  # of the unexamined, those that wait for it and are not trusted yet


@dataclass(frozen=True)
class Changed:
    """Files whose trust a finding has changed."""

    distrusted: tuple[Software, ...] = ()
    restored: tuple[Software, ...] = ()  # a threat that is none any more


class Examinations:
    """The table. Any thread may use it; whoever counts or looks for more holds up nobody who judges."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._counted: tuple[int, Counts] | None = None  # after how many changes, and what
        self._count_again_at = 0.0

    def has(self, sha256: str) -> bool:
        """Whether a content was scanned, as far as that could be done."""
        with self._inventory.lock:
            row = self._inventory.connection.execute("SELECT 1 FROM examined WHERE sha256=?", (bytes.fromhex(sha256),)).fetchone()
        return row is not None

    def pending(self, after: str, max_files: int, max_bytes: int, *, are_threats: bool = False) -> list[FileToExamine]:
        """Return contents that are to be scanned, in order, after the one named; at least one where there is any.

        `are_threats`: instead of them those in which a threat was found, to see whether it still is.
        """
        found: list[FileToExamine] = []
        total = 0
        with closing(connect(self._inventory.path)) as reader:
            query = _NEXT_THREATS if are_threats else _NEXT
            for sha256, size in reader.execute(query, (bytes.fromhex(after), max_files)).fetchall():
                total += size
                if found and total > max_bytes:
                    break
                rows = reader.execute("SELECT path FROM software WHERE sha256=? AND is_proof=0 LIMIT ?", (sha256, MAX_PATHS))
                found.append(FileToExamine(sha256.hex(), [path for (path,) in rows]))
        return found

    def pending_count(self) -> int:
        """Return how many contents are to be scanned."""
        with closing(connect(self._inventory.path)) as reader:
            return int(reader.execute("SELECT count(DISTINCT sha256) FROM to_examine").fetchone()[0])

    def counts(self, *, is_exact: bool = False) -> Counts:
        """Return how many files there are of each kind; unless it must be exact, perhaps as it was a while ago."""
        with self._inventory.lock:
            changes = self._inventory.connection.total_changes
        if self._counted is None or (self._counted[0] != changes and (is_exact or time.monotonic() >= self._count_again_at)):
            began = time.monotonic()
            with closing(connect(self._inventory.path)) as reader:
                unexamined, held_back = reader.execute(
                    "SELECT count(*), coalesce(sum(1 - is_trusted), 0) FROM to_examine"
                ).fetchone()
                partly, malicious = reader.execute(
                    "SELECT coalesce(sum(threat='' AND gap<>''), 0), coalesce(sum(threat<>''), 0) "
                    "FROM software JOIN examined USING (sha256) WHERE is_proof=0"
                ).fetchone()
            self._counted = (changes, Counts(int(unexamined), int(partly), int(malicious), int(held_back)))
            self._count_again_at = time.monotonic() + COUNTING_SHARE * (time.monotonic() - began)
        return self._counted[1]

    def gaps(self, contents: Sequence[str]) -> dict[str, str]:
        """Return of those contents that were scanned why that was not done wholly; "" where it was."""
        found: dict[str, str] = {}
        with self._inventory.lock:
            for sha256 in contents:
                row = self._inventory.connection.execute("SELECT gap FROM examined WHERE sha256=?", (bytes.fromhex(sha256),))
                if (known := row.fetchone()) is not None:
                    found[sha256] = known[0]
        return found

    def note(self, results: Iterable[FileExamined]) -> Changed:
        """Keep what was found, inside a transaction of the caller: what holds no threat is trusted now, if it waited for that."""
        distrusted: list[Software] = []
        restored: list[Software] = []
        for one in results:
            if one.is_gone:
                continue
            was_threat = bool(self._inventory.threat_of(one.sha256))
            self._put(one)
            files = self._inventory.files_of(one.sha256) if bool(one.threat) != was_threat else []
            if one.threat:
                distrusted += [file for file in files if file.is_held_back]
            else:
                restored += [file for file in files if file.is_trusted]
        self._forget_oldest()
        return Changed(tuple(distrusted), tuple(restored))

    def take(self, notes: Sequence[ThreatNote]) -> Changed:
        """Keep what anti-malware says of contents by itself, inside a transaction of the caller."""
        return self.note(
            FileExamined(note.sha256, threat=note.threat)
            for note in notes
            if note.threat or self._inventory.threat_of(note.sha256)
        )

    def trust_the_rest(self) -> int:
        """Trust what is held back and holds no threat that is known; return how many files these are."""
        with self._inventory.transaction():
            return self._inventory.connection.execute(
                "UPDATE software SET is_trusted=1 WHERE is_proof=0 AND is_trusted=0 AND trusted_by<>'unrecognised' "
                "AND sha256 NOT IN (SELECT sha256 FROM examined WHERE threat<>'')"
            ).rowcount

    def forget_gone(self) -> None:
        """Forget what was scanned and is not there any more."""
        with self._inventory.transaction():
            self._inventory.connection.execute(
                "DELETE FROM examined WHERE threat='' AND NOT EXISTS (SELECT 1 FROM software s WHERE s.sha256=examined.sha256)"
            )

    def _put(self, one: FileExamined) -> None:
        content = bytes.fromhex(one.sha256)
        connection = self._inventory.connection
        connection.execute("INSERT OR REPLACE INTO examined VALUES (?, ?, ?, ?)", (content, one.threat, one.gap, time.time()))
        self._inventory.set_threat(one.sha256, one.threat)
        if one.threat:
            connection.execute("UPDATE software SET is_trusted=0 WHERE sha256=? AND is_trusted=1", (content,))
        else:
            connection.execute(
                "UPDATE software SET is_trusted=1 WHERE sha256=? AND is_proof=0 AND is_trusted=0 AND trusted_by<>'unrecognised'",
                (content,),
            )

    def _forget_oldest(self) -> None:
        connection = self._inventory.connection
        too_many = self._inventory.threat_count - MAX_THREATS
        if too_many > 0:
            rows = connection.execute("SELECT sha256 FROM examined WHERE threat<>'' ORDER BY at LIMIT ?", (too_many,)).fetchall()
            for (sha256,) in rows:
                connection.execute("DELETE FROM examined WHERE sha256=?", (sha256,))
                self._inventory.set_threat(sha256.hex(), "")
