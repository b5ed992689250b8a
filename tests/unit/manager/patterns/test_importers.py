"""Reading what other people wrote: good parts are taken, bad ones named, and no bytes do harm."""

import base64
import contextlib
import gzip
import io
import json
import pathlib
import random
import socket
import subprocess
import tarfile
import time
import zipfile

import pytest
import yara_x
from hypothesis import given, settings
from hypothesis import strategies as st

from keibi.errors import InputError, KeibiError, RefusedError
from keibi.manager.patterns.importers import cvd, importing, reading
from keibi.manager.patterns.importers.importing import import_from, run_import
from keibi.manager.patterns.importers.model import ContentKind, ImportKind
from keibi.manager.patterns.importers.yara_text import cut
from keibi.protection.anti_malware.hash_list import HashList
from keibi.protection.anti_malware.yara_rules import YaraSource, compile_all

CORPUS = pathlib.Path(__file__).resolve().parents[5] / "shared" / "corpus" / "f-malware"
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="the shared corpus is not beside the repository")
HASH = "275a021bbfb6489e54d471899f7db9d1663fc695ec2fe2a2c4538aabf651fd0f"
MD5 = "44d88612fea8a8f36de82e1278abb02f"


def take(data: bytes, name: str, kind: ImportKind = ImportKind.AUTO):
    return import_from(io.BytesIO(data), name, kind, "set")


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def only(imported, kind: ContentKind) -> bytes:
    return next(content.data for content in imported.contents if content.kind is kind)


# YARA


def test_good_rules_are_kept_and_bad_ones_named_with_file_and_reason():
    source = b"""
    // Licence: ours
    import "pe"
    rule good : tag { meta: license = "MIT" strings: $a = "} rule no {" $b = /a{2}\\/}/ $c = { 4D 5A ?? } condition: any of them }
    rule unknown_pattern { condition: $nowhere }
    private rule helper { condition: filesize < 10 }
    rule uses_helper { condition: helper and pe.is_pe }
    rule needs_the_bad_one { condition: unknown_pattern }
    global rule everything { condition: filesize < 1 }
    rule good { condition: true }
    include "/etc/passwd"
    rule half { strings: $a = "x"
    """
    imported = take(tarred({"a/set.yar": source, "LICENSE": b"Detection Rule License"}), "set.tar.gz")
    report = imported.report
    assert report.accepted == {"rules": 3}
    refused = {one.what: (one.where, one.code) for one in report.refused}
    assert refused["unknown_pattern"] == ("a/set.yar:5", "yara_invalid")
    assert refused["needs_the_bad_one"][1] == "yara_invalid"
    assert refused["everything"][1] == "yara_global"
    assert refused["good"] == ("a/set.yar:10", "yara_duplicate")
    assert refused["include /etc/passwd"][1] == "yara_include"
    assert any(code == "yara_unfinished" for _, code in refused.values())
    assert report.refused_count == 6
    assert {(one.name, one.count) for one in report.licences} == {("MIT", 1), ("", 2)}
    assert "LICENSE: Detection Rule License" in report.notes
    text = only(imported, ContentKind.YARA_SOURCE).decode()
    assert "// Licence: ours" in text
    assert [rule.identifier for rule in yara_x.compile(text)] == ["good", "helper", "uses_helper"]


