"""Which file systems the gate guards as they come and go, and what it only watches; in mount namespaces of the tests' own."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from keibi.agent.gate.judging import EXEC, OFF, OPEN, PREVENT, SOFTWARE, WATCH, WRITTEN, GateState
from keibi.agent.gate.private import PrivateGate
from keibi.agent.gate.self_test import layers_are_told
from keibi.agent.judge_server import JudgeServer
from tests.system.gate_judges import BAD, SETTLED_SECONDS, ContentJudge, content_of, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.timeout(60),
]


@pytest.fixture
def judge(judges) -> Iterator[ContentJudge]:
    with ContentJudge(judges) as judge:
        yield judge


@pytest.fixture
def gate(judge, judges, place) -> Iterator[PrivateGate]:
    with PrivateGate(place, judges, settled_seconds=SETTLED_SECONDS) as gate:
        yield gate


def kinds(gate: PrivateGate) -> dict[str, str]:
    return {mount[0]: mount[2] for mount in gate.refresh()["mounts"]}


def is_refused(gate: PrivateGate, path: str) -> bool:
    return gate.run(["cat", path]).returncode != 0


def in_namespace(gate: PrivateGate, script: str) -> "subprocess.CompletedProcess[bytes]":
    return gate.run(["sh", "-euc", script])


def test_a_mount_that_appears_is_guarded_and_one_that_goes_is_forgotten(gate, place):
    assert in_namespace(gate, "mkdir new && mount -t tmpfs none new && printf 'this is bad' >new/x").returncode == 0
    new = os.path.join(place, "new")
    wait_until(lambda: kinds(gate).get(new) == "permission", 5, "the new mount is marked")
    assert is_refused(gate, f"{new}/x")

    assert in_namespace(gate, "umount new").returncode == 0
    wait_until(lambda: new not in kinds(gate), 5, "forgotten")
    assert in_namespace(gate, "mount -t tmpfs none new && printf 'this is bad' >new/x").returncode == 0
    wait_until(lambda: kinds(gate).get(new) == "permission", 5, "marked again")
    assert is_refused(gate, f"{new}/x")


def test_a_disk_image_with_ext4_is_guarded_also_through_a_bind_mount(gate, place):
    made = in_namespace(
        gate,
        "truncate -s 16M image && mkfs.ext4 -q -F image && mkdir disk bound && mount -o loop image disk && "
        "printf 'this is bad' >disk/x && printf fine >disk/y && mount --bind disk bound",
    )
    if made.returncode != 0:
        pytest.skip(f"no loop device or mkfs here: {made.stderr.decode()}")
    wait_until(lambda: kinds(gate).get(f"{place}/disk") == "permission", 5, "marked")
    try:
        assert is_refused(gate, f"{place}/disk/x")
        assert is_refused(gate, f"{place}/bound/x")
        assert not is_refused(gate, f"{place}/bound/y")
    finally:
        # The gate's marks keep no mount busy; its look at a changed mount table does so for a moment.
        for point in ("bound", "disk"):
            wait_until(lambda point=point: in_namespace(gate, f"umount {point}").returncode == 0, 5, f"{point} is unmounted")


def test_a_hard_link_and_an_overlay_show_the_same_files_and_are_guarded(gate, place):
    made = in_namespace(
        gate,
        "mkdir lower upper work merged && printf 'this is bad' >lower/x && ln lower/x linked && "
        "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged",
    )
    assert is_refused(gate, f"{place}/linked")
    if made.returncode != 0:
        pytest.skip(f"no overlay here: {made.stderr.decode()}")
    merged = f"{place}/merged"
    if not layers_are_told():
        wait_until(lambda: kinds(gate).get(merged) == "permission", 5, "marked")
    assert is_refused(gate, f"{merged}/x")
    in_namespace(gate, "printf 'this is good' >upper/good")
    for _ in range(3):
        # Once the overlay is known: the gate must not wait for what it opens itself.
        wait_until(lambda: merged not in kinds(gate) or kinds(gate)[merged] == "permission", 5, "known")
        assert not is_refused(gate, f"{merged}/good")
    assert [one for one in gate.happenings if one["what"] == "closed"] == []


def test_a_mount_in_another_mount_namespace_is_guarded(gate, place):
    """As a container's: the gate's own table does not show it."""
    container = subprocess.Popen(
        [
            *("nsenter", f"--mount=/proc/{gate.pid}/ns/mnt", f"--wdns={place}", "--"),
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", "mkdir inside; mount -t tmpfs none inside; echo ready; read go; cat inside/x; echo $?"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert container.stdout is not None
        assert container.stdout.readline() == b"ready\n"
        with open(f"/proc/{container.pid}/root{place}/inside/x", "wb") as file:
            file.write(BAD)
        wait_until(lambda: kinds(gate).get(f"{place}/inside") == "permission", 5, "marked")
        out, _ = container.communicate(b"\n", timeout=10)
        assert out == b"1\n"
    finally:
        container.kill()
        container.communicate()


def test_as_many_mounts_with_names_as_long_as_a_container_likes_break_nothing(gate, place):
    script = (
        "deep=$(printf 'x%.0s' $(seq 200)); d=.; for i in 1 2 3 4 5; do d=$d/$deep; done; mkdir -p $d; "
        "for i in $(seq 70); do mkdir $d/$i; mount -t tmpfs -o size=4k none $d/$i; done; mkdir last; mount -t tmpfs none last; "
        "for i in $(seq 70); do mkdir last/$deep$i; mount --bind last last/$deep$i; done; printf 'this is bad' >last/x"
    )
    assert in_namespace(gate, script).returncode == 0
    gate.wait_for(lambda state: dict(state["metrics"])["mounts_count"] == 72, 10, "all are known")
    wait_until(lambda: is_refused(gate, f"{place}/last/x"), 10, "the last one is guarded")
    assert not gate.happenings


def test_places_restrict_and_kernel_file_systems_are_never_marked(gate, judge, place):
    in_namespace(gate, "mkdir a b p && mount -t tmpfs none a && mount -t tmpfs none b && mount -t proc proc p")
    wait_until(lambda: kinds(gate).get(f"{place}/b") == "permission", 5, "marked")
    assert f"{place}/p" not in kinds(gate)

    judge.wish(places=(f"{place}/a",))
    wait_until(lambda: kinds(gate).get(f"{place}/b") == "none", 5, "no longer marked")
    assert kinds(gate)[f"{place}/a"] == "permission"
    in_namespace(gate, "printf 'this is bad' >a/x; printf 'this is bad' >b/x")
    assert is_refused(gate, f"{place}/a/x")
    assert not is_refused(gate, f"{place}/b/x")


def test_judges_that_watch_hold_nothing_and_are_told_of_programs_and_writes(judges, place):
    with (
        ContentJudge(judges, mode=WATCH, events=(EXEC, WRITTEN)) as judge,
        PrivateGate(place, judges, is_proof=False) as gate,
    ):
        assert kinds(gate) == {place: "notification"}
        judge.hold()
        done = in_namespace(gate, "printf '#!/bin/sh\\necho this is bad\\n' >x; chmod +x x; ./x")
        assert done.stdout == b"this is bad\n"
        judge.release()
        path = os.path.join(place, "x")
        wait_until(lambda: judge.count(path, WRITTEN) >= 1 and judge.count(path, EXEC) >= 1, 5, "told of both")
        question = next(asked.question for asked in judge.asked if asked.question.event == EXEC)
        assert (question.id, question.is_held, question.is_proof) == (0, False, False)
        assert not gate.state["is_enforcing"]


def test_watching_openings_tells_of_each_unchanged_program_once(judges, place):
    with (
        ContentJudge(judges, mode=WATCH, events=(OPEN,), files=SOFTWARE, suffixes=(".py",)) as judge,
        PrivateGate(place, judges, is_proof=False) as gate,
    ):
        script = gate.write("x.py", b"print()")
        data = gate.write("x.txt", b"text")
        wait_until(lambda: os.stat(gate.outside(script)).st_ctime < time.time() - 2.05, 5, "settled")
        gate.enter(lambda: [content_of(name) for name in (script, data) * 20] and None)
        wait_until(lambda: judge.count(script) == 1, 5, "told")
        with open(gate.outside(script), "ab") as file:
            file.write(b"#")
        gate.enter(lambda: content_of(script))
        wait_until(lambda: judge.count(script) == 2, 5, "told again after a change")
        assert judge.count(data) == 0


def test_nothing_is_marked_while_judges_are_off_or_absent(judges, place):
    with ContentJudge(judges, mode=OFF) as judge, PrivateGate(place, judges, is_proof=False) as gate:
        assert kinds(gate) == {place: "none"}
        judge.wish(mode=PREVENT, events=(OPEN,))
        wait_until(lambda: kinds(gate) == {place: "permission"}, 5, "marked")
        assert is_refused(gate, gate.write("bad.txt", BAD))
        judge.wish(mode=OFF)
        wait_until(lambda: kinds(gate) == {place: "none"}, 5, "no mark is left")
        assert not is_refused(gate, gate.write("bad.txt", BAD))
        assert not gate.state["is_enforcing"]


def test_a_full_queue_is_counted_and_told(judges, place):
    """While nobody is held, a decider that stands still is only noticed later; the kernel's queue is bounded."""
    with open("/proc/sys/fs/fanotify/max_queued_events", encoding="ascii") as file:
        most = int(file.read())
    with (
        ContentJudge(judges, mode=WATCH, events=(WRITTEN,)) as judge,
        PrivateGate(place, judges, is_proof=False, options="size=64m,nr_inodes=200k") as gate,
    ):
        os.kill(gate.decider_pid, signal.SIGSTOP)
        try:
            gate.enter(lambda: write_many(place, most + 1000), timeout_seconds=60)
        finally:
            os.kill(gate.decider_pid, signal.SIGCONT)
        wait_until(lambda: judge.told_count("overflow") >= 1, 10, "told")
        gate.wait_for(lambda state: dict(state["metrics"])["overflows_count"] == 1, 5, "counted")
        assert {"what": "overflowed"} in gate.happenings


