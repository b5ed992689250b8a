"""What counts as software, what an interpreter is told, and what the floor holds."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.protection.application_control.command_lines import Source, Told, read_command_line
from keibi.protection.application_control.events import FileKind
from keibi.protection.application_control.file_kinds import final_path, kind_of
from keibi.protection.application_control.floor import Floor
from keibi.protection.application_control.settings import SCRIPT_SUFFIXES


def elf(type_: int, order: str = "<") -> bytes:
    return (
        b"\x7fELF\x02" + (b"\x01" if order == "<" else b"\x02") + b"\x01" + bytes(9) + struct.pack(order + "H", type_) + bytes(46)
    )


@pytest.mark.parametrize(
    ("path", "mode", "head", "kind"),
    [
        (b"/bin/x", 0o100755, elf(2), FileKind.PROGRAM),
        (b"/bin/x", 0o100755, elf(3), FileKind.PROGRAM),
        (b"/bin/x", 0o100644, elf(3), FileKind.PROGRAM),
        (b"/lib/libx.so", 0o100644, elf(3), FileKind.LIBRARY),
        (b"/lib/libx.so.6.1", 0o100755, elf(3, ">"), FileKind.LIBRARY),
        (b"/x.o", 0o100644, elf(1), None),
        (b"/lib/modules/x.ko", 0o100644, elf(1), FileKind.LIBRARY),
        (b"/core", 0o100600, elf(4), None),
        (b"/x", 0o100755, b"\x7fELF", FileKind.PROGRAM),
        (b"/x", 0o100644, b"\x7fELF", None),
        (b"/x", 0o100644, b"#!/bin/sh", FileKind.SCRIPT),
        (b"/x", 0o100755, b"echo", FileKind.SCRIPT),
        (b"/x", 0o100755, b"", None),
        (b"/x.py", 0o100644, b"import os", FileKind.SCRIPT),
        (b"/.py", 0o100644, b"import os", None),
        (b"/x.txt", 0o100644, b"import os", None),
        (b"/x.txt", 0o100644, b"", None),
    ],
)
def test_software_is_told_by_first_bytes_execute_bits_and_name(path, mode, head, kind):
    assert kind_of(path, mode, head, SCRIPT_SUFFIXES) is kind


@given(st.binary(max_size=64), st.integers(0, 0o177777))
def test_no_bytes_break_it(head, mode):
    kind_of(b"/x", mode, head, SCRIPT_SUFFIXES)


@pytest.mark.parametrize(
    ("written", "final"),
    [
        (b"/usr/bin/x.dpkg-new", b"/usr/bin/x"),
        (b"/usr/bin/x;5f0c1a2b", b"/usr/bin/x"),
        (b"/usr/bin/x;y", b"/usr/bin/x;y"),
        (b"/usr/bin/x", b"/usr/bin/x"),
    ],
)
def test_what_a_package_manager_writes_is_known_by_its_final_name(written, final):
    assert final_path(written) == final


PYTHON, SH, PERL = b"/usr/bin/python3.11", b"/usr/bin/dash", b"/usr/bin/perl"


@pytest.mark.parametrize(
    ("program", "line", "told"),
    [
        (PYTHON, b"python3", Told(Source.STDIN)),
        (PYTHON, b"python3 -", Told(Source.STDIN)),
        (PYTHON, b"python3 -c code", Told(Source.COMMAND)),
        (PYTHON, b"python3 -Ic code", Told(Source.COMMAND)),
        (PYTHON, b"python3 -m pip install", Told(Source.LIBRARY)),
        (PYTHON, b"python3 -W ignore -u a.py -c", Told(Source.SCRIPT, b"a.py")),
        (PYTHON, b"python3 -Wignore a.py", Told(Source.SCRIPT, b"a.py")),
        (PYTHON, b"python3 -- -c", Told(Source.SCRIPT, b"-c")),
        (PYTHON, b"python3 --version", Told(Source.NOTHING)),
        (PYTHON, b"python3 -V", Told(Source.NOTHING)),
        (SH, b"sh -c code", Told(Source.COMMAND)),
        (SH, b"sh -ec code", Told(Source.COMMAND)),
        (SH, b"sh -o errexit x.sh", Told(Source.SCRIPT, b"x.sh")),
        (SH, b"sh -s argument", Told(Source.STDIN)),
        (SH, b"sh +x x.sh", Told(Source.SCRIPT, b"x.sh")),
        (PERL, b"perl -pi -e s/a/b/ file", Told(Source.COMMAND)),
        (PERL, b"perl -I lib -w x.pl", Told(Source.SCRIPT, b"x.pl")),
        (b"/usr/bin/php8.2", b"php -r code", Told(Source.COMMAND)),
        (b"/usr/bin/php8.2", b"php -f x.txt", Told(Source.SCRIPT, b"x.txt")),
        (b"/usr/bin/node", b"node --eval=code", Told(Source.COMMAND)),
        (b"/usr/bin/node", b"node --require x app", Told(Source.SCRIPT, b"app")),
        (b"/usr/bin/ruby3.1", b"ruby -rjson -e code", Told(Source.COMMAND)),
        (b"/usr/lib/jvm/x/bin/java", b"java -jar a.jar", Told(Source.SCRIPT, b"a.jar")),
        (b"/usr/lib/jvm/x/bin/java", b"java -cp x Main", Told(Source.LIBRARY)),
        (b"/usr/bin/busybox", b"busybox sh -c code", Told(Source.COMMAND)),
        (b"/usr/bin/busybox", b"sh -c code", Told(Source.COMMAND)),
        (b"/usr/bin/busybox", b"busybox ls", Told(Source.NOTHING)),
        (b"/opt/own/interpreter", b"interpreter -x file", Told(Source.SCRIPT, b"file")),
    ],
)
def test_an_interpreter_is_told_what_to_run(program, line, told):
    assert read_command_line(line.split(b" "), program) == told


@given(st.lists(st.binary(max_size=8), max_size=8), st.sampled_from([PYTHON, SH, PERL, b"/usr/bin/busybox", b"/usr/bin/node"]))
def test_every_command_line_has_an_answer(arguments, program):
    assert read_command_line([b"x", *arguments], program).source in Source


FLOOR = Floor(agent_directories=[b"/opt/keibi"], needed=[b"/usr/lib/libc.so.6"], contents_at_start=["a" * 64])


@pytest.mark.parametrize(
    ("path", "content", "is_packaged", "is_roots", "holds"),
    [
        (b"/usr/sbin/sshd", "b" * 64, True, True, True),
        (b"/usr/sbin/sshd", "a" * 64, False, False, True),
        (b"/usr/sbin/sshd", "b" * 64, False, True, False),
        (b"/usr/lib/libc.so.6", "b" * 64, True, True, True),
        (b"/usr/lib/other.so", "a" * 64, True, True, False),
        (b"/tmp/sshd", "a" * 64, True, True, False),
        (b"/opt/keibi/x.py", "b" * 64, False, True, True),
        (b"/opt/keibi/x.py", "b" * 64, False, False, False),
        (b"/opt/keibi2/x.py", "b" * 64, False, True, False),
        (b"/usr/lib/x86_64-linux-gnu/security/pam_unix.so", "b" * 64, True, True, True),
    ],
)
def test_the_floor_holds_by_place_and_content(path, content, is_packaged, is_roots, holds):
    reason = FLOOR.reason(path, content, is_packaged=is_packaged, is_root_writable_only=is_roots)
    assert bool(reason) is holds
