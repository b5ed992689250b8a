"""Which package a file belongs to, and whose key its repository is signed with."""

import base64
import hashlib
import os
import pathlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.modules.application_control.packages import Packages
from keibi.agent.modules.application_control.repositories import read_origins, signer_of

FINGERPRINT = bytes(range(20))


def clear_signed(text: str, *, is_new_format: bool = True) -> bytes:
    """Return what a clear-signed Release file looks like, with a signature packet that names FINGERPRINT."""
    hashed = bytes([22, 33, 4]) + FINGERPRINT
    body = (
        bytes([4, 1, 1, 8]) + struct.pack(">H", len(hashed)) + hashed + struct.pack(">H", 10) + bytes([9, 16]) + FINGERPRINT[-8:]
    )
    body += b"\0\0"
    header = bytes([0xC2, len(body)]) if is_new_format else bytes([0x88, len(body)])
    armour = base64.encodebytes(header + body).decode()
    return (
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{text}"
        f"-----BEGIN PGP SIGNATURE-----\n\n{armour}=abcd\n-----END PGP SIGNATURE-----\n"
    ).encode()


@pytest.fixture
def system(tmp_path: pathlib.Path) -> pathlib.Path:
    info, lists = tmp_path / "dpkg/info", tmp_path / "lists"
    info.mkdir(parents=True)
    lists.mkdir()
    program = tmp_path / "program"
    program.write_bytes(b"content")
    digest = hashlib.md5(b"content", usedforsecurity=False).hexdigest()
    (info / "tool.md5sums").write_text(f"{digest}  bin/tool\n{digest}  usr/share/tool.txt\n")
    (tmp_path / "dpkg/status").write_text("Package: tool\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.2-3\n\n")
    (lists / "repository.example_dists_x_InRelease").write_bytes(clear_signed("Origin: Example\nSuite: x\n"))
    (lists / "repository.example_dists_x_main_binary-amd64_Packages").write_text(
        "Package: tool\nVersion: 1.2-3\n\nPackage: other\nVersion: 1\n"
    )
    return tmp_path


def test_a_file_is_known_by_its_package_under_both_names_of_a_merged_usr(system):
    packages = Packages(str(system / "packages.db"), dpkg=str(system / "dpkg"), apt_lists=str(system / "lists"))
    assert packages.refresh()
    assert not packages.refresh()
    descriptor = os.open(system / "program", os.O_RDONLY)
    try:
        for path in (b"/bin/tool", b"/usr/bin/tool"):
            found = packages.verified(path, "", descriptor, 7)
            assert found is not None
            assert (found.name, found.version, found.origin, found.signer) == (
                "tool",
                "1.2-3",
                "Example",
                FINGERPRINT.hex().upper(),
            )
        assert packages.verified(b"/bin/other", "", descriptor, 7) is None
        (system / "program").write_bytes(b"changed")
        assert packages.verified(b"/bin/tool", "", descriptor, 7) is None
    finally:
        os.close(descriptor)
        packages.close()


def test_what_is_removed_or_upgraded_is_known_no_more(system):
    packages = Packages(str(system / "packages.db"), dpkg=str(system / "dpkg"), apt_lists=str(system / "lists"))
    packages.refresh()
    (system / "dpkg/info/new.md5sums").write_text("0" * 32 + "  opt/new\n")
    (system / "dpkg/info/tool.md5sums").unlink()
    assert packages.refresh()
    assert packages.of(b"/bin/tool") == []
    assert packages.of(b"/opt/new")[0].package.name == "new"
    packages.close()


def test_where_there_is_no_package_database_nothing_is_known(tmp_path):
    packages = Packages(str(tmp_path / "packages.db"), dpkg=str(tmp_path / "none"), apt_lists=str(tmp_path / "none"))
    assert not packages.refresh()
    assert packages.of(b"/bin/tool") == []
    packages.close()


@pytest.mark.parametrize("is_new_format", [True, False])
def test_a_signatures_key_is_read(is_new_format):
    assert signer_of(clear_signed("Origin: x\n", is_new_format=is_new_format)) == FINGERPRINT.hex().upper()


@pytest.mark.parametrize("text", [b"", b"Origin: x\n", b"-----BEGIN PGP SIGNATURE-----\n\n!!!\n-----END PGP SIGNATURE-----"])
def test_what_is_not_signed_has_no_key(text):
    assert signer_of(text) == ""


@given(st.binary(max_size=200))
def test_no_signature_breaks_it(packet):
    armour = base64.b64encode(packet)
    signer_of(b"-----BEGIN PGP SIGNATURE-----\n\n" + armour + b"\n-----END PGP SIGNATURE-----\n")


def test_a_package_of_no_list_has_no_origin(system):
    assert read_origins(str(system / "lists"), {("tool", "9")}) == {}
    assert read_origins(str(system / "none"), {("tool", "9")}) == {}
