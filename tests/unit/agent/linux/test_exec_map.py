"""The kernel's map of who runs: building, loading, and what the ring says."""

import os
import shutil
import socket
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.linux.bpf.build import build
from keibi.agent.linux.exec_map import ExecMap, PortHappening, ProcessHappening, parse_happening
from keibi.errors import InputError, TryLaterError

can_build = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("clang") is None or not os.path.exists("/sys/kernel/btf/vmlinux"),
    reason="needs root, clang and a kernel with type information",
)


def process(kind: int, components: bytes, length: int | None = None) -> bytes:
    return struct.pack("=IIIIIIQQ512s", kind, 7, 1, 0, 5, len(components) if length is None else length, 3, 4, components)


def port(kind: int, namespace: int, family: int, number: int, address: str) -> bytes:
    return struct.pack("=IIIHH16s", kind, 7, namespace, family, number, socket.inet_pton(family, address))


def test_a_path_is_put_together_from_inside_out():
    happening = parse_happening(process(1, b"true\0bin\0usr\0"), 9)
    assert isinstance(happening, ProcessHappening)
    assert happening.is_start
    assert (happening.process.path, happening.process.is_path_whole) == (b"/usr/bin/true", True)
    cut = parse_happening(process(2, b"true\0bin\0" + b"x" * 503, 900), 9)
    assert not cut.is_start
    assert not cut.process.is_path_whole
    assert cut.process.path.endswith(b"xxx/bin/true")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (port(3, 9, socket.AF_INET, 22, "0.0.0.0"), PortHappening(True, "tcp/0.0.0.0/22", 7)),
        (port(4, 9, socket.AF_INET6, 443, "::1"), PortHappening(False, "tcp/::1/443", 7)),
        (port(3, 8, socket.AF_INET, 22, "0.0.0.0"), None),
        (port(4, 9, socket.AF_INET, 0, "0.0.0.0"), None),
        (b"", None),
        (b"\x01\0\0\0", None),
        (struct.pack("=I", 99) + bytes(600), None),
    ],
)
def test_ports_of_this_network_namespace_are_told(data, expected):
    assert parse_happening(data, 9) == expected


@given(st.binary(max_size=700))
def test_arbitrary_records_are_harmless(data):
    parse_happening(data, 9)


@given(st.sampled_from([1, 2, 3, 4]), st.binary(min_size=556, max_size=600))
def test_arbitrary_records_of_known_kinds_are_harmless(kind, data):
    parse_happening(struct.pack("=I", kind) + data, 9)


@can_build
def test_what_is_built_here_knows_a_process_that_has_ended(tmp_path):
    processes = ExecMap(build(str(tmp_path / "sensor.bpf.o")))
    try:
        deep = tmp_path / "a directory" / ("d" * 200) / "警備"
        deep.mkdir(parents=True)
        program = deep / "program"
        shutil.copy("/usr/bin/true", program)
        ended = subprocess.Popen([program.name], executable=program)
        ended.wait()
        known = processes.find(ended.pid)
        assert (known.path, known.is_path_whole) == (os.fsencode(program.resolve()), True)
        assert (known.parent, known.uid) == (os.getpid(), 0)
        assert processes.find(2**22 + 1) is None
    finally:
        processes.close()


def test_an_object_that_is_none_is_refused(tmp_path):
    with pytest.raises(TryLaterError, match="not built"):
        ExecMap(str(tmp_path / "absent.o"))
    junk = tmp_path / "junk.o"
    junk.write_bytes(b"\x7fELF" + bytes(200))
    with pytest.raises(TryLaterError, match="cannot be read"):
        ExecMap(str(junk))


def test_without_clang_building_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-get install clang"):
        build(str(tmp_path / "sensor.bpf.o"))
