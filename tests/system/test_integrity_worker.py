import os
import pathlib
import time

import pytest

from keibi.agent.modules.integrity_monitoring.restore import restore_file
from keibi.agent.ports import Configure, Happening, Overflowed
from keibi.contract.commands import CommandKind, CommandState
from keibi.contract.events import Actor, EventAction
from keibi.contract.names import Severity
from keibi.contract.policy import ModuleState
from keibi.contract.status import Health
from keibi.protection.base import Text
from keibi.protection.integrity_monitoring.rules import AppliesTo, EntitySet, EntityType, Rule
from keibi.protection.integrity_monitoring.settings import BaselineMode, IntegrityMonitoringSettings
from tests.system.integrity_worker import IntegrityWorker, file_rule, module_policy
from tests.unit.agent.linux.hives import Key, build

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the worker starts as root, to give that up")

APPROVAL = IntegrityMonitoringSettings(baseline_mode=BaselineMode.APPROVAL, scan_schedule="")


@pytest.fixture
def watched(tmp_path) -> pathlib.Path:
    directory = tmp_path / "watched"
    directory.mkdir()
    return directory


@pytest.fixture
def start(tmp_path):
    running: list[IntegrityWorker] = []

    def begin(**more) -> IntegrityWorker:
        running.append(IntegrityWorker(str(tmp_path / "agent" / "state"), **more))
        return running[-1]

    yield begin
    for worker in running:
        if worker.process.poll() is None:
            worker.stop()


def test_the_baseline_rolls_with_each_scan_and_a_rebuild_accepts_what_is_there(start, watched):
    """The three steps of S47."""
    file = watched / "test.txt"
    file.write_text("1+1=2\n")
    worker = start()
    worker.configure([file_rule(str(watched))], state=ModuleState.ON)

    file.write_text("1*1=1\n")
    (first,) = worker.scan()
    assert first.subject == str(file)
    assert "-1+1=2" in first.details["difference"]
    assert "+1*1=1" in first.details["difference"]
    assert worker.scan() == []

    file.write_text("1-1=0\n")
    (second,) = worker.scan()
    assert "-1*1=1" in second.details["difference"]
    assert "+1-1=0" in second.details["difference"]

    file.write_text("1+1=2\n")
    assert worker.run(CommandKind.REBUILD_BASELINE).state is CommandState.DONE
    assert worker.scan() == []


def test_a_scan_event_has_two_times_and_says_what_differed(start, watched):
    file = watched / "a"
    file.write_text("x")
    worker = start()
    worker.configure([file_rule(str(watched))], state=ModuleState.ON)
    file.chmod(0o4755)
    changed = file.stat().st_ctime
    time.sleep(0.05)
    (event,) = worker.scan()
    assert event.changed_at == pytest.approx(changed, abs=0.001)
    assert event.detected_at > changed + 0.04
    assert event.details["source"]["kind"] == "manual"
    assert event.details["before"] == {"permissions": "0644"}
    assert event.details["after"] == {"permissions": "4755"}
    assert event.message == f"The file {file} was changed: permissions."


def test_real_time_changes_are_events_within_a_second_and_name_who(start, watched):
    file = watched / "conf"
    file.write_text("a=1\n")
    worker = start()
    worker.configure([file_rule(str(watched), severity=Severity.HIGH)])
    assert worker.watches[-1].roots == [os.fsencode(watched)]
    file.write_text("a=2\n")
    began = time.monotonic()
    worker.observe(Happening.MODIFIED, str(file), actor=Actor(process="/usr/bin/vim", pid=7, user="eve", source="bpf"))
    (event,) = worker.next_events()
    assert time.monotonic() - began < 1
    assert event.kind == "file.updated"
    assert event.severity is Severity.HIGH
    assert event.actor.user == "eve"
    assert event.details["source"]["kind"] == "real-time"
    assert "+a=2" in event.details["difference"]


