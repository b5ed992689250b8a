"""The integrity worker when things go wrong: kills at the worst moment, a full disk, bursts, whole trees that come and go."""

import os
import pathlib
import re
import shutil
import subprocess
import time

import msgspec
import pytest

from keibi.agent.ports import Configure, Happening
from keibi.contract.commands import CommandKind, CommandState
from keibi.contract.events import Actor
from keibi.contract.policy import AssignedRule, ModuleState
from keibi.contract.status import Health
from keibi.protection.integrity_monitoring.settings import BaselineMode, IntegrityMonitoringSettings
from tests.system.integrity_worker import IntegrityWorker, file_rule, module_policy

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the worker starts as root, to give that up")

EDITOR = Actor(process="/usr/bin/vim", pid=4242, user="root", uid=0, login_user="alice", source="bpf")


@pytest.fixture
def watched(tmp_path) -> pathlib.Path:
    directory = tmp_path / "watched"
    directory.mkdir()
    (directory / "test.txt").write_text("1+1=2\n")
    return directory


@pytest.fixture
def start(tmp_path):
    running: list[IntegrityWorker] = []

    def begin(state: pathlib.Path | None = None) -> IntegrityWorker:
        running.append(IntegrityWorker(str(state or tmp_path / "agent" / "state")))
        return running[-1]

    yield begin
    for worker in running:
        worker.stop()


def filled(directory: pathlib.Path, count: int) -> pathlib.Path:
    directory.mkdir()
    for number in range(count):
        (directory / str(number)).write_text(f"{number}\n")
    return directory


def test_what_a_new_rule_watches_is_taken_in_silently_though_the_worker_is_killed_at_once(start, watched, tmp_path):
    other = filled(tmp_path / "other", 2000)
    worker = start()
    worker.configure([file_rule(str(watched))])
    more = [file_rule(str(watched)), file_rule(str(other), name="im-other")]
    worker.send(Configure(2, module_policy(more)))
    worker.wait(lambda: worker.applied[-1].generation == 2)
    worker.kill()
    worker = start()
    worker.configure(more, generation=2)
    worker.scan()
    assert worker.events == []
    (other / "7").write_text("changed\n")
    (event,) = worker.scan()
    assert event.subject == str(other / "7")


def test_what_a_second_new_policy_follows_at_once_is_taken_in_silently_too(start, watched, tmp_path):
    other, third = filled(tmp_path / "other", 2000), filled(tmp_path / "third", 10)
    worker = start()
    worker.configure([file_rule(str(watched))])
    rules = [file_rule(str(watched)), file_rule(str(other), name="im-other"), file_rule(str(third), name="im-third")]
    worker.send(Configure(2, module_policy(rules[:2])))
    worker.send(Configure(3, module_policy(rules)))
    worker.wait(lambda: worker.applied[-1].generation == 3)
    worker.scan()
    assert worker.events == []


def test_what_is_watched_no_more_and_then_again_is_neither_deleted_nor_created(start, watched, tmp_path):
    other = filled(tmp_path / "other", 10)
    both = [file_rule(str(watched)), file_rule(str(other), name="im-other")]
    worker = start()
    worker.configure(both)
    worker.configure(both[:1], generation=2)
    worker.scan()
    worker.configure(both, generation=3)
    worker.scan()
    assert worker.events == []


def test_a_module_that_was_off_finds_what_changed_meanwhile(start, watched):
    worker = start()
    worker.configure([file_rule(str(watched))])
    worker.configure([file_rule(str(watched))], generation=2, state=ModuleState.OFF)
    worker.wait(lambda: worker.statuses[-1].health is Health.INACTIVE)
    assert worker.watches[-1].roots == []
    (watched / "test.txt").write_text("changed while off\n")
    worker.configure([file_rule(str(watched))], generation=3)
    worker.wait(lambda: any(event.subject == str(watched / "test.txt") for event in worker.events))


def test_a_directory_that_is_moved_in_brings_all_that_it_holds(start, watched, tmp_path):
    worker = start()
    worker.configure([file_rule(str(watched))])
    filled(tmp_path / "elsewhere", 5)
    shutil.move(tmp_path / "elsewhere", watched / "came")
    worker.observe(Happening.CREATED, str(watched / "came"), is_directory=True, actor=EDITOR)
    expected = {str(watched / "came"), *(str(watched / "came" / str(number)) for number in range(5))}
    worker.wait(lambda: {event.subject for event in worker.events} >= expected)
    assert {event.details["source"]["kind"] for event in worker.events} == {"real-time"}
    assert len(worker.events) == len(expected)
    worker.scan()
    assert len(worker.events) == len(expected)


