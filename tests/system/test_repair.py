"""Cleaning a file in its place, on a real file system. Needs root."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from keibi.agent.modules.anti_malware import repair as repair_module
from keibi.agent.modules.anti_malware.quarantine import Quarantine
from keibi.agent.modules.anti_malware.quarantine_items import Facts, Kind, What
from keibi.agent.modules.anti_malware.quarantine_names import IMMUTABLE, loosen, read_flags, write_flags
from keibi.agent.modules.anti_malware.repair import Cleaned, CleanFailed, clean
from keibi.agent.modules.anti_malware.repair_text import Uncleanable
from keibi.protection.anti_malware.rules import Repair, RepairKind

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HARM = b"key of evil.example"
FACTS = Facts(threat="Test.Persistence")
LINES = Repair(RepairKind.LINES, line=r".*evil\.example")
RANGE = Repair(RepairKind.RANGE, begin="/*x*/", end="/*y*/")


@pytest.fixture
def quarantine(tmp_path):
    opened = Quarantine(str(tmp_path / "vault"), bytes(32))
    yield opened
    opened.close()


@pytest.fixture
def keys_file(tmp_path):
    (tmp_path / ".ssh").mkdir()
    path = tmp_path / ".ssh" / "authorized_keys"
    path.write_bytes(b"my key\n" + HARM + b"\nother key\n")
    os.chown(path, 1234, 2345)
    os.setxattr(path, "user.note", b"kept")
    path.chmod(0o640)
    return path


def cleaned(quarantine, path, rule=LINES, is_clean=lambda content: b"evil" not in content):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return clean(quarantine, descriptor, os.fsencode(path), rule, FACTS, is_clean)
    finally:
        os.close(descriptor)


def test_a_cleaned_file_keeps_its_attributes_and_its_original_can_be_had_back(quarantine, keys_file):
    descriptor = os.open(keys_file, os.O_RDONLY)
    write_flags(descriptor, read_flags(descriptor) | IMMUTABLE)
    os.close(descriptor)
    answer = cleaned(quarantine, keys_file)
    descriptor = os.open(keys_file, os.O_RDONLY)
    flags = loosen(descriptor)
    os.close(descriptor)
    assert isinstance(answer, Cleaned), answer
    assert answer.taken_out == (HARM + b"\n",)
    assert answer.problems == ()
    assert keys_file.read_bytes() == b"my key\nother key\n"
    status = keys_file.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 1234, 2345)
    assert os.getxattr(keys_file, "user.note") == b"kept"
    assert flags & IMMUTABLE
    assert os.listdir(keys_file.parent) == ["authorized_keys"]
    assert [item.kind for item in quarantine.items()] == [Kind.COPIED]
    assert [outcome.what for outcome in quarantine.outcomes()] == [What.COPIED]
    quarantine.restore(answer.item.id, to=os.fsencode(keys_file) + b".before")
    assert HARM in (keys_file.parent / "authorized_keys.before").read_bytes()


def test_what_is_not_clean_afterwards_is_not_cleaned(quarantine, keys_file):
    before = keys_file.read_bytes()
    answer = cleaned(quarantine, keys_file, is_clean=lambda _: False)
    assert isinstance(answer, Uncleanable)
    assert keys_file.read_bytes() == before
    assert quarantine.items() == []


def test_a_file_with_other_names_is_not_cleaned(quarantine, keys_file):
    os.link(keys_file, keys_file.parent / "other")
    assert isinstance(cleaned(quarantine, keys_file), Uncleanable)


@pytest.mark.parametrize("replaces", [True, False])
def test_a_file_that_is_changed_or_replaced_meanwhile_stays(quarantine, keys_file, replaces):
    def meddle(_content):
        if replaces:
            (keys_file.parent / "new").write_bytes(b"mine\n")
            (keys_file.parent / "new").rename(keys_file)
        else:
            with keys_file.open("ab") as file:
                file.write(b"one more\n")
        return True

    answer = cleaned(quarantine, keys_file, is_clean=meddle)
    assert isinstance(answer, CleanFailed), answer
    expected = b"mine\n" if replaces else b"my key\n" + HARM + b"\nother key\none more\n"
    assert keys_file.read_bytes() == expected
    assert os.listdir(keys_file.parent) == ["authorized_keys"]
    assert quarantine.items() == []
    assert quarantine.outcomes() == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_is_asked_whether_it_still_reads_the_script():
    checker = repair_module._checker(b"/root/.bashrc")
    assert checker[0].endswith("bash")
    assert repair_module._is_well_formed(checker, b"if x; then\n y\nfi\n")
    assert not repair_module._is_well_formed(checker, b"if x; then\nfi\n")
    assert (
        repair_module._broken(b"/root/.bashrc", b"if x; then\n y\nfi\n", b"if x; then\nfi\n") == "bash would not read it any more"
    )
    assert repair_module._broken(b"/root/.bashrc", b"if x; then\nfi\n", b"if x; then\n") == ""


@pytest.mark.skipif(shutil.which("visudo") is None, reason="visudo is not installed")
def test_visudo_is_asked_whether_it_still_reads_the_rules():
    good, bad = b"root ALL=(ALL) ALL\n", b"root ALL=(\n"
    assert repair_module._broken(b"/etc/sudoers", good, good) == ""
    assert repair_module._broken(b"/etc/sudoers", good, bad) == "visudo would not read it any more"


def test_an_injected_range_is_taken_out_of_a_web_page(quarantine, tmp_path):
    page = tmp_path / "index.html"
    page.write_bytes(b"<p>hello</p>/*x*/evil/*y*/<p>bye</p>")
    assert isinstance(cleaned(quarantine, page, RANGE), Cleaned)
    assert page.read_bytes() == b"<p>hello</p><p>bye</p>"


def test_the_name_always_leads_to_a_file_while_it_is_cleaned(quarantine, keys_file):
    watcher = subprocess.Popen(
        [sys.executable, "-c", "import sys\nprint('ready', flush=True)\nwhile True:\n open(sys.argv[1]).close()", keys_file],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        watcher.stdout.readline()
        ends = time.monotonic() + 1
        while time.monotonic() < ends:
            assert isinstance(cleaned(quarantine, keys_file), Cleaned)
            with keys_file.open("ab") as file:
                file.write(HARM + b"\n")
        assert watcher.poll() is None, watcher.stderr.read()
    finally:
        watcher.kill()
        watcher.communicate()