def test_create_write_and_chmod_of_one_file_are_one_event(start, watched):
    worker = start()
    worker.configure([file_rule(str(watched))])
    file = watched / "new"
    file.write_text("x")
    for happening in (Happening.CREATED, Happening.MODIFIED, Happening.ATTRIBUTES, Happening.MODIFIED):
        worker.observe(happening, str(file))
    (event,) = worker.next_events()
    assert event.kind == "file.created"
    assert worker.scan() == []


def test_renames_deletions_and_directories_in_real_time(start, watched):
    (watched / "d").mkdir()
    (watched / "d" / "one").write_text("1")
    (watched / "two").write_text("2")
    worker = start()
    worker.configure([file_rule(str(watched))])

    (watched / "two").rename(watched / "three")
    worker.observe(Happening.RENAMED, str(watched / "three"), str(watched / "two"))
    (event,) = worker.next_events()
    assert event.kind == "file.renamed"
    assert event.details["previous_key"] == str(watched / "two")

    (watched / "d").rename(watched / "e")
    worker.observe(Happening.RENAMED, str(watched / "e"), str(watched / "d"), is_directory=True)
    events = worker.next_events(2)
    assert {(event.kind, event.subject) for event in events} == {
        ("directory.renamed", str(watched / "e")),
        ("file.renamed", str(watched / "e" / "one")),
    }
    (watched / "three").unlink()
    worker.observe(Happening.DELETED, str(watched / "three"))
    (event,) = worker.next_events()
    assert event.kind == "file.deleted"
    assert worker.scan() == []


def test_what_changed_while_the_agent_was_down_is_found_and_marked(start, watched):
    (watched / "a").write_text("1\n")
    worker = start()
    worker.configure([file_rule(str(watched))])
    worker.stop()
    (watched / "a").write_text("2\n")
    (watched / "b").write_text("new\n")
    again = start()
    again.configure([file_rule(str(watched))])
    again.wait(lambda: len(again.events) >= 2)
    assert {(event.kind, event.details["source"]["kind"]) for event in again.events} == {
        ("file.updated", "start"),
        ("file.created", "start"),
    }


def test_an_unconfirmed_event_is_sent_again_after_a_kill_with_the_same_id(start, watched):
    worker = start(confirms=False)
    worker.configure([file_rule(str(watched))])
    (watched / "a").write_text("1")
    worker.observe(Happening.CREATED, str(watched / "a"))
    (event,) = worker.next_events()
    worker.kill()
    again = start()
    again.wait(lambda: bool(again.events))
    assert [one.event_id for one in again.events] == [event.event_id]
    again.configure([file_rule(str(watched))])
    assert again.scan() == []
    again.stop()
    third = start()
    third.configure([file_rule(str(watched))])
    assert third.events == []


def test_a_policy_that_cannot_run_leaves_the_old_one_in_force(start, watched):
    worker = start()
    worker.configure([file_rule(str(watched))])
    worker.configure([file_rule("not/absolute")], generation=2)
    assert "not an absolute path" in worker.applied[-1].error
    (watched / "a").write_text("1")
    worker.observe(Happening.CREATED, str(watched / "a"))
    (event,) = worker.next_events()
    assert event.policy_generation == 1


def test_settings_with_an_unknown_field_or_a_wrong_schedule_are_refused(start, watched):
    worker = start()
    policy = module_policy([file_rule(str(watched))])
    import msgspec

    worker.send(Configure(1, msgspec.structs.replace(policy, settings=b'{"colour": "red"}')))
    worker.wait(lambda: bool(worker.applied))
    assert "colour" in worker.applied[-1].error
    worker.configure([file_rule(str(watched))], generation=2, settings=IntegrityMonitoringSettings(scan_schedule="every day"))
    assert "'every day' is no schedule" in worker.applied[-1].error


def test_what_a_new_rule_watches_is_taken_into_the_baseline_without_an_alarm(start, watched, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "old").write_text("1")
    worker = start()
    worker.configure([file_rule(str(watched))])
    worker.configure([file_rule(str(watched)), file_rule(str(other), name="im-other")], generation=2)
    worker.wait(lambda: worker.statuses[-1].metrics.get("entities_count", 0) >= 1)
    assert worker.scan() == []
    assert worker.events == []
    (other / "old").write_text("2")
    assert len(worker.scan()) == 1


