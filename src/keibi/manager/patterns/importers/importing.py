"""The importing process: `python -m keibi.manager.patterns.importers.importing UPLOAD NAME KIND SET DIRECTORY`.

It reads bytes that nobody vouches for with compilers and unpackers, so it is a process of its own, bounded in memory, time and
size of files, with nothing of the manager in it. It writes contents and a report into DIRECTORY; the parent checks the digests.
"""

import os
import re
import resource
import subprocess
import sys
from typing import BinaryIO

import msgspec

from keibi.errors import InputError, KeibiError, RefusedError, TryLaterError
from keibi.manager.patterns.importers.clamav import ClamavDatabases, is_clamav
from keibi.manager.patterns.importers.hash_lists import HashLists, is_hash_list
from keibi.manager.patterns.importers.model import Content, ContentKind, Imported, ImportKind, Report, Tally
from keibi.manager.patterns.importers.reading import Member, members
from keibi.manager.patterns.importers.yara_sets import YaraSets, is_yara

MAX_MEMORY_BYTES = 4 * 1024**3
MAX_CPU_SECONDS = 600
MAX_SECONDS = 1200
REPORT = "report"
_SNIFF_BYTES = 64 * 1024
_RULE = re.compile(rb"^\s*((private|global)\s+)*rule\s+\w+", re.MULTILINE)
_HASH = re.compile(rb"\b[0-9A-Fa-f]{32,64}\b")
_LICENCE_FILE = re.compile(r"(^|/)(licen[sc]e|copying)[^/]*$", re.IGNORECASE)


class ContentFile(msgspec.Struct, frozen=True):
    """A content that lies in a file of the directory."""

    kind: ContentKind
    name: str
    file: str


class Outcome(msgspec.Struct, frozen=True):
    """What the process leaves: a report with files, or an error."""

    report: Report | None = None
    files: list[ContentFile] = []
    error: str = ""  # name of the class
    code: str = ""
    message: str = ""
    where: str = ""
    hint: str = ""


def import_from(file: BinaryIO, name: str, kind: ImportKind, set_name: str) -> Imported:
    """Return what comes of an upload that is called `name`, for the set `set_name`.

    Raises:
        InputError: nothing in it can be used, or it is broken. RefusedError: it is altered or a bomb.
    """
    tally = Tally()
    hashes, rules = HashLists(tally), YaraSets(tally)
    databases = ClamavDatabases(tally, hashes, rules)
    seen: set[ImportKind] = set()
    for member in members(file, name):
        taken_as = _kind_of(member) if kind is ImportKind.AUTO else kind
        if _LICENCE_FILE.search(member.name):
            first = member.data[:400].decode("utf-8", "replace").strip().partition("\n")[0]
            tally.notes.append(f"{member.name}: {first.strip()[:200]}")
            continue
        match taken_as:
            case ImportKind.YARA:
                rules.take(member)
            case ImportKind.CLAMAV:
                databases.take(member)
            case ImportKind.HASHES:
                hashes.take(member)
            case _:
                continue  # a README or a picture
        seen.add(taken_as)
    # The databases first: what they list as known good is taken out of the hashes.
    contents = [*databases.contents(set_name), *hashes.contents(set_name), *rules.contents(set_name)]
    order = (ImportKind.CLAMAV, ImportKind.YARA, ImportKind.HASHES)
    report = tally.report(next((one for one in order if one in seen), kind))
    if not contents:
        first_refused = report.refused[0] if report.refused else None
        reason = f"; the first problem: {first_refused.reason}" if first_refused else ""
        raise InputError(
            "import_empty",
            f"nothing in the upload can be used{reason}",
            where=first_refused.where if first_refused else name,
            hint="YARA rules (.yar), lists of SHA-256 hashes and ClamAV databases are taken, also in zip and tar.gz",
        )
    return Imported(report, contents)


def _kind_of(member: Member) -> ImportKind:
    head = member.data[:_SNIFF_BYTES]
    if is_yara(member.name):
        return ImportKind.YARA
    if is_clamav(member.name, head[:16]):
        return ImportKind.CLAMAV
    if _RULE.search(head):
        return ImportKind.YARA
    if (is_hash_list(member.name) or "." not in member.name.rpartition("/")[2]) and _HASH.search(head):
        return ImportKind.HASHES
    return ImportKind.AUTO


def run_import(upload: str, name: str, kind: ImportKind, set_name: str, directory: str) -> Outcome:
    """Import in a process of its own, and return its report and the files it left in `directory`.

    Raises:
        KeibiError: what the importer says, or that it did not come to its end.
    """
    argv = [sys.executable, "-m", __name__, upload, name, kind, set_name, directory]
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV")}
    try:
        process = subprocess.run(argv, capture_output=True, timeout=MAX_SECONDS, check=False, env=environment)
        with open(os.path.join(directory, REPORT), "rb") as file:
            outcome = msgspec.msgpack.decode(file.read(), type=Outcome)
    except subprocess.TimeoutExpired as error:
        raise RefusedError("import_too_slow", f"importing took longer than {MAX_SECONDS} seconds", where=name) from error
    except (OSError, msgspec.DecodeError) as error:
        said = process.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        raise RefusedError(
            "import_failed",
            f"the importer ended with {how}: {said or 'it used more memory or time than it may'}",
            where=name,
            hint="import it in parts",
        ) from error
    if outcome.error:
        family = {"RefusedError": RefusedError, "TryLaterError": TryLaterError}.get(outcome.error, InputError)
        raise family(outcome.code, outcome.message, where=outcome.where, hint=outcome.hint)
    return outcome


def main(arguments: list[str]) -> int:
    """Import one upload under limits."""
    upload, name, kind, set_name, directory = arguments
    for limit, most in (
        (resource.RLIMIT_DATA, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CPU, MAX_CPU_SECONDS),
        (resource.RLIMIT_FSIZE, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    try:
        with open(upload, "rb") as file:
            imported = import_from(file, name, ImportKind(kind), set_name)
        files = [_written(directory, number, content) for number, content in enumerate(imported.contents)]
        outcome = Outcome(imported.report, files)
    except KeibiError as error:
        outcome = Outcome(error=type(error).__name__, code=error.code, message=error.message, where=error.where, hint=error.hint)
    except MemoryError:
        message = f"it needs more than {MAX_MEMORY_BYTES} bytes of memory"
        outcome = Outcome(error="RefusedError", code="import_too_large", message=message, where=name, hint="import it in parts")
    with open(os.path.join(directory, REPORT), "wb") as file:
        file.write(msgspec.msgpack.encode(outcome))
    return 0


def _written(directory: str, number: int, content: Content) -> ContentFile:
    name = f"content-{number}"
    with open(os.path.join(directory, name), "wb") as file:
        file.write(content.data)
        file.flush()
        os.fsync(file.fileno())
    return ContentFile(content.kind, content.name, name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
