"""What the real worker answers to a gate's questions about this computer, without any hold by the kernel."""

import hashlib
import os
import pathlib
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

import keibi
from keibi.agent.gate import judging
from keibi.agent.gate.judging import EXEC, OPEN, WRITTEN
from keibi.contract.commands import CommandKind
from keibi.contract.names import Severity
from keibi.contract.policy import ModuleState
from keibi.contract.status import Health
from keibi.protection.application_control.rules import PackageEntry, PathEntry, RuleAction
from keibi.protection.application_control.settings import ApplicationControlSettings
from keibi.protection.gate_settings import OnTimeout
from tests.system.application_control_worker import ApplicationControlWorker, PlainGate, hash_entry, module_policy, ruleset

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask")

TRUE = pathlib.Path(os.path.realpath("/bin/true")).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("computer")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, folder: pathlib.Path) -> Iterator[ApplicationControlWorker]:
    known = folder / "known"
    known.write_bytes(TRUE)
    known.chmod(0o755)
    worker = ApplicationControlWorker(str(tmp_path_factory.mktemp("agent")), roots=(str(folder),))
    yield worker
    worker.stop()


def unknown(folder: pathlib.Path, name: str, number: int) -> str:
    path = folder / name
    path.write_bytes(TRUE + b"unknown %d" % number)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def gate(worker: ApplicationControlWorker) -> Iterator[PlainGate]:
    gate = PlainGate(worker.judges)
    yield gate
    gate.close()


@pytest.mark.parametrize(
    ("state", "rules", "mode", "events"),
    [
        (ModuleState.OFF, (), "off", []),
        (ModuleState.DETECT, (), "watch", ["exec", "written"]),
        (ModuleState.DETECT, (ruleset(RuleAction.BLOCK, hash_entry(b"x")),), "prevent", ["exec", "open", "written"]),
        (ModuleState.DETECT, (ruleset(RuleAction.BLOCK),), "watch", ["exec", "written"]),
        (ModuleState.DETECT, (ruleset(RuleAction.ALLOW, hash_entry(b"x")),), "watch", ["exec", "written"]),
        (ModuleState.PREVENT, (), "prevent", ["exec", "open", "written"]),
    ],
)
def test_nothing_is_held_unless_the_policy_blocks_something(worker, state, rules, mode, events):
    settings = ApplicationControlSettings(
        inventory_cpu_percent=400, deadline_milliseconds=1234, on_timeout=OnTimeout.DENY, excluded_directories=("/srv/x/",)
    )
    worker.configure(*rules, state=state, settings=settings)
    gate = PlainGate(worker.judges)
    try:
        assert (gate.terms["mode"], gate.terms["events"]) == (mode, events)
        if mode != "off":
            assert gate.terms["deadline_milliseconds"] == 1234
            assert gate.terms["on_timeout"] == "deny"
            assert gate.terms["excluded"] == ["/srv/x"]
            assert gate.terms["files"] == "software"
            assert ".py" in gate.terms["suffixes"]
    finally:
        gate.close()


def test_detect_mode_tells_what_would_be_blocked_once_for_each_file(worker, gate, folder):
    worker.configure(state=ModuleState.DETECT)
    path = unknown(folder, "seen", 1)
    for _ in range(5):
        gate.ask(EXEC, path, is_held=False)
        gate.ask(EXEC, str(folder / "known"), is_held=False)
    event = worker.next_event("software.would_block", path)
    assert event.details["reason_code"] == "unrecognised"
    assert not event.details.get("is_proof")
    other = unknown(folder, "other", 2)
    gate.ask(EXEC, other, is_held=False)
    worker.next_event("software.would_block", other)
    assert len(worker.events_of("software.would_block", path)) == 1
    listed = worker.run(CommandKind.LIST_SOFTWARE, text="seen").result["items"]
    assert (listed[0]["path"], listed[0]["state"]) == (path, "unrecognised")