@needs_corpus
def test_public_rule_sets_come_in_whole_from_a_folder():
    files = {f"rules/{path.name}": path.read_bytes() for path in (CORPUS / "yara-rules").iterdir()}
    imported = take(zipped(files), "rules.zip")
    report = imported.report
    assert report.files_count == len(files)
    assert report.accepted["rules"] > 1400
    assert {one.code for one in report.refused} == {"yara_duplicate"}
    assert any("Detection Rule License 1.1" in one.name for one in report.licences)
    assert report.accepted["rules"] + report.refused_count > 1900
    compiled = compile_all([YaraSource("set", only(imported, ContentKind.YARA_SOURCE).decode())])
    assert compiled.left_out == ()
    scanner = yara_x.Scanner(compiled.rules)
    for line in (CORPUS / "yara-positives.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if not (CORPUS / sample["rule_file"]).is_file() or not (CORPUS / sample["file"]).is_file():
            continue  # a scanner that watches where the corpus lies takes away the rule that quotes EICAR
        found = {rule.identifier for rule in scanner.scan((CORPUS / sample["file"]).read_bytes()).matching_rules}
        assert sample["must_match_rule"] in found


def test_a_rule_of_an_earlier_file_serves_those_that_build_upon_its_name():
    first = b"private rule is_small { condition: filesize < 9 }\nrule a { condition: is_small }"
    second = b"private rule is_small { condition: filesize < 10 }\nrule b { condition: is_small }"
    imported = take(zipped({"1.yar": first, "2.yar": second}), "set.zip")
    assert imported.report.accepted == {"rules": 3}
    assert [one.code for one in imported.report.refused] == ["yara_duplicate"]


def test_stray_text_before_a_rule_is_named_and_the_rules_stay():
    imported = take(b'import "pe"\n\x01\x00\nrule a { condition: true }\nprivate rule b { condition: a }\nnonsense\n', "set.yar")
    assert imported.report.accepted == {"rules": 2}
    assert [(one.where, one.code) for one in imported.report.refused] == [
        ("set.yar:3", "yara_unfinished"),
        ("set.yar:5", "yara_unfinished"),
    ]


def test_a_rule_that_builds_upon_a_bad_one_goes_with_it():
    source = (
        b"rule bad { condition: $x } rule on_bad { condition: bad } rule on_that { condition: on_bad } rule good { condition: 1 }"
    )
    imported = take(source, "set.yar")
    assert imported.report.accepted == {"rules": 1}
    assert sorted(one.what for one in imported.report.refused) == ["bad", "on_bad", "on_that"]


def test_compiled_rules_are_told_apart_from_sources():
    compiled = yara_x.compile("rule a { condition: true }").serialize_into
    buffer = io.BytesIO()
    compiled(buffer)
    with pytest.raises(InputError) as caught:
        take(buffer.getvalue(), "set.yar")
    assert caught.value.code == "yara_compiled"
    assert "one version of one engine" in caught.value.message


@given(st.text(alphabet='rule{}"/\\*= \nax:$', max_size=80))
@settings(max_examples=300, deadline=None)
def test_cutting_never_loses_text_and_never_hangs(text):
    for unit in cut(text).units:
        assert unit.name in text
        assert unit.text.rpartition("\n")[2] in text


# Hashes


def test_hashes_are_taken_in_any_form_and_weak_ones_refused_with_a_reason():
    listed = f"""# feed
name,sha256,seen
evil.exe,{HASH.upper()},2026-01-01
{HASH}  evil copy
{"ab" * 32}
{MD5}
{"cd" * 20}
e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
no hash here
"""
    imported = take(listed.encode(), "feed.csv")
    assert imported.report.accepted == {"hashes": 2}
    assert [one.code for one in imported.report.refused] == ["hash_weak", "hash_weak", "hash_of_nothing", "hash_missing"]
    assert "MD5" in imported.report.refused[0].reason
    known = HashList(only(imported, ContentKind.SHA256_LIST))
    assert bytes.fromhex(HASH) in known
    assert b"\xab" * 32 in known
    assert bytes(32) not in known


def test_a_list_of_nothing_but_md5_is_refused_and_says_why():
    with pytest.raises(InputError) as caught:
        take(f"{MD5}\n".encode() * 3, "old.txt")
    assert caught.value.code == "import_empty"
    assert "MD5" in caught.value.message
    assert caught.value.where == "old.txt:1"


# ClamAV


def container(files: dict[str, bytes], **changes: object) -> bytes:
    data = cvd.write_container(files, 1, "main")
    fields = data[: cvd.HEADER_BYTES].decode().rstrip().split(":")
    for name, value in changes.items():
        fields[{"level": 4, "md5": 5}[name]] = str(value)
    return ":".join(fields).encode().ljust(cvd.HEADER_BYTES) + data[cvd.HEADER_BYTES :]


def test_sha256_goes_to_our_list_and_to_clamd_and_the_rest_to_clamd():
    database = {
        "main.hsb": f"{HASH}:68:Eicar\n{'ab' * 20}:5:Sha1:73\n{'cd' * 32}:9:Known.Good\n".encode(),
        "main.hdb": f"{MD5}:68:Eicar.Md5\nbroken line\n".encode(),
        "main.ndb": b"Text.Sig:0:*:6b656962692d636c616d6176\nNew.Sig:0:*:aa??bb{2-4}cc:999\n",
        "main.ldb": b"Logical.Sig;Engine:51-255,Target:0;(0&1);6b65696269;636c616d\n",
        "main.sfp": f"{'cd' * 32}:9:Good\n".encode(),
        "bytecode.cbc": b"ClamBCafhgehd...",
        "rules.yar": b"rule inside { condition: filesize == 3 }",
    }
    imported = take(container(database), "main.cvd")
    report = imported.report
    assert report.kind is ImportKind.CLAMAV
    assert report.accepted == {"hashes": 1, "rules": 1, "signatures": 5}
    assert {(one.where, one.code) for one in report.refused} == {
        ("main.cvd/main.hdb:2", "malformed"),
        ("main.cvd/bytecode.cbc", "bytecode_refused"),
    }
    assert any("known good" in note for note in report.notes)
    assert any("newer engine" in note for note in report.notes)
    assert {content.kind for content in imported.contents} == set(ContentKind)
    with tarfile.open(fileobj=io.BytesIO(only(imported, ContentKind.CLAMAV)[cvd.HEADER_BYTES :])) as kept:
        hashes = kept.extractfile("keibi.hsb").read().decode().splitlines()
    assert f"{HASH}:68:Eicar" in hashes  # of what clamd alone unpacks
    assert take(container(database), "main.cvd").contents == imported.contents  # equal databases, equal contents


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (container({"a.ndb": b"A:0:*:aa\n"}, level=999), "clamav_too_new", "functionality level 999"),
        (container({"a.ndb": b"A:0:*:aa\n"}, level="x"), "clamav_broken", "malformed"),
        (container({"a.ndb": b"A:0:*:aa\n"})[:300], "clamav_broken", "cut off"),
        (container({"a.ndb": b"A:0:*:aa\n"})[:-9], "clamav_altered", "another digest"),
        (container({"a.ndb": b"A:0:*:aa\n"}, md5="0" * 32), "clamav_altered", "another digest"),
    ],
)
def test_a_database_that_cannot_be_used_says_which_way(data, code, words):
    with pytest.raises(KeibiError) as caught:
        take(data, "daily.cvd")
    assert caught.value.code == code
    assert words in caught.value.message
    assert caught.value.where == "daily.cvd"


