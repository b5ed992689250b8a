"""The real sensor on real filesystems: what it tells of files, and who it says did it."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from keibi.agent.linux.bpf.build import OBJECT
from keibi.agent.ports import Happening
from tests.system.sensor_run import SensorRun

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fanotify marks on filesystems are root's")
needs_bpf = pytest.mark.skipif(
    not os.path.exists(OBJECT), reason="the kernel part is not built: python -m keibi.agent.linux.bpf.build"
)


def ext4(directory) -> tuple[str, ...]:
    image, point = directory / "image", directory / "watched"
    return (
        f"truncate -s 64M {image}",
        f"mkfs.ext4 -q -O ^has_journal {image}",
        f"mount -o loop {image} {point}",
        f"rmdir {point}/lost+found",
    )


@pytest.fixture(params=["tmpfs", "ext4"])
def sensor(request, tmp_path):
    with SensorRun(tmp_path, *(ext4(tmp_path) if request.param == "ext4" else ())) as run:
        run.watch()
        yield run


@pytest.fixture
def quick_sensor(tmp_path):
    with SensorRun(tmp_path) as run:
        run.watch()
        yield run


def write(path: bytes, text: bytes = b"text") -> None:
    with open(path, "wb") as file:
        file.write(text)


@pytest.mark.parametrize("name", [b"line\nbreak", b"\xff\xfe not UTF-8", b"\x1b[31mred", b" ", b"a" * 255, "警備".encode()])
def test_any_name_a_file_can_have_is_told_exactly(quick_sensor, name):
    write(quick_sensor.reach(name))
    assert quick_sensor.expect(Happening.CREATED, name).path == quick_sensor.shown(name)
    os.unlink(quick_sensor.reach(name))
    quick_sensor.expect(Happening.DELETED, name)


def test_each_kind_of_change_is_told_as_what_it_is(sensor):
    write(sensor.reach("file"))
    sensor.expect(Happening.CREATED, "file")
    write(sensor.reach("file"), b"other")
    assert not sensor.expect(Happening.MODIFIED, "file").is_directory
    os.chmod(sensor.reach("file"), 0o600)
    sensor.expect(Happening.ATTRIBUTES, "file")
    os.mkdir(sensor.reach("directory"))
    assert sensor.expect(Happening.CREATED, "directory").is_directory
    os.chown(sensor.reach("directory"), 1, 1)
    assert sensor.expect(Happening.ATTRIBUTES, "directory").is_directory
    os.rename(sensor.reach("file"), sensor.reach("directory/file"))
    assert sensor.expect(Happening.RENAMED, "directory/file").old_path == sensor.shown("file")
    os.unlink(sensor.reach("directory/file"))
    sensor.expect(Happening.DELETED, "directory/file")
    os.rmdir(sensor.reach("directory"))
    assert sensor.expect(Happening.DELETED, "directory").is_directory
    os.symlink("nowhere", sensor.reach("link"))
    sensor.expect(Happening.CREATED, "link")
    os.link(sensor.reach("link"), sensor.reach("hard"), follow_symlinks=False)
    sensor.expect(Happening.CREATED, "hard")


def test_files_in_a_renamed_directory_are_told_under_its_new_name(sensor):
    os.makedirs(sensor.reach("a/deep"))
    os.mkdir(sensor.reach("b"))
    write(sensor.reach("a/deep/file"))
    sensor.expect(Happening.CREATED, "a/deep/file")
    os.rename(sensor.reach("a"), sensor.reach("b/c"))
    write(sensor.reach("b/c/deep/file"), b"again")
    sensor.expect(Happening.MODIFIED, "b/c/deep/file")
    os.rename(sensor.reach("b/c/deep"), sensor.reach("up"))
    os.rename(sensor.reach("b"), sensor.reach("z"))
    write(sensor.reach("up/file"), b"once more")
    sensor.expect(Happening.MODIFIED, "up/file")
    write(sensor.reach("z/new"))
    sensor.expect(Happening.CREATED, "z/new")


def test_directories_that_swap_their_names_are_not_mixed_up(quick_sensor):
    for name in ("one", "two"):
        os.mkdir(quick_sensor.reach(name))
        write(quick_sensor.reach(f"{name}/of_{name}"))
        quick_sensor.expect(Happening.CREATED, f"{name}/of_{name}")
    os.rename(quick_sensor.reach("one"), quick_sensor.reach("aside"))
    os.rename(quick_sensor.reach("two"), quick_sensor.reach("one"))
    os.rename(quick_sensor.reach("aside"), quick_sensor.reach("two"))
    write(quick_sensor.reach("two/of_one"), b"x")
    write(quick_sensor.reach("one/of_two"), b"x")
    quick_sensor.expect(Happening.MODIFIED, "two/of_one")
    quick_sensor.expect(Happening.MODIFIED, "one/of_two")


def test_new_directories_made_quickly_inside_each_other_lose_nothing(sensor):
    deep = "/".join(f"level{number}" for number in range(30))
    os.makedirs(sensor.reach(deep))
    for number in range(50):
        write(sensor.reach(f"{deep}/file{number}"))
    sensor.settle()
    told = {one.path for one in sensor.observations}
    assert {sensor.shown(f"{deep}/file{number}") for number in range(50)} <= told
    parts = deep.split("/")
    assert {sensor.shown("/".join(parts[:depth])) for depth in range(1, 31)} <= told


def test_a_deleted_tree_is_told_down_to_its_files(sensor):
    os.makedirs(sensor.reach("tree/branch"))
    for number in range(20):
        write(sensor.reach(f"tree/branch/{number}"))
    sensor.settle()
    shutil.rmtree(sensor.reach("tree"))
    sensor.expect(Happening.DELETED, "tree")
    sensor.settle()
    gone = {one.path for one in sensor.observations if one.happening is Happening.DELETED}
    assert sensor.shown("tree/branch") in gone
    assert {sensor.shown(f"tree/branch/{number}") for number in range(20)} <= gone


def test_only_the_roots_are_told_of(quick_sensor):
    for name in ("in", "inside", "out"):
        os.mkdir(quick_sensor.reach(name))
    quick_sensor.watch(quick_sensor.point / "in", quick_sensor.point / "one_file")
    for path in ("in/a", "inside/b", "out/c", "one_file", "one_file_more"):
        write(quick_sensor.reach(path))
    write(quick_sensor.reach("in/last"))
    quick_sensor.expect(Happening.CREATED, "in/last")
    told = {one.path for one in quick_sensor.observations if not one.is_directory}
    assert told == {quick_sensor.shown(path) for path in ("in/a", "in/last", "one_file")}


def test_what_is_moved_in_or_out_of_a_root_appears_or_goes(quick_sensor):
    os.makedirs(quick_sensor.reach("out/tree/below"))
    os.mkdir(quick_sensor.reach("in"))
    write(quick_sensor.reach("out/tree/below/file"))
    write(quick_sensor.reach("out/single"))
    quick_sensor.watch(quick_sensor.point / "in")
    os.rename(quick_sensor.reach("out/tree"), quick_sensor.reach("in/tree"))
    assert quick_sensor.expect(Happening.CREATED, "in/tree").is_directory
    quick_sensor.expect(Happening.CREATED, "in/tree/below/file")
    os.rename(quick_sensor.reach("out/single"), quick_sensor.reach("in/single"))
    quick_sensor.expect(Happening.CREATED, "in/single")
    os.rename(quick_sensor.reach("in/tree"), quick_sensor.reach("out/back"))
    assert quick_sensor.expect(Happening.DELETED, "in/tree").is_directory


def test_a_busy_directory_that_was_left_out_is_heard_again_once_it_is_moved_in(quick_sensor):
    os.mkdir(quick_sensor.reach("in"))
    os.mkdir(quick_sensor.reach("busy"))
    quick_sensor.watch(quick_sensor.point / "in")
    for number in range(500):
        write(quick_sensor.reach("busy/file"), b"%d" % number)
        if number % 50 == 0:  # else the kernel would bring most of them together
            write(quick_sensor.reach(f"in/mark{number}"))
            quick_sensor.expect(Happening.CREATED, f"in/mark{number}")
    os.rename(quick_sensor.reach("busy"), quick_sensor.reach("in/busy"))
    quick_sensor.expect(Happening.CREATED, "in/busy/file")
    write(quick_sensor.reach("in/busy/file"), b"now it matters")
    quick_sensor.expect(Happening.MODIFIED, "in/busy/file")


def test_a_root_is_told_by_the_name_it_was_asked_for(quick_sensor):
    os.mkdir(quick_sensor.reach("real"))
    os.symlink("real", quick_sensor.reach("link"))
    quick_sensor.watch(quick_sensor.point / "link")
    write(quick_sensor.reach("real/file"))
    quick_sensor.expect(Happening.CREATED, "link/file")
    os.mkdir(quick_sensor.reach("other"))
    os.symlink("other", quick_sensor.reach("next"))
    os.rename(quick_sensor.reach("next"), quick_sensor.reach("link"))
    quick_sensor.wait_for(lambda: quick_sensor.overflows, "the advice to look again")
    write(quick_sensor.reach("other/file2"))
    quick_sensor.expect(Happening.CREATED, "link/file2")


def test_a_watched_file_that_is_replaced_by_rename_is_told(quick_sensor):
    write(quick_sensor.reach("passwd"))
    quick_sensor.watch(quick_sensor.point / "passwd")
    write(quick_sensor.reach("passwd.new"), b"new")
    os.rename(quick_sensor.reach("passwd.new"), quick_sensor.reach("passwd"))
    quick_sensor.expect(Happening.CREATED, "passwd")
    write(quick_sensor.reach("passwd"), b"in place")
    quick_sensor.expect(Happening.MODIFIED, "passwd")


def test_a_root_that_goes_with_a_directory_above_it_is_told_gone_and_back(quick_sensor):
    os.makedirs(quick_sensor.reach("srv/www/html"))
    quick_sensor.watch(quick_sensor.point / "srv/www/html")
    os.rename(quick_sensor.reach("srv"), quick_sensor.reach("old"))
    quick_sensor.expect(Happening.DELETED, "srv/www/html")
    os.rename(quick_sensor.reach("old"), quick_sensor.reach("srv"))
    quick_sensor.expect(Happening.CREATED, "srv/www/html")
    write(quick_sensor.reach("srv/www/html/index"))
    quick_sensor.expect(Happening.CREATED, "srv/www/html/index")


def test_a_root_that_is_not_there_yet_is_told_when_it_comes(quick_sensor):
    quick_sensor.watch(quick_sensor.point / "opt/application")
    os.makedirs(quick_sensor.reach("opt/application"))
    quick_sensor.expect(Happening.CREATED, "opt/application")
    write(quick_sensor.reach("opt/application/file"))
    quick_sensor.expect(Happening.CREATED, "opt/application/file")


def test_a_file_that_is_written_and_stays_open_is_told_about_once_a_second(quick_sensor):
    with open(quick_sensor.reach("log"), "wb", buffering=0) as log:
        quick_sensor.expect(Happening.CREATED, "log")

        def told():
            log.write(b"line\n")
            path = quick_sensor.shown("log")
            found = [one for one in quick_sensor.observations if one.happening is Happening.MODIFIED and one.path == path]
            return found if len(found) >= 3 else None

        first, *_, last = quick_sensor.wait_for(told, "three times of writing")
        assert last.at - first.at >= 1.9
        before = len(quick_sensor.observations)
        log.write(b"end\n")
    quick_sensor.wait_for(lambda: len(quick_sensor.observations) > before, "closing", seconds=10)


def test_the_agents_own_state_is_never_told_of(tmp_path):
    own = tmp_path / "watched" / "state"
    with SensorRun(tmp_path, arguments=("--exclude", str(own))) as run:
        os.mkdir(run.reach("state"))
        run.watch()
        for number in range(20):
            write(run.reach(f"state/{number}"))
        os.mkdir(run.reach("state/below"))
        write(run.reach("state/below/file"))
        run.settle()
        assert [one.path for one in run.observations if one.path.startswith(run.shown("state/"))] == []


@needs_bpf
def test_writers_that_have_ended_before_anybody_looked_are_named(quick_sensor):
    quick_sensor.settle()
    os.kill(quick_sensor.process.pid, signal.SIGSTOP)  # so every one of them is dead when its event is read
    try:
        for number in range(100):
            subprocess.run(["/usr/bin/touch", quick_sensor.reach(f"touched{number}")], check=True)
            subprocess.run(["/bin/sh", "-c", '(echo text > "$0"); :', quick_sensor.reach(f"forked{number}")], check=True)
    finally:
        os.kill(quick_sensor.process.pid, signal.SIGCONT)
    quick_sensor.settle()
    for number in range(100):
        touched = quick_sensor.expect(Happening.CREATED, f"touched{number}").actor
        assert (touched.process, touched.source) == (os.path.realpath("/usr/bin/touch"), "bpf")
        assert touched.parent == os.path.realpath(sys.executable)
        assert (touched.user, touched.uid) == ("root", 0)
        forked = quick_sensor.expect(Happening.CREATED, f"forked{number}").actor
        assert forked.process == os.path.realpath("/bin/sh")


@needs_bpf
def test_a_program_run_as_another_user_is_told_as_that_user(quick_sensor):
    os.chmod(quick_sensor.reach(), 0o777)
    into = f'cd {quick_sensor.point} && exec "$@"'  # nobody may not walk there
    quick_sensor.run_inside("sh", "-c", into, "sh", "setpriv", "--reuid", "65534", "--clear-groups", "touch", "by_nobody")
    actor = quick_sensor.expect(Happening.CREATED, "by_nobody").actor
    assert (actor.user, actor.uid) == ("nobody", 65534)


@needs_bpf
def test_writers_in_other_namespaces_are_seen_and_named(quick_sensor):
    inside = os.fsdecode(quick_sensor.shown("by_other"))
    quick_sensor.run_inside("unshare", "--mount", "--pid", "--fork", "--net", "--ipc", "touch", inside)
    assert quick_sensor.expect(Happening.CREATED, "by_other").actor.process == os.path.realpath("/usr/bin/touch")


def test_without_the_kernel_part_it_works_from_proc_and_says_so(tmp_path):
    with SensorRun(tmp_path, arguments=("--bpf-object", str(tmp_path / "absent.o"))) as run:
        run.watch()
        assert not run.capability("bpf_exec_map").is_available
        assert "was not built" in run.capability("bpf_exec_map").reason
        write(run.reach("file"))
        actor = run.expect(Happening.CREATED, "file").actor
        assert (actor.process, actor.source) == (os.path.realpath(sys.executable), "proc")


def test_without_the_right_to_observe_it_says_so_and_stays(tmp_path):
    with SensorRun(tmp_path, prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all")) as run:
        run.watch(wants_processes=True)
        for name in ("fanotify_filesystem_marks", "bpf_exec_map", "bpf_socket_events"):
            assert not run.capability(name).is_available
            assert "Operation not permitted" in run.capability(name).reason
        assert run.stop() == 0


def test_a_burst_that_the_core_reads_late_is_told_whole(quick_sensor):
    for number in range(8000):  # more than the socket holds
        write(quick_sensor.reach(f"file{number}"), b"")
    quick_sensor.settle()
    assert not quick_sensor.overflows
    told = {one.path for one in quick_sensor.observations if one.happening is Happening.CREATED}
    assert {quick_sensor.shown(f"file{number}") for number in range(8000)} <= told


def test_when_nobody_reads_for_long_it_says_since_when_observations_are_missing(tmp_path):
    with SensorRun(tmp_path, arguments=("--max-backlog", "2000")) as run:
        run.watch()
        started = time.time()
        for number in range(12_000):
            write(run.reach(f"file{number}"), b"")
        overflow = run.wait_for(lambda: run.overflows, "the overflow")[0]
        assert started - 1 <= overflow.since <= overflow.until
        assert "more happened than the agent could take in" in overflow.reason
        run.wait_for(lambda: not run.receive(1.0), "silence")
        run.settle()


def test_after_a_kill_a_new_sensor_goes_on(quick_sensor):
    quick_sensor.process.kill()
    quick_sensor.process.wait()
    quick_sensor.channel.close()
    quick_sensor.start()
    quick_sensor.watch()
    write(quick_sensor.reach("after"))
    quick_sensor.expect(Happening.CREATED, "after")


def test_it_ends_when_told_and_when_the_core_is_gone(quick_sensor, tmp_path):
    assert quick_sensor.stop() == 0
    quick_sensor.channel.close()
    quick_sensor.start()
    quick_sensor.channel.shutdown(2)
    assert quick_sensor.process.wait(20) == 0


def test_what_is_no_frame_ends_it_with_a_message(tmp_path, capfd):
    with SensorRun(tmp_path) as run:
        run.channel.sendall(b"\0\0\0\3abc")
        assert run.process.wait(20) == 1
    assert "a frame that is none" in capfd.readouterr().err


@needs_bpf
def test_programs_and_ports_are_told_when_they_are_wanted(quick_sensor):
    subprocess.run(["/usr/bin/true"], check=True)
    quick_sensor.watch(wants_processes=True, wants_ports=True)
    listen = "import socket\nfor _ in range(2): socket.create_server(('127.0.0.1', 47123)).close()"
    subprocess.run([sys.executable, "-c", listen], check=True)
    key = b"tcp/127.0.0.1/47123"
    quick_sensor.wait_for(lambda: quick_sensor.find(Happening.PORT_CLOSED, key))
    opened = quick_sensor.find(Happening.PORT_OPENED, key)
    assert opened.actor.process == os.path.realpath(sys.executable)
    executable = os.fsencode(os.path.realpath(sys.executable))
    quick_sensor.wait_for(lambda: quick_sensor.find(Happening.PROCESS_ENDED, executable))
    assert quick_sensor.find(Happening.PROCESS_STARTED, executable).actor.source == "bpf"
    quick_sensor.watch()
    quick_sensor.observations.clear()
    subprocess.run(["/usr/bin/true"], check=True)
    quick_sensor.settle()
    assert not quick_sensor.find(Happening.PROCESS_STARTED, os.fsencode(os.path.realpath("/usr/bin/true")))


def test_it_stays_small(quick_sensor):
    for number in range(5000):
        write(quick_sensor.reach(f"{number}"), b"")
    quick_sensor.settle()
    with open(f"/proc/{quick_sensor.process.pid}/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident < 30 * 1024
