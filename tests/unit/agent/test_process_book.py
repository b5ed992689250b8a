"""Who did it, asked of real processes."""

import os
import subprocess
import sys
import threading
import time

from keibi.agent.linux.accounts import AccountNames
from keibi.agent.ports import Happening, Observation
from keibi.agent.process_book import MAX_CHAIN, ProcessBook
from keibi.contract.events import Actor

NEST = "import subprocess, sys; subprocess.run(['/bin/sh', '-c', 'echo $$; read line; :'])"


def started(pid: int, process: str, parent_pid: int = 0) -> Observation:
    """Return what the sensor tells of a program that started."""
    actor = Actor(process=process, pid=pid, user="root", uid=0, parent_pid=parent_pid, source="bpf")
    return Observation(Happening.PROCESS_STARTED, process.encode(), time.time(), actor=actor)


def free_pid() -> int:
    """Return the id of a process that has just ended and was reaped."""
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def test_a_running_process_is_named_with_its_user_and_command_line() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        try:
            book = ProcessBook(AccountNames())
            actor = book.actor(process.pid)
            assert actor.process == os.path.realpath("/bin/sleep")
            assert (actor.pid, actor.parent_pid, actor.uid) == (process.pid, os.getpid(), os.geteuid())
            assert actor.parent == os.path.realpath(sys.executable)
            deadline = time.monotonic() + 20
            # The kernel shows a new program a moment before its arguments.
            while book.chain(process.pid)[0]["command_line"] != "/bin/sleep 60":
                assert time.monotonic() < deadline
            assert book.executable(process.pid) == os.fsencode(os.path.realpath("/bin/sleep"))
        finally:
            process.kill()


def test_the_chain_leads_from_the_process_to_its_ancestors() -> None:
    with subprocess.Popen([sys.executable, "-c", NEST], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        shell = int(process.stdout.readline())
        book = ProcessBook(AccountNames())
        chain = book.chain(shell)
        assert [one["pid"] for one in chain[:3]] == [shell, process.pid, os.getpid()]
        assert chain[0]["process"] == os.path.realpath("/bin/sh")
        assert len(chain) <= MAX_CHAIN
        process.communicate(b"\n", timeout=20)
        assert [one["pid"] for one in book.chain(shell)[:3]] == [shell, process.pid, os.getpid()], "known after their end too"


def test_what_was_remembered_is_known_after_the_process_has_ended() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        book = ProcessBook(AccountNames())
        book.remember(process.pid)
        process.kill()
    assert book.actor(process.pid).process == os.path.realpath("/bin/sleep")
    assert book.chain(process.pid)[1]["pid"] == os.getpid()


def test_what_the_sensor_told_is_known_though_nobody_looked() -> None:
    book, pid = ProcessBook(AccountNames()), free_pid()
    assert book.actor(pid) == Actor(pid=pid, source="fanotify")
    book.observe([started(pid, "/tmp/e\\xff", os.getpid())])
    actor = book.actor(pid)
    assert (actor.process, actor.source, actor.parent) == ("/tmp/e\\xff", "bpf", os.path.realpath(sys.executable))
    assert [one["pid"] for one in book.chain(pid)[:2]] == [pid, os.getpid()]
    assert book.executable(pid) == b"/tmp/e\xff"


def test_an_actor_can_be_waited_for() -> None:
    book, pid = ProcessBook(AccountNames()), free_pid()
    found: list[Actor] = []
    waiting = threading.Thread(target=lambda: found.append(book.actor(pid, wait_seconds=20.0)))
    waiting.start()
    book.observe([started(pid, "/usr/bin/late")])
    waiting.join(20.0)
    assert found[0].process == "/usr/bin/late"


def test_another_process_under_the_same_number_is_not_taken_for_the_former() -> None:
    book = ProcessBook(AccountNames())
    with subprocess.Popen(["/bin/sh", "-c", "read line; exec sleep 60"], stdin=subprocess.PIPE) as process:
        book.observe([started(process.pid, "/usr/bin/former")])
        assert book.actor(process.pid).process == os.path.realpath("/bin/sh"), "/proc knows better than what was told"
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + 20
        while book.actor(process.pid).process != os.path.realpath("/bin/sleep"):
            assert time.monotonic() < deadline
        process.kill()


def test_the_book_holds_no_more_than_its_bound() -> None:
    book = ProcessBook(AccountNames(), max_known=10)
    pids = range(4_000_000, 4_000_100)  # above pid_max's largest default
    book.observe([started(pid, "/usr/bin/one") for pid in pids])
    assert len(book) == 10
    assert book.actor(pids[-1]).process == "/usr/bin/one"
    assert book.actor(pids[0]).process == ""


def test_numbers_that_are_no_process_have_an_empty_actor() -> None:
    book = ProcessBook(AccountNames())
    assert book.actor(0) == Actor()
    assert book.chain(0) == []
    assert book.chain(-1) == []