def test_a_directory_that_is_moved_out_takes_all_that_it_held(start, watched, tmp_path):
    filled(watched / "leaves", 5)
    worker = start()
    worker.configure([file_rule(str(watched))])
    shutil.move(watched / "leaves", tmp_path / "elsewhere")
    worker.observe(Happening.DELETED, str(watched / "leaves"), is_directory=True, actor=EDITOR)
    worker.wait(lambda: len(worker.events) >= 6)
    assert {event.kind for event in worker.events} == {"file.deleted", "directory.deleted"}
    worker.scan()
    assert len(worker.events) == 6


def test_a_burst_of_new_files_loses_none_and_tells_none_twice(start, watched):
    worker = start()
    worker.configure([file_rule(str(watched))])
    began = time.monotonic()
    for number in range(3000):
        (watched / str(number)).write_text("x")
        worker.observe(Happening.CREATED, str(watched / str(number)), actor=EDITOR)
    worker.wait(lambda: len(worker.events) >= 3000, seconds=60)
    assert time.monotonic() - began < 30
    worker.scan()
    assert len({event.subject for event in worker.events}) == len(worker.events) == 3000


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MiB that the test may fill up."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=0755", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path: pathlib.Path) -> None:
    with open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)


def test_a_full_disk_is_said_plainly_and_no_change_is_lost(start, watched, small_disk):
    worker = start(small_disk / "agent" / "state")
    worker.configure([file_rule(str(watched))])
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        fill(ballast)
    for number in range(200):
        (watched / f"while-full-{number}").write_text("x")
        worker.observe(Happening.CREATED, str(watched / f"while-full-{number}"), actor=EDITOR)
    worker.wait(lambda: worker.statuses[-1].health is Health.ERROR)
    assert re.search("cannot be (written|opened)", worker.statuses[-1].message), worker.statuses[-1]
    ballast.unlink()
    worker.wait(lambda: len(worker.events) >= 200)
    worker.wait(lambda: worker.statuses[-1].health is Health.ACTIVE)
    assert {event.actor.process for event in worker.events} == {EDITOR.process}
    worker.scan()
    assert len(worker.events) == 200


def test_a_drift_is_listed_with_what_differs(start, watched):
    worker = start()
    approval = IntegrityMonitoringSettings(baseline_mode=BaselineMode.APPROVAL, scan_schedule="")
    worker.configure([file_rule(str(watched))], state=ModuleState.ON, settings=approval)
    (watched / "test.txt").write_text("not yet approved\n")
    (watched / "new").write_text("x")
    worker.scan()
    drifts = {drift["key"]: drift for drift in worker.run(CommandKind.LIST_BASELINE).result["drifts"]}
    changed, new = drifts[str(watched / "test.txt")], drifts[str(watched / "new")]
    assert (changed["type"], changed["change"], new["change"]) == ("file", "updated", "created")
    assert {"contents", "size"} <= set(changed["changed_attributes"])


def test_versions_are_compared_as_a_whole_and_unknown_ones_are_refused(start, watched):
    worker = start()
    worker.configure([file_rule(str(watched))], state=ModuleState.ON)
    first = worker.run(CommandKind.LIST_BASELINE).result["versions"][0]["version"]
    (watched / "test.txt").write_text("changed\n")
    (watched / "new").write_text("x")
    worker.scan()
    (watched / "new").unlink()
    worker.scan()
    numbers = [version["version"] for version in worker.run(CommandKind.LIST_BASELINE).result["versions"]]
    assert numbers == sorted(numbers, reverse=True)
    # "new" came and went in between, so it is no difference.
    compared = worker.run(CommandKind.COMPARE_BASELINE, before=first, after=numbers[0])
    assert [(one["type"], one["key"], one["change"]) for one in compared.result["changes"]] == [
        ("file", str(watched / "test.txt"), "updated")
    ]
    unknown = worker.run(CommandKind.COMPARE_BASELINE, before=first, after=99_999)
    assert unknown.state is CommandState.FAILED
    assert "99999" in unknown.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": b'{"scan_schedule": '}, "cannot be read"),
        ({"settings": b'{"scan_schedule": "0 0 31 2 *"}'}, "no schedule"),
        ({"rules": [AssignedRule("im-x", 1, b"\xff")]}, "cannot be read"),
    ],
)
def test_a_policy_that_is_broken_or_never_due_is_refused_and_the_worker_lives(start, watched, change, said):
    worker = start()
    worker.configure([file_rule(str(watched))], state=ModuleState.ON)
    broken = msgspec.structs.replace(module_policy([file_rule(str(watched))]), **change)
    worker.send(Configure(2, broken))
    worker.wait(lambda: worker.applied[-1].generation == 2)
    assert said in worker.applied[-1].error
    (watched / "test.txt").write_text("changed\n")
    (event,) = worker.scan()
    assert event.policy_generation == 1