def test_drifts_wait_until_a_person_decides(start, watched):
    file = watched / "a"
    file.write_text("good\n")
    worker = start()
    worker.configure([file_rule(str(watched), attributes=["content"])], settings=APPROVAL)
    file.write_text("changed\n")
    (event,) = worker.scan()
    assert worker.scan() == [], "the same drift is reported once"
    file.write_text("changed again\n")
    (further,) = worker.scan()
    assert "-good" in further.details["difference"], "the baseline has not moved"
    listed = worker.run(CommandKind.LIST_BASELINE).result["drifts"]
    assert [drift["key"] for drift in listed] == [str(file)]
    drift_id = further.details["drift_id"]
    assert drift_id != event.details["drift_id"]

    assert worker.run(CommandKind.DECIDE_DRIFT, decision="reject", drift_ids=[drift_id]).result == {"decided": 1, "unknown": []}
    assert worker.scan() == []
    assert worker.run(CommandKind.LIST_BASELINE).result["drifts"][0]["decision"] == "rejected"

    assert worker.run(CommandKind.DECIDE_DRIFT, decision="approve", drift_ids=[drift_id, "0" * 32]).result == {
        "decided": 1,
        "unknown": ["0" * 32],
    }
    assert worker.run(CommandKind.LIST_BASELINE).result["drifts"] == []
    assert worker.scan() == []
    file.write_text("third\n")
    (third,) = worker.scan()
    assert "-changed again" in third.details["difference"]
    file.write_text("changed again\n")
    assert worker.scan() == []
    assert worker.run(CommandKind.LIST_BASELINE).result["drifts"] == [], "what is as it was is no drift"


def test_versions_can_be_compared(start, watched):
    (watched / "a").write_text("1")
    worker = start()
    worker.configure([file_rule(str(watched))], state=ModuleState.ON)
    (watched / "b").write_text("2")
    worker.scan()
    versions = worker.run(CommandKind.LIST_BASELINE, prefix=str(watched)).result
    assert [entry["key"] for entry in versions["entries"]][-2:] == [str(watched / "a"), str(watched / "b")]
    numbers = [version["version"] for version in versions["versions"]]
    compared = worker.run(CommandKind.COMPARE_BASELINE, before=min(numbers), after=max(numbers)).result
    assert str(watched / "b") in [change["key"] for change in compared["changes"] if change["before"] is None]


def test_a_file_is_restored_as_it_was_before_the_event(start, watched):
    file = watched / "conf"
    file.write_text("good\npassword = hunter2\n")
    file.chmod(0o640)
    worker = start()
    worker.configure([file_rule(str(watched))])
    file.write_text("evil\n")
    file.chmod(0o666)
    worker.observe(Happening.MODIFIED, str(file))
    (event,) = worker.next_events()
    assert event.details["can_restore"]
    arguments = {"key": event.subject, "version": event.details["baseline_version"]}
    preview = worker.run(CommandKind.PREVIEW_RESTORE, **arguments).result
    assert preview["can_restore"]
    assert "+good" in preview["difference"]
    assert "hunter2" not in str(preview)

    stale = worker.run(CommandKind.RESTORE, **arguments, expected_hash="0" * 64)
    assert stale.state is CommandState.FAILED
    prepared = worker.run(CommandKind.RESTORE, **arguments, expected_hash=preview["expected_hash"]).result
    restore_file(prepared.pop("path"), **prepared)
    assert file.read_text() == "good\npassword = hunter2\n"
    assert file.stat().st_mode & 0o7777 == 0o640
    worker.observe(Happening.RENAMED, str(file), str(watched / ".keibi-restore-x"))
    (restored,) = worker.next_events()
    assert restored.action is EventAction.RESTORED