def write_many(place: str, count: int) -> None:
    for number in range(count):
        os.close(os.open(f"{place}/{number}", os.O_WRONLY | os.O_CREAT))


def test_what_a_judge_is_only_told_waits_in_the_kernel_while_it_is_behind(judges, place):
    with (
        ContentJudge(judges, mode=WATCH, events=(WRITTEN,)) as judge,
        PrivateGate(place, judges, is_proof=False, options="size=64m,nr_inodes=200k") as gate,
    ):
        judge.hold()
        gate.enter(lambda: write_many(place, 4000))
        judge.release()
        wait_until(lambda: len({asked.question.path for asked in judge.asked}) == 4000, 20, "all are told")
        assert dict(gate.refresh()["metrics"])["dropped_count"] == 0
        assert judge.told_count("overflow") == 0


def test_what_no_descriptor_was_left_for_is_told_as_missed(judges, place):
    with (
        ContentJudge(judges, mode=WATCH, events=(WRITTEN,)) as judge,
        PrivateGate(place, judges, is_proof=False) as gate,
    ):
        limits = resource.prlimit(gate.decider_pid, resource.RLIMIT_NOFILE)
        resource.prlimit(gate.decider_pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            gate.enter(lambda: write_many(place, 5))
            wait_until(lambda: judge.told_count("overflow") > 0, 5, "told")
        finally:
            resource.prlimit(gate.decider_pid, resource.RLIMIT_NOFILE, limits)
        gate.enter(lambda: write_many(place, 6))
        wait_until(lambda: judge.count(f"{place}/5") == 1, 5, "asked again")


def test_a_judge_that_had_no_descriptor_left_takes_the_gate_when_it_has(judges):
    told: list[GateState] = []
    server = JudgeServer(judges, "m", on_question=lambda asked: asked.close(), on_told=lambda told: None, on_state=told.extend)
    server.start()
    first, gate = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with first, gate, contextlib.closing(server):
        first.settimeout(5)
        first.connect(f"{judges}/m.sock")
        assert b'"type":"own"' in first.recv(65536)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            gate.connect(f"{judges}/m.sock")
            gate.settimeout(0.3)
            with pytest.raises(TimeoutError):
                gate.recv(65536)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        gate.settimeout(5)
        assert b'"type":"own"' in gate.recv(65536)


def test_a_judge_hears_when_it_has_heard_of_everything_and_not_before(judges, place):
    with (
        ContentJudge(judges, mode=WATCH, events=(WRITTEN,)) as judge,
        PrivateGate(place, judges, is_proof=False, options="size=64m,nr_inodes=200k") as gate,
    ):
        gate.enter(lambda: write_many(place, 1))
        wait_until(lambda: judge.count(f"{place}/0", WRITTEN) == 1, 5, "asked")
        wait_until(lambda: any(at > judge.asked[0].question.at for _, at in judge.caught_up), 5, "told")
        os.kill(gate.decider_pid, signal.SIGSTOP)
        gate.enter(lambda: write_many(place, 2000))
        written_at = time.time()
        judge.hold()
        os.kill(gate.decider_pid, signal.SIGCONT)
        wait_until(lambda: len(judge.asked) > 1, 5, "asked")
        judge.release()
        wait_until(lambda: judge.caught_up[-1][1] > written_at, 10, "told again")
        assert len({asked.question.path for asked in judge.asked}) == 2000
        assert {gate for gate, _ in judge.caught_up} == {1}


def test_a_judge_that_is_behind_by_more_than_the_kernel_keeps_hears_that_it_missed_some(judges, place):
    with open("/proc/sys/fs/fanotify/max_queued_events") as file:
        most = int(file.read())
    if most > 20_000:
        pytest.skip(f"the kernel's queue holds {most} events here, too many to fill in a test")
    with (
        ContentJudge(judges, mode=WATCH, events=(WRITTEN,)) as judge,
        PrivateGate(place, judges, is_proof=False, options="size=200m,nr_inodes=200k") as gate,
    ):
        judge.hold()
        gate.enter(lambda: write_many(place, most + 4000))
        judge.release()
        wait_until(lambda: judge.told_count("overflow") > 0, 40, "told")
        # And no descriptor stays behind.
        wait_until(lambda: len(os.listdir(f"/proc/{gate.decider_pid}/fd")) < 40, 20, "descriptors are closed")
