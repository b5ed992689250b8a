import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving up root needs root")


def run(body: str, *arguments: str) -> str:
    """Run `body` in a process of its own, since nothing that is given up can be taken back."""
    program = "import os, sys, socket\nfrom keibi.agent.linux import sandbox\n" + textwrap.dedent(body)
    outcome = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.strip()


def test_a_dropped_process_reads_what_its_capability_lets_it_and_owns_nothing_else(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    secret.chmod(0o600)
    tmp_path.chmod(0o700)
    said = run(
        """
        sandbox.drop_privileges("nobody", ["CAP_DAC_READ_SEARCH"])
        print(os.geteuid() != 0, open(sys.argv[1]).read())
        for attempt in (lambda: open(sys.argv[1], "w"), lambda: os.setuid(0), lambda: os.chown(sys.argv[1], 0, 0)):
            try:
                attempt()
                print("allowed")
            except PermissionError:
                print("refused")
        """,
        str(secret),
    )
    assert said.split() == ["True", "hidden", "refused", "refused", "refused"]
    assert secret.read_text() == "hidden"


def test_without_the_capability_nothing_foreign_is_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    secret.chmod(0o600)
    said = run(
        """
        sandbox.drop_privileges("nobody")
        try:
            open(sys.argv[1])
            print("allowed")
        except PermissionError:
            print("refused")
        """,
        str(secret),
    )
    assert said == "refused"


def test_files_are_written_only_where_it_is_allowed(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    said = run(
        """
        sandbox.restrict_files([sys.argv[1]])
        open(sys.argv[1] + "/a", "w").write("x")
        os.rename(sys.argv[1] + "/a", sys.argv[1] + "/b")
        try:
            open(sys.argv[2] + "/a", "w")
            print("allowed")
        except PermissionError:
            print("refused")
        print(len(open("/etc/passwd").read()) > 0)
        """,
        str(inside),
        str(outside),
    )
    assert said.split() == ["refused", "True"]
    assert (inside / "b").read_text() == "x"


def test_with_reading_restricted_too_no_file_can_be_opened():
    said = run(
        """
        sandbox.restrict_files(readable=())
        try:
            open("/etc/passwd")
            print("allowed")
        except PermissionError:
            print("refused")
        """
    )
    assert said == "refused"


def test_forbidden_system_calls_fail_and_others_work():
    said = run(
        """
        sandbox.forbid_system_calls((*sandbox.NEVER_NEEDED, "socket", "execve"))
        for attempt in (lambda: socket.socket(), lambda: os.execv("/bin/true", ["true"])):
            try:
                attempt()
                print("allowed")
            except PermissionError:
                print("refused")
        print(os.getpid() > 0)
        """
    )
    assert said.split() == ["refused", "refused", "True"]


def test_a_process_that_may_speak_no_tcp_can_neither_listen_nor_connect():
    program = (
        "import socket\n"
        "from keibi.agent.linux import sandbox\n"
        "with socket.create_server(('127.0.0.1', 0)) as listener:\n"
        "    sandbox.restrict_tcp()\n"
        "    connect = lambda: socket.create_connection(listener.getsockname())\n"
        "    for act in (connect, lambda: socket.create_server(('127.0.0.1', 0))):\n"
        "        try:\n"
        "            act()\n"
        "        except PermissionError:\n"
        "            print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    if "restrict_tcp" in done.stderr and "OSError" in done.stderr:
        pytest.skip("this kernel's Landlock knows no TCP")
    assert done.stdout == "refused\nrefused\n", done.stderr