def test_a_plain_tar_after_the_header_is_read_too():
    body = tarred({"daily.hsb": f"{HASH}:68:Eicar\n".encode()}, "w")
    data = b"ClamAV-VDB:now:1:1:90:X:X:me:0".ljust(cvd.HEADER_BYTES) + body
    assert take(data, "daily.cld").report.accepted == {"hashes": 1}


@needs_corpus
def test_clamd_loads_what_was_imported_and_finds_with_it(tmp_path):
    database = zipped({path.name: path.read_bytes() for path in (CORPUS / "clamav-db").iterdir()})
    imported = take(database, "clamav-db.zip")
    assert imported.report.refused_count == 0
    directory = tmp_path / "db"
    directory.mkdir()
    (directory / "set.cud").write_bytes(only(imported, ContentKind.CLAMAV))
    (tmp_path / "eicar").write_bytes(base64.b64decode((CORPUS / "eicar.com.b64").read_bytes()))
    for path in (tmp_path, *tmp_path.parents[:3], directory):
        path.chmod(path.stat().st_mode | 0o055)
    (directory / "set.cud").chmod(0o644)
    (tmp_path / "eicar").chmod(0o644)
    address = str(tmp_path / "s")
    (tmp_path / "conf").write_text(
        f"LocalSocket {address}\nDatabaseDirectory {directory}\nForeground yes\nDisableCache yes\nUser root\n"
    )
    clamd = subprocess.Popen(["/usr/sbin/clamd", "-c", str(tmp_path / "conf")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 20
        while not pathlib.Path(address).exists():
            assert clamd.poll() is None, clamd.stdout.read(2000)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(address)
            asked.sendall(f"zSCAN {tmp_path / 'eicar'}\0".encode())
            assert b"FOUND" in asked.recv(1000)
    finally:
        clamd.terminate()
        clamd.wait(10)
        clamd.stdout.close()


# Hostile bytes


def test_bombs_cost_no_more_than_the_cap(monkeypatch):
    monkeypatch.setattr("keibi.manager.patterns.importers.reading.MAX_TOTAL_BYTES", 1024 * 1024)
    monkeypatch.setattr("keibi.manager.patterns.importers.reading.MAX_MEMBER_BYTES", 512 * 1024)
    zeros = bytes(3 * 1024 * 1024)
    for data, name in (
        (zipped({"a.yar": zeros}), "bomb.zip"),
        (zipped({f"{number}.yar": bytes(400 * 1024) for number in range(4)}), "bomb.zip"),
        (tarred({"a.yar": zeros}), "bomb.tar.gz"),
        (gzip.compress(zeros), "bomb.yar.gz"),
    ):
        with pytest.raises(RefusedError) as caught:
            take(data, name)
        assert caught.value.code == "upload_bomb"


@pytest.mark.parametrize(
    ("data", "name", "code"),
    [
        (b"", "empty.yar", "import_empty"),
        (b"hello", "readme", "import_empty"),
        (zipped({"a.yar": b"rule a { condition: true }"})[:-40], "cut.zip", "upload_broken"),
        (gzip.compress(b"rule a { condition: true }")[:-12], "cut.yar.gz", "upload_broken"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "set.7z", "upload_kind"),
        ("rule a { condition: true }".encode("utf-16"), "wide.yar", "import_empty"),
    ],
    ids=["nothing", "no rule", "cut zip", "cut gzip", "7z", "utf-16"],
)
def test_what_cannot_be_read_says_so(data, name, code):
    with pytest.raises(KeibiError) as caught:
        take(data, name)
    assert caught.value.code == code


def test_changed_bytes_give_an_answer_or_an_error_of_ours():
    chance = random.Random(7)
    seeds = [
        (container({"a.ndb": b"A:0:*:aa\n", "a.hsb": f"{HASH}:1:B\n".encode()}), "a.cvd"),
        (zipped({"a.yar": b"rule a { condition: true }"}), "a.zip"),
        (tarred({"a.hsb": f"{HASH}:1:B\n".encode()}), "a.tar.gz"),
        (tarred({"a.hsb": f"{HASH}:1:B\n".encode()}, "w"), "a.tar"),
    ]
    for _ in range(300):
        data, name = chance.choice(seeds)
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        with contextlib.suppress(KeibiError):
            take(bytes(changed), name)


def test_the_importing_process_reports_and_is_bounded(tmp_path, monkeypatch):
    upload = tmp_path / "upload"
    upload.write_bytes(b"rule a { condition: true }\nrule b { condition: $x }")
    outcome = run_import(str(upload), "set.yar", ImportKind.AUTO, "set", str(tmp_path))
    assert outcome.report is not None
    assert outcome.report.accepted == {"rules": 1}
    assert (tmp_path / outcome.files[0].file).read_bytes().count(b"rule") == 1
    upload.write_bytes(b"nothing")
    with pytest.raises(InputError, match="nothing in the upload"):
        run_import(str(upload), "set.yar", ImportKind.AUTO, "set", str(tmp_path))
    (tmp_path / importing.REPORT).unlink()
    monkeypatch.setattr(importing, "MAX_SECONDS", 0.01)
    with pytest.raises(RefusedError) as caught:
        run_import(str(upload), "set.yar", ImportKind.AUTO, "set", str(tmp_path))
    assert caught.value.code == "import_too_slow"


def test_a_sparse_member_counts_with_its_whole_size(monkeypatch):
    monkeypatch.setattr(reading, "MAX_TOTAL_BYTES", 3 * 1024 * 1024)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(4):
            entry = tarfile.TarInfo(f"sparse{number}.txt")
            entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1024 * 1024), "GNU.sparse.map": "0,512"}
            entry.size = 512
            archive.addfile(entry, io.BytesIO(b"a" * 512))
    packed.seek(0)
    with pytest.raises(RefusedError) as refused:
        list(reading.members(packed, "sparse.tar"))
    assert refused.value.code == "upload_bomb"


def test_comments_in_their_hundred_thousands_are_cut_in_no_time():
    began_at = time.monotonic()
    parts = cut("// note\n" * 200_000 + "rule after_comments { condition: true }")
    assert [unit.name for unit in parts.units] == ["after_comments"]
    assert time.monotonic() - began_at < 10