def test_a_deleted_file_comes_back(start, watched):
    file = watched / "gone"
    file.write_text("keep me\n")
    worker = start()
    worker.configure([file_rule(str(watched))], state=ModuleState.ON)
    file.unlink()
    (event,) = worker.scan()
    prepared = worker.run(CommandKind.RESTORE, key=event.subject, version=event.details["baseline_version"]).result
    restore_file(prepared.pop("path"), **prepared)
    assert file.read_text() == "keep me\n"


def test_special_files_loops_and_hostile_names_never_hang_a_scan(start, watched):
    os.mkfifo(watched / "fifo")
    (watched / "loop").symlink_to(watched)
    (watched / "dangling").symlink_to("/nowhere")
    hostile = os.fsencode(watched) + b"/a\n\x1b[2J\xff"
    with open(hostile, "w") as file:
        file.write("1")
    worker = start()
    worker.configure([file_rule(str(watched))], state=ModuleState.ON)
    with open(hostile, "w") as file:
        file.write("2")
    (event,) = worker.scan()
    assert event.subject == f"{watched}/a\\x0a\\x1b[2J\\xff"
    assert event.message.isprintable()


def test_a_log_may_grow_and_not_be_rewritten(start, watched):
    log = watched / "log"
    log.write_text("one\n")
    worker = start()
    worker.configure([file_rule(str(watched), attributes=["growing_log", "contents", "size"], append_only=True)])
    with log.open("a") as file:
        file.write("two\n")
    worker.observe(Happening.MODIFIED, str(log))
    assert worker.scan() == []
    with log.open("r+") as file:
        file.write("ONE")
    (event,) = worker.scan()
    assert event.details["changed_attributes"] == ["contents"]


def test_no_content_leaves_when_the_policy_says_so(start, watched):
    file = watched / "a"
    file.write_text("one\n")
    worker = start()
    worker.configure([file_rule(str(watched))], settings=IntegrityMonitoringSettings(capture_content=False, scan_schedule=""))
    file.write_text("two\n")
    (event,) = worker.scan()
    assert "difference" not in event.details
    assert event.details["difference_note"] == "the policy keeps no content"


def test_missing_observations_are_told_and_made_good(start, watched):
    worker = start()
    worker.configure([file_rule(str(watched))])
    (watched / "unseen").write_text("1")
    worker.send(Overflowed(time.time() - 2, time.time(), "the queue was full"))
    told, found = worker.next_events(2)
    assert told.kind == "agent.observations_missing"
    assert "the queue was full" in told.message
    assert found.details["source"]["kind"] == "recovery"
    assert found.subject == str(watched / "unseen")


def test_a_new_listening_port_is_an_event(start):
    import socket

    worker = start()
    rule = Rule(
        id="im-ports", version=1, title=Text(en="t"), description=Text(en="d"), severity=Severity.MEDIUM,
        entities=[EntitySet(type=EntityType.PORT, include=["tcp/127.0.0.1/*"]), EntitySet(type=EntityType.USER)],
    )  # fmt: skip
    worker.configure([rule])
    assert worker.watches[-1].wants_ports
    with socket.create_server(("127.0.0.1", 0)) as server:
        key = f"tcp/127.0.0.1/{server.getsockname()[1]}"
        worker.observe(Happening.PORT_OPENED, key)
        while (event := worker.next_events()[0]).subject != key:
            pass
        assert event.kind == "port.created"
        assert event.details["after"]["process"] == os.readlink("/proc/self/exe")


def test_the_worker_is_not_root_and_says_which_walls_stand(start, watched):
    worker = start()
    assert worker.hello is not None
    walls = {wall.name: wall for wall in worker.hello.capabilities}
    if walls["integrity_worker_without_root"].is_available:
        with open(f"/proc/{worker.process.pid}/status") as file:
            status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        assert status["Uid"].split()[0] != "0"
        assert int(status["CapEff"], 16) == 1 << 2 | 1 << 19
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"
    else:
        assert "keibi up" in walls["integrity_worker_without_root"].reason


