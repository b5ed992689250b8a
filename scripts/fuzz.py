"""`make fuzz`: runs every fuzz target for a while (FUZZ_SECONDS, 20 unless told) from seeds of the corpus and of our own making.

A finding is left in the working directory as `crash-…` and named; the exit code is then 1.
"""

import bz2
import gzip
import io
import lzma
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

from keibi.manager.patterns.importers import cvd
from keibi.protection.anti_malware.hash_list import build_hash_list

ROOT = pathlib.Path(__file__).resolve().parents[1]
CORPUS = ROOT.parent / "shared/corpus/f-malware"
TARGETS = {
    "archives": "fuzz_malware_parsers.py",
    "file_types": "fuzz_malware_parsers.py",
    "hash_list": "fuzz_malware_parsers.py",
    "uploads": "fuzz_importers.py",
    "yara_cut": "fuzz_importers.py",
}
"""Each target and the program in tests/fuzz that it is in."""
MAX_SEED_BYTES = 16 * 1024


def seeds() -> dict[str, bytes]:
    """Return small files of every kind that a reader knows."""
    content = {"a.txt": b"text " * 50, "b/c.php": b"<?php echo 1;"}
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name + "ü" * 60)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = {"zip": zipped.getvalue(), "tar": tarred.getvalue(), "list": build_hash_list([bytes(32)], "feed")}
    for name, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        found[name] = pack(zipped.getvalue())
        found[f"tar.{name}"] = pack(tarred.getvalue())
    databases = {"a.ndb": b"A:0:*:aa\n", "a.hsb": b"ab" * 32 + b":1:B\n", "a.yar": b"rule a { condition: true }"}
    found["a.cvd"] = cvd.write_container(databases, 3)
    found["a.yar"] = (
        b'import "pe"\n// c\nrule a { strings: $a = { 4D ?? } $b = /a\\/b/i condition: any of them }\nrule b { condition: a }'
    )
    found["a.hsb"] = b"ab" * 32 + b":5:Name\n"
    return {**found, **_seven_zip(content), **_from_corpus()}


def _seven_zip(content: dict[str, bytes]) -> dict[str, bytes]:
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, data in content.items():
            path = pathlib.Path(directory, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        for number, options in enumerate(([], ["-m0=LZMA"], ["-m0=Copy", "-ms=off"], ["-m0=BZip2"], ["-psecret", "-mhe=on"])):
            packed = pathlib.Path(directory, f"{number}.7z")
            try:
                subprocess.run(["7z", "a", "-bd", *options, packed, *content], cwd=directory, check=True, capture_output=True)
            except (FileNotFoundError, subprocess.CalledProcessError):
                break
            found[f"{number}.7z"] = packed.read_bytes()
    return found


def _from_corpus() -> dict[str, bytes]:
    if not CORPUS.is_dir():
        print(f"the shared corpus is not at {CORPUS}: fuzzing from our own seeds alone")
        return {}
    turned = bytes(255 - number for number in range(256))
    files = [path for path in sorted((CORPUS / "clamav-testfiles").iterdir()) if path.stat().st_size <= MAX_SEED_BYTES]
    return {path.name: path.read_bytes().translate(turned) for path in files}


def main() -> int:
    """Run all targets; returns 1 when one finds something."""
    seconds = os.environ.get("FUZZ_SECONDS", "20")
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        for name, data in seeds().items():
            pathlib.Path(directory, name).write_bytes(data)
        for target, program in TARGETS.items():
            grown = tempfile.mkdtemp(dir=directory)
            options = [f"-max_total_time={seconds}", "-timeout=15", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"]
            command = [sys.executable, str(ROOT / "tests/fuzz" / program), target, grown, directory, *options]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
            print(f"{target:<12} {'found something' if done.returncode else 'held'}: {runs[0] if runs else '?'} runs", flush=True)
            if done.returncode:
                print(done.stdout, done.stderr[-4000:], sep="\n")
                failed.append(target)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