def test_what_runs_while_the_first_inventory_is_being_built_is_trusted_like_its_neighbours(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(2000):
        (folder / f"x{number}.sh").write_bytes(b"#!/bin/sh\n" + b"x" * number)
    (folder / "below").mkdir()
    script = folder / "below" / "used.sh"
    script.write_bytes(b"#!/bin/sh\ntrue\n")
    worker = ApplicationControlWorker(str(tmp_path / "agent"), roots=(str(folder),))
    try:
        settings = ApplicationControlSettings(inventory_cpu_percent=5)
        worker.apply(module_policy(state=ModuleState.DETECT, settings=settings))
        worker.wait(lambda: any(status.health is Health.STARTING for status in worker.statuses))
        gate = PlainGate(worker.judges)
        try:
            gate.ask(EXEC, str(script), is_held=False)
        finally:
            gate.close()
        assert all(status.health is Health.STARTING for status in worker.statuses[-1:])
        worker.configure(state=ModuleState.DETECT)
        listed = worker.run(CommandKind.LIST_SOFTWARE, text="used.sh").result["items"]
        assert (listed[0]["path"], listed[0]["state"]) == (str(script), "trusted")
    finally:
        worker.stop()


def test_a_held_question_is_answered_by_the_inventory(worker, gate, folder):
    worker.configure()
    assert gate.ask(EXEC, str(folder / "known")) == (True, False)
    assert gate.ask(OPEN, str(folder / "known"))[0]
    path = unknown(folder, "held", 3)
    assert gate.ask(EXEC, path) == (False, True)
    # A denied opening must not be remembered for those who may read it.
    assert gate.ask(OPEN, path) == (False, False)


@pytest.mark.skipif(not os.path.exists("/var/lib/dpkg/info/coreutils.md5sums"), reason="coreutils is not dpkg's here")
def test_a_packages_own_file_that_nobody_was_seen_installing_is_recognised_where_only_root_can_write(worker, gate):
    worker.configure()
    assert gate.ask(EXEC, "/usr/bin/true") == (True, True)
    worker.configure(ruleset(RuleAction.BLOCK, PackageEntry(name="coreutils")))
    assert gate.ask(EXEC, "/usr/bin/true") == (False, True)


def test_what_is_needed_to_sign_in_is_never_blocked(worker, gate):
    worker.configure(ruleset(RuleAction.BLOCK, PathEntry(pattern="/usr/**"), PathEntry(pattern="/lib/**")))
    assert gate.ask(EXEC, "/usr/bin/id")[0] is False
    for path in ("/bin/sh", "/bin/bash", "/usr/bin/dpkg", "/bin/su", "/sbin/init"):
        real = os.path.realpath(path)
        if os.path.exists(real) and real.startswith("/usr/"):
            assert gate.ask(EXEC, real)[0], path
    listed = subprocess.run(["/usr/bin/ldd", os.path.realpath("/bin/su")], capture_output=True, check=True, timeout=10).stdout
    libraries = [os.path.realpath(found) for found in re.findall(r"(/\S+) \(0x", listed.decode())]
    assert libraries
    for path in libraries:
        assert gate.ask(OPEN, path)[0], path


def test_a_file_that_is_written_by_somebody_is_told_of_with_who_it_was(worker, gate, folder):
    worker.configure(state=ModuleState.DETECT)
    path = unknown(folder, "brought", 4)
    gate.ask(WRITTEN, path, is_held=False)
    event = worker.next_event("software.appeared", path)
    assert event.details["brought_by"]["user"] == "root"
    assert event.details["state"] == "unrecognised"
    assert event.details["sha256"] == hashlib.sha256(TRUE + b"unknown 4").hexdigest()
    pathlib.Path(path).write_bytes(b"text")
    pathlib.Path(path).chmod(0o644)
    gate.ask(WRITTEN, path, is_held=False)
    worker.wait(lambda: worker.run(CommandKind.LIST_SOFTWARE, text="brought").result["items"] == [])


def test_a_change_that_nobody_was_seen_making_is_found_when_it_runs(worker, gate, folder):
    path = unknown(folder, "moved-over", 11)
    worker.configure(state=ModuleState.DETECT)
    worker.run(CommandKind.BUILD_INVENTORY)
    os.rename(unknown(folder, "elsewhere", 12), path)
    gate.ask(EXEC, path, is_held=False)
    assert worker.next_event("software.would_block", path).details["reason_code"] == "changed"
    changed = worker.next_event("software.changed", path)
    assert changed.details["previous_sha256"] == hashlib.sha256(TRUE + b"unknown 11").hexdigest()
    assert "brought_by" not in changed.details


def test_a_change_of_the_agents_own_programs_is_grave(worker, gate):
    worker.configure(state=ModuleState.DETECT)
    path = os.path.realpath(keibi.__file__)
    gate.ask(WRITTEN, path, is_held=False)
    event = worker.next_event("software.appeared", path)
    assert event.severity is Severity.HIGH
    assert "of the agent itself" in event.message


def test_a_file_too_large_to_be_read_is_never_recognised_and_holds_nobody_up(worker, gate, folder):
    worker.configure()
    path = unknown(folder, "sparse", 10)
    os.truncate(path, 100 << 30)
    started = time.monotonic()
    assert not gate.ask(EXEC, path)[0]
    assert time.monotonic() - started < 1
    assert worker.next_event("software.blocked", path).details.get("sha256", "") == ""
    os.unlink(path)


def test_an_object_file_may_be_read_and_a_directory_of_them_compiled(worker, gate, folder):
    worker.configure()
    path = folder / "x.o"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x01\x00" + bytes(46))
    assert gate.ask(OPEN, str(path)) == (True, True)


def test_excluded_folders_are_left_alone(worker, gate, folder):
    (folder / "excluded").mkdir()
    path = unknown(folder, "excluded/x", 5)
    settings = ApplicationControlSettings(inventory_cpu_percent=400, excluded_directories=(str(folder / "excluded"),))
    worker.configure(settings=settings)
    assert gate.ask(EXEC, path)[0]
    assert worker.events_of("software.blocked", path) == []


def test_an_unlocked_computer_holds_nothing_and_tells_everything(worker, gate, folder):
    worker.configure()
    while gate.terms["mode"] != "prevent":
        gate.next_terms()
    path = unknown(folder, "locked", 6)
    assert not gate.ask(EXEC, path)[0]
    worker.run(CommandKind.SET_MAINTENANCE, is_local=True, unlock=True, minutes=1)
    assert gate.next_terms()["mode"] == "watch"
    other = unknown(folder, "unlocked", 7)
    assert gate.ask(EXEC, other)[0]
    worker.next_event("software.would_block", other)
    worker.run(CommandKind.SET_MAINTENANCE, is_local=True, unlock=True, minutes=0)
    assert gate.next_terms()["mode"] == "prevent"
    assert not gate.ask(EXEC, unknown(folder, "again", 8))[0]


def test_what_the_gate_tells_is_told_on(worker, gate, folder):
    worker.configure()
    path = unknown(folder, "late", 9)
    key = judging.FileKey.of(os.stat(path))
    gate.say(judging.told_message(judging.Told("overdue", was_allowed=False, pid=os.getpid(), path=os.fsencode(path), key=key)))
    event = worker.next_event("software.overdue", path)
    assert event.action == "blocked"
    # After an overflow the file systems are looked through again.
    (folder / "unseen").write_bytes(TRUE + b"unseen")
    (folder / "unseen").chmod(0o755)
    gate.say(judging.told_message(judging.Told("overflow")))
    assert worker.next_event("software.appeared", str(folder / "unseen")).details["source"] == "inventory"


def test_the_status_follows_the_gate(worker, gate):
    worker.configure()
    worker.wait(lambda: worker.statuses[-1].health is Health.ACTIVE, 15)
    gate.say(judging.state_message(judging.GateState(is_enforcing=False, reason="the self-test failed")))
    worker.wait(lambda: any(one.reason == "the self-test failed" for one in worker.statuses[-1].not_enforced), 15)


def test_a_thousand_questions_are_answered_in_little_time(worker, gate, folder):
    worker.configure()
    path = str(folder / "known")
    started = time.monotonic()
    for _ in range(1000):
        assert gate.ask(EXEC, path)[0]
    assert time.monotonic() - started < 10
