"""Fuzzes the importers of pattern sets: `python tests/fuzz/fuzz_importers.py TARGET SEEDS [libFuzzer options]`.

Targets: `uploads` (containers and databases, as the importing process reads them) and `yara_cut` (cutting a source into rules). A
crash is an exception that is not one of ours, text that is lost, or a run of more than a few seconds.
"""

import io
import sys
import time
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["keibi.manager.patterns.importers", "zipfile", "tarfile"]):
    from keibi.errors import KeibiError
    from keibi.manager.patterns.importers import cvd, reading
    from keibi.manager.patterns.importers.importing import import_from
    from keibi.manager.patterns.importers.model import ImportKind
    from keibi.manager.patterns.importers.yara_text import cut

SECONDS = 10.0
_NAMES = ("a.zip", "a.tar.gz", "daily.cvd", "main.hsb", "x.ndb", "x.ldb", "list.txt", "rules.yar", "unknown")
reading.MAX_TOTAL_BYTES = reading.MAX_MEMBER_BYTES = 4 * 1024 * 1024  # so that a bomb is soon one


def uploads(data: bytes) -> None:
    """Import the bytes under a name that their last byte chooses; a container's header is put before some."""
    name = _NAMES[data[-1] % len(_NAMES)] if data else "empty"
    if name == "daily.cvd" and not data.startswith(cvd.MAGIC):
        data = b"ClamAV-VDB:now:1:1:90:X:X:me:0".ljust(cvd.HEADER_BYTES) + data
    started = time.monotonic()
    try:
        imported = import_from(io.BytesIO(data), name, ImportKind.AUTO, "set")
    except KeibiError as error:
        if not error.message.isprintable():
            raise AssertionError(f"a message that cannot be shown: {error.message!r}") from error
    else:
        for one in imported.report.refused:
            if not (one.where + one.what + one.reason).isprintable():
                raise AssertionError(f"a refusal that cannot be shown: {one!r}")
    if time.monotonic() - started > SECONDS:
        raise AssertionError("too slow")


def yara_cut(data: bytes) -> None:
    """Cut the bytes as a source: every part is of it, and none stands in it twice."""
    text = data.decode("utf-8", "replace")
    started = time.monotonic()
    parts = cut(text)
    for unit in parts.units:
        if unit.name not in text or unit.text.rpartition("\n")[2] not in text:
            raise AssertionError(f"a rule that was not there: {unit!r}")
    if time.monotonic() - started > SECONDS:
        raise AssertionError("too slow")


TARGETS: dict[str, Callable[[bytes], None]] = {"uploads": uploads, "yara_cut": yara_cut}


def main() -> None:
    """Run one target until libFuzzer has enough."""
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