def test_off_is_off_and_a_command_then_says_so(start, watched):
    worker = start()
    worker.configure([file_rule(str(watched))], state=ModuleState.OFF)
    worker.wait(lambda: bool(worker.statuses))
    assert worker.statuses[-1].health is Health.INACTIVE
    answer = worker.run(CommandKind.SCAN)
    assert answer.state is CommandState.FAILED
    assert "is off" in answer.message


def test_a_scan_of_what_no_rule_watches_is_refused(start, watched):
    worker = start()
    worker.configure([file_rule(str(watched))])
    answer = worker.run(CommandKind.SCAN, paths=["/nowhere/else"])
    assert answer.state is CommandState.FAILED
    assert "no rule watches /nowhere/else" in answer.message


def test_a_rule_for_software_that_is_not_installed_is_left_out(start, watched, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    worker = start()
    rules = [
        file_rule(str(watched), applies_to=AppliesTo(software=["base-fil?s", "absent"])),
        file_rule(str(other), name="im-other", applies_to=AppliesTo(software=["no-such-package-*"])),
    ]
    worker.configure(rules)
    assert worker.statuses[-1].rule_count == 1
    (watched / "a").write_text("1")
    (other / "b").write_text("1")
    assert [event.subject for event in worker.scan()] == [str(watched / "a")]


def test_changes_that_no_attribute_watches_make_no_version(start, watched):
    file = watched / "a"
    file.write_text("1")
    worker = start()
    worker.configure([file_rule(str(watched), attributes=["permissions_only"])])
    before = worker.run(CommandKind.LIST_BASELINE).result["versions"]
    for content in ("22", "333"):
        file.write_text(content)
        worker.observe(Happening.MODIFIED, str(file))
        worker.observe(Happening.PORT_OPENED, "tcp/127.0.0.1/1")
        time.sleep(0.4)
    assert worker.run(CommandKind.LIST_BASELINE).result["versions"] == before


def test_a_value_in_a_windows_registry_on_a_mounted_disk_is_watched(start, watched):
    hive = watched / "SOFTWARE"

    def write(program: str) -> None:
        run = Key("Run", values={"Updater": program, "Other": "x"})
        hive.write_bytes(build(Key("ROOT", subkeys=[Key("Microsoft", subkeys=[run])])))

    write("C:\\tools\\up.exe")
    rule = Rule(
        id="im-registry", version=1, title=Text(en="t"), description=Text(en="d"), severity=Severity.HIGH,
        entities=[EntitySet(type=EntityType.REGISTRY_VALUE, base="${WINDOWS}/SOFTWARE!Microsoft")],
    )  # fmt: skip
    worker = start()
    settings = IntegrityMonitoringSettings(variables={"WINDOWS": str(watched)}, scan_schedule="")
    worker.configure([rule], settings=settings)
    assert worker.statuses[-1].metrics["entities_count"] == 2
    write("C:\\evil.exe")
    (event,) = worker.scan()
    assert event.kind == "registry_value.updated"
    assert event.subject == f"{hive}!Microsoft/Run//Updater"
    hive.write_bytes(b"no hive")
    assert worker.scan() == [], "half a registry must not look like one from which the rest was deleted"
    worker.wait(lambda: worker.statuses[-1].health is Health.WARNING)
    assert "registry hive" in worker.statuses[-1].message


def test_users_groups_services_and_software_are_part_of_the_baseline(start):
    types = (EntityType.USER, EntityType.GROUP, EntityType.SERVICE, EntityType.SOFTWARE, EntityType.PROCESS)
    rule = Rule(
        id="im-entities", version=1, title=Text(en="t"), description=Text(en="d"), severity=Severity.LOW,
        entities=[EntitySet(type=type_, attributes=["existence"]) for type_ in types],
    )  # fmt: skip
    worker = start()
    worker.configure([rule], state=ModuleState.ON)
    found = worker.statuses[-1].metrics["entities_count"]
    assert found > 300, found
    assert worker.statuses[-1].health is Health.ACTIVE, worker.statuses[-1].message
