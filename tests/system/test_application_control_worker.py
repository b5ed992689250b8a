"""The real application control worker and a real private gate: what runs, what is held, what is told, what survives."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from keibi.agent.gate.private import PrivateGate
from keibi.agent.ports import Happening, Observation
from keibi.contract.commands import CommandKind, CommandState
from keibi.contract.events import Actor, EventAction
from keibi.contract.names import ModuleId, Severity
from keibi.contract.policy import AssignedRule, ModulePolicy, ModuleState
from keibi.contract.status import Health
from keibi.protection.application_control.rules import AppliesTo, PathEntry, RuleAction
from keibi.protection.application_control.settings import ApplicationControlSettings, InlineCode, Unrecognised
from tests.system.agent_run import wait_for
from tests.system.application_control_worker import (
    ApplicationControlWorker,
    PlainGate,
    hash_entry,
    module_policy,
    ruleset,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root")

QUICK = ApplicationControlSettings(inventory_cpu_percent=400)
TRUE = pathlib.Path(os.path.realpath("/bin/true")).read_bytes()
SCRIPT = b"#!/bin/sh\necho ran\n"


def variant(number: int) -> bytes:
    """Return a program that nobody knows, another one for each number: bytes after an ELF file change nothing of what it does."""
    return TRUE + b"variant %d" % number


@pytest.fixture
def known(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with what is on the computer when protection begins."""
    folder = tmp_path / "known"
    folder.mkdir()
    (folder / "program").write_bytes(TRUE)
    (folder / "program").chmod(0o755)
    (folder / "script.sh").write_bytes(b"#!/bin/sh\necho known\n")
    (folder / "text.txt").write_bytes(b"no software")
    return folder


@pytest.fixture
def worker(tmp_path: pathlib.Path, known: pathlib.Path) -> Iterator[ApplicationControlWorker]:
    tmp_path.chmod(0o755)
    worker = ApplicationControlWorker(str(tmp_path / "agent"), roots=(str(known),))
    yield worker
    worker.stop()


@pytest.fixture
def mount(tmp_path: pathlib.Path) -> str:
    folder = tmp_path / "mount"
    folder.mkdir()
    return str(folder)


COPY = (
    *("/usr/bin/python3", "-c"),
    "import sys, time; file = open(sys.argv[2], 'wb'); file.write(open(sys.argv[1], 'rb').read()); file.close(); time.sleep(0.5)",
)
"""A copying program that stays for a moment: without the sensor, one that has ended is not known."""


def can_run(gate: PrivateGate, path: str) -> bool:
    return gate.run([path]).returncode == 0


# --- what runs


def test_known_software_runs_and_unknown_software_does_not(worker, mount):
    worker.configure()
    with PrivateGate(mount, worker.judges) as gate:
        known = gate.write("known", TRUE, mode=0o755)
        unknown = gate.write("unknown", variant(1), mode=0o755)
        assert can_run(gate, known)
        assert not can_run(gate, unknown)
        event = worker.next_event("software.blocked", unknown)
    assert event.action is EventAction.BLOCKED
    assert event.details["reason_code"] == "unrecognised"
    assert event.details["sha256"] == hashlib.sha256(variant(1)).hexdigest()
    assert event.details["file_type"] == "program"
    assert event.details["is_proof"] is True
    assert event.details["process_chain"][0]["process"].endswith("nsenter")
    assert event.actor.user == "root"
    appeared = worker.next_event("software.appeared", unknown)
    assert appeared.details["brought_by"]["process"] == os.path.realpath("/proc/self/exe")
    assert worker.events_of("software.appeared", known) == []


def test_a_changed_program_is_told_of_with_what_it_was(worker, mount):
    worker.configure()
    with PrivateGate(mount, worker.judges) as gate:
        path = gate.write("program", TRUE, mode=0o755)
        assert can_run(gate, path)
        gate.write("program", variant(2), mode=0o755)
        assert not can_run(gate, path)
        event = worker.next_event("software.blocked", path)
        assert event.details["reason_code"] == "changed"
        changed = worker.next_event("software.changed", path)
    assert changed.details["previous_sha256"] == hashlib.sha256(TRUE).hexdigest()


def test_a_library_or_script_is_let_be_where_the_policy_does_not_control_them(worker, mount):
    settings = ApplicationControlSettings(inventory_cpu_percent=400, control_libraries=False, control_scripts=False)
    worker.configure(settings=settings)
    with PrivateGate(mount, worker.judges) as gate:
        script = gate.write("x.sh", SCRIPT)
        assert gate.run(["/bin/sh", script]).stdout == b"ran\n"
        gate.run(["/bin/chmod", "755", script])
        assert not can_run(gate, script)


def test_allow_until_blocked_lets_unknown_software_run_and_tells_that_it_came(worker, mount):
    worker.configure(settings=ApplicationControlSettings(inventory_cpu_percent=400, unrecognised=Unrecognised.ALLOW))
    with PrivateGate(mount, worker.judges) as gate:
        unknown = gate.write("unknown", variant(3), mode=0o755)
        assert can_run(gate, unknown)
        worker.next_event("software.appeared", unknown)
    assert worker.events_of("software.blocked") == []


@pytest.mark.parametrize("state", [ModuleState.DETECT, ModuleState.PREVENT])
def test_a_block_rule_holds_in_both_modes_also_against_known_software(worker, mount, state):
    settings = ApplicationControlSettings(inventory_cpu_percent=400, unrecognised=Unrecognised.ALLOW)
    worker.configure(ruleset(RuleAction.BLOCK, hash_entry(TRUE), name="ac-global-block"), state=state, settings=settings)
    with PrivateGate(mount, worker.judges) as gate:
        known, other = gate.write("known", TRUE, mode=0o755), gate.write("other", variant(4), mode=0o755)
        assert not can_run(gate, known)
        assert can_run(gate, other)
        event = worker.next_event("software.blocked", known)
    assert (event.rule_id, event.rule_version, event.severity) == ("ac-global-block", 1, Severity.HIGH)


def test_an_allow_rule_by_path_needs_a_place_that_only_root_can_write(worker, mount):
    worker.configure(ruleset(RuleAction.ALLOW, PathEntry(pattern=f"{mount}/tools/*")))
    with PrivateGate(mount, worker.judges) as gate:
        path = gate.write("tools/x", variant(5), mode=0o755)
        # The folder of temporary files, above it all, is everybody's: the rule must not hold there.
        is_everybodys = any(os.stat(folder).st_mode & 0o022 for folder in pathlib.Path(mount).parents)
        assert can_run(gate, path) is not is_everybodys
        loose = PathEntry(pattern=f"{mount}/tools/*", only_root_writable=False)
        worker.configure(ruleset(RuleAction.ALLOW, loose))
        assert can_run(gate, path)


def test_an_executed_file_that_is_denied_again_and_again_is_told_of_once_and_counted(worker, mount):
    worker.configure()
    with PrivateGate(mount, worker.judges) as gate:
        unknown = gate.write("unknown", variant(6), mode=0o755)
        for _ in range(20):
            assert not can_run(gate, unknown)
        worker.next_event("software.blocked", unknown)
    worker.stop()
    # At its end it tells what it has only counted; those events stay in its outbox for the next start.
    again = ApplicationControlWorker(worker.directory)
    try:
        again.wait(lambda: any(event.details.get("repeat_count") for event in again.events))
        counted = [event for event in again.events if event.details.get("repeat_count")]
        assert [(event.subject, event.details["repeat_count"]) for event in counted] == [(unknown, 19)]
    finally:
        again.stop()


def test_inline_code_is_reported_where_the_policy_says_so(worker, mount, known):
    interpreter = pathlib.Path(os.path.realpath("/usr/bin/python3")).read_bytes()
    (known / "python3").write_bytes(interpreter)
    settings = ApplicationControlSettings(
        inventory_cpu_percent=400,
        inline_code=InlineCode.REPORT,
        inline_code_from_uid=0,
        interpreters=(f"{mount}/python3",),
    )
    worker.configure(settings=settings)
    with PrivateGate(mount, worker.judges) as gate:
        path = gate.write("python3", interpreter, mode=0o755)
        done = gate.run([path, "-c", "print('secret'[::-1])"], environment={"PYTHONHOME": "/usr"})
        assert done.stdout == b"terces\n"
        event = worker.next_event("software.inline_code", path)
    assert event.details["inline"] == "command"
    assert event.details["command_line"] == f"{path} -c print('secret'[::-1])"


def test_what_a_proof_brings_is_told_as_a_proof_alone_though_the_computers_own_gate_meets_it(worker, mount):
    worker.configure()
    with PrivateGate(mount, worker.judges) as gate:
        gate.run(["/usr/bin/touch", f"{mount}/unknown"])
        # Now, since nobody is let open it later.
        descriptor = os.open(f"/proc/{gate.pid}/root{mount}/unknown", os.O_RDONLY)
        gate.run(["/bin/dd", f"of={mount}/unknown", "conv=notrunc", "status=none"], input_=variant(11))
        unknown = f"{mount}/unknown"
        gate.run(["/bin/chmod", "755", unknown])
        told = worker.next_event("software.appeared", unknown)
        assert told.details["is_proof"] is True
        own = PlainGate(worker.judges)
        own.ask("written", unknown, is_held=False, descriptor=descriptor)
        assert own.ask("exec", unknown, descriptor=descriptor) == (True, False), "the private gate decides there"
        own.close()
        os.close(descriptor)
        assert not can_run(gate, unknown)
        worker.next_event("software.blocked", unknown)
    assert [event.details.get("is_proof") for event in worker.events if event.kind != "inventory.finished"] == [True, True]


# --- who brings software


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg here")
def test_what_dpkg_installs_runs_at_once_and_what_others_unpack_does_not(worker, mount, tmp_path):
    worker.configure()
    package = built_package(tmp_path, variant(7))
    with PrivateGate(mount, worker.judges, options="size=64m,mode=0755") as gate:
        gate.run(["/bin/mkdir", "-p", f"{mount}/root/var/lib/dpkg/info", f"{mount}/root/var/lib/dpkg/updates"])
        gate.run(["/bin/touch", f"{mount}/root/var/lib/dpkg/status"])
        installed = gate.run(["dpkg", f"--root={mount}/root", "--force-all", "--log=/dev/null", "-i", str(package)])
        assert installed.returncode == 0, installed.stderr
        assert can_run(gate, f"{mount}/root/usr/bin/keibi-sample")
        # The package's own script has brought something too.
        assert can_run(gate, f"{mount}/root/usr/bin/keibi-made")
        # What anybody else unpacks is not trusted, even by the same program.
        gate.run(["/bin/mkdir", f"{mount}/unpacked"])
        gate.run(["dpkg-deb", "-x", str(built_package(tmp_path, variant(8))), f"{mount}/unpacked"])
        assert not can_run(gate, f"{mount}/unpacked/usr/bin/keibi-sample")
        worker.next_event("software.appeared", f"{mount}/unpacked/usr/bin/keibi-sample")
    assert worker.events_of("software.appeared", f"{mount}/root/usr/bin/keibi-sample") == []


def built_package(tmp_path: pathlib.Path, content: bytes) -> pathlib.Path:
    """Return a small package with a program, and a script that makes another one."""
    root = tmp_path / f"package{len(list(tmp_path.iterdir()))}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/keibi-sample").write_bytes(content)
    (root / "usr/bin/keibi-sample").chmod(0o755)
    (root / "DEBIAN/control").write_text(
        "Package: keibi-sample\nVersion: 1.0\nArchitecture: all\nMaintainer: Test <test@example.com>\nDescription: a sample\n"
    )
    script = root / "DEBIAN/postinst"
    script.write_text(
        "#!/bin/sh\nset -e\nto=$DPKG_ROOT/usr/bin\n"
        "/bin/cp $to/keibi-sample $to/keibi-made\nprintf made >> $to/keibi-made\nchmod 755 $to/keibi-made\n"
    )
    script.chmod(0o755)
    built = root.with_suffix(".deb")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(root), str(built)], check=True, capture_output=True, timeout=30)
    return built


def test_what_a_named_deployment_program_writes_is_trusted_with_all_that_it_starts(worker, mount):
    settings = ApplicationControlSettings(inventory_cpu_percent=400, trusted_updaters=("/usr/bin/env",))
    worker.configure(settings=settings)
    with PrivateGate(mount, worker.judges) as gate:
        source = gate.write("source", variant(9), mode=0o644)
        # env becomes the program that it starts, so it stands for nothing here ...
        gate.run(["/usr/bin/env", "cp", source, f"{mount}/by-env"])
        gate.run(["/bin/chmod", "755", f"{mount}/by-env"])
        assert not can_run(gate, f"{mount}/by-env")
        # ... while flock stays, and is the parent of who writes.
        worker.configure(settings=ApplicationControlSettings(inventory_cpu_percent=400, trusted_updaters=("/usr/bin/flock",)))
        gate.run(["/usr/bin/flock", "/dev/null", *COPY, source, f"{mount}/by-flock"])
        gate.run(["/bin/chmod", "755", f"{mount}/by-flock"])
        assert can_run(gate, f"{mount}/by-flock")


def test_pip_of_a_named_environment_brings_what_is_trusted_inside_it_only(worker, mount):
    environment = f"{mount}/venv"
    worker.configure(settings=ApplicationControlSettings(inventory_cpu_percent=400, trusted_virtual_environments=(environment,)))
    with PrivateGate(mount, worker.judges) as gate:
        gate.run(["/bin/mkdir", "-p", f"{environment}/bin"])
        gate.run(["/bin/ln", "-s", "/usr/bin/python3", f"{environment}/bin/python"])
        # Stands for pip: the same interpreter, the environment's own script of that name.
        gate.write("venv/bin/pip", COPY[2].encode())
        inside, outside = f"{environment}/tool.sh", f"{mount}/outside.sh"
        for number, target in enumerate((inside, outside)):
            source = gate.write(f"source{number}.txt", b"echo ran %d\n" % number)
            gate.run(["/usr/bin/python3", f"{environment}/bin/pip", source, target])
        assert gate.run(["/bin/sh", inside]).stdout == b"ran 0\n"
        assert gate.run(["/bin/sh", outside]).returncode != 0
        worker.next_event("software.blocked", outside)


def test_maintenance_trusts_what_is_written_until_it_ends(worker, mount):
    worker.configure()
    with PrivateGate(mount, worker.judges) as gate:
        before = gate.write("before", variant(10), mode=0o755)
        assert not can_run(gate, before)
        started = worker.run(CommandKind.SET_MAINTENANCE, minutes=5)
        assert started.result["until"] > time.time() + 200
        worker.next_event("maintenance.started")
        during = gate.write("during", variant(11), mode=0o755)
        assert can_run(gate, during)
        # What is written anew with the same content is trusted wherever it lies.
        gate.write("again", variant(10), mode=0o755)
        assert can_run(gate, before)
        worker.run(CommandKind.SET_MAINTENANCE, minutes=0)
        worker.next_event("maintenance.ended")
        after = gate.write("after", variant(12), mode=0o755)
        assert not can_run(gate, after)
        assert can_run(gate, during)


def test_maintenance_survives_a_crash_of_the_worker(worker, mount):
    worker.configure()
    worker.run(CommandKind.SET_MAINTENANCE, minutes=5)
    worker.kill()
    again = ApplicationControlWorker(worker.directory, roots=("/nowhere",))
    try:
        again.configure()
        with PrivateGate(mount, again.judges) as gate:
            assert can_run(gate, gate.write("x", variant(13), mode=0o755))
    finally:
        again.stop()


# --- the inventory


def test_the_inventory_says_what_is_there_and_where_it_came_from(worker, known):
    worker.configure()
    found = worker.run(CommandKind.LIST_SOFTWARE).result
    assert [item["path"] for item in found["items"]] == [str(known / "program"), str(known / "script.sh")]
    assert (found["total_count"], found["unrecognised_count"], found["next"]) == (2, 0, "")
    program, script = found["items"]
    assert (program["kind"], program["state"], program["sha256"]) == ("program", "trusted", hashlib.sha256(TRUE).hexdigest())
    assert script["kind"] == "script"
    page = worker.run(CommandKind.LIST_SOFTWARE, limit=1).result
    assert page["next"] == str(known / "program")
    rest = worker.run(CommandKind.LIST_SOFTWARE, limit=5, after=page["next"]).result
    assert [item["path"] for item in rest["items"]] == [str(known / "script.sh")]
    assert worker.run(CommandKind.LIST_SOFTWARE, text="script").result["items"][0]["path"] == str(known / "script.sh")
    assert worker.run(CommandKind.LIST_SOFTWARE, limit="x").state is CommandState.FAILED


@pytest.mark.skipif(not os.path.exists("/var/lib/dpkg/info/coreutils.md5sums"), reason="coreutils is not dpkg's here")
def test_a_packages_file_is_known_by_its_package(tmp_path):
    worker = ApplicationControlWorker(str(tmp_path / "agent"), roots=("/usr/bin/true", "/usr/sbin"))
    try:
        worker.configure()
        items = worker.run(CommandKind.LIST_SOFTWARE, text="/usr/sbin/chroot").result["items"]
        assert items[0]["package"]["name"] == "coreutils"
        assert items[0]["package"]["version"]
    finally:
        worker.stop()


def test_what_changed_while_the_worker_was_away_is_found_at_its_start(worker, known):
    worker.configure()
    worker.kill()
    (known / "new").write_bytes(variant(14))
    (known / "new").chmod(0o755)
    (known / "program").write_bytes(variant(15))
    (known / "script.sh").unlink()
    again = ApplicationControlWorker(worker.directory, roots=(str(known),))
    try:
        again.configure()
        assert again.next_event("software.appeared", str(known / "new")).details["source"] == "inventory"
        changed = again.next_event("software.changed", str(known / "program"))
        assert changed.details["previous_sha256"] == hashlib.sha256(TRUE).hexdigest()
        items = again.run(CommandKind.LIST_SOFTWARE).result["items"]
        assert {os.path.basename(item["path"]): item["state"] for item in items} == {
            "new": "unrecognised",
            "program": "unrecognised",
        }
        # Taking the inventory anew is a decision: then what is there is trusted.
        assert again.run(CommandKind.BUILD_INVENTORY).state is CommandState.DONE
        assert again.run(CommandKind.LIST_SOFTWARE).result["unrecognised_count"] == 0
    finally:
        again.stop()


def test_a_build_that_is_killed_begins_again_and_reads_nothing_twice(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3000):
        (folder / f"x{number}.sh").write_bytes(b"#!/bin/sh\n" + b"x" * number)
    worker = ApplicationControlWorker(str(tmp_path / "agent"), roots=(str(folder),))
    worker.apply(module_policy(settings=ApplicationControlSettings(inventory_cpu_percent=10)))
    worker.wait(lambda: any(status.health is Health.STARTING for status in worker.statuses))
    worker.kill()
    again = ApplicationControlWorker(str(tmp_path / "agent"), roots=(str(folder),))
    try:
        again.configure()
        result = again.run(CommandKind.SCAN).result
        assert (result["software_count"], result["read_count"], result["drift_count"]) == (3000, 0, 0)
        assert len(again.events_of("inventory.finished")) == 1
    finally:
        again.stop()


# --- policies


def test_a_policy_that_cannot_be_read_changes_nothing(worker, mount):
    worker.configure()
    bad = ruleset(RuleAction.ALLOW, PathEntry(pattern="/a**b"))
    assert "must be a whole part" in worker.apply(module_policy((bad,))).error
    settings = b'{"unrecognised": "block", "colour": "red"}'
    assert "colour" in worker.apply(ModulePolicy(ModuleId.APPLICATION_CONTROL, ModuleState.PREVENT, settings)).error
    body = AssignedRule("ac-x", 1, b"no json")
    assert worker.apply(ModulePolicy(ModuleId.APPLICATION_CONTROL, ModuleState.PREVENT, b"{}", [body])).error
    relative = ApplicationControlSettings(trusted_updaters=("deploy",))
    assert "not absolute" in worker.apply(module_policy(settings=relative)).error
    with PrivateGate(mount, worker.judges) as gate:
        assert not can_run(gate, gate.write("unknown", variant(16), mode=0o755))


def test_a_rule_for_software_that_is_not_installed_is_left_out(worker, mount):
    blocked = ruleset(RuleAction.BLOCK, hash_entry(TRUE), applies_to=AppliesTo(software=["no-such-package-*"]))
    worker.configure(blocked)
    with PrivateGate(mount, worker.judges) as gate:
        assert can_run(gate, gate.write("known", TRUE, mode=0o755))
    assert worker.statuses[-1].rule_count == 0


def test_policies_change_under_load_and_every_answer_fits_one_of_them(worker, mount):
    allow = ruleset(RuleAction.ALLOW, hash_entry(variant(17)))
    worker.configure()
    with PrivateGate(mount, worker.judges) as gate:
        path = gate.write("x", variant(17), mode=0o755)
        known = gate.write("known", TRUE, mode=0o755)
        stop, seen, failed = threading.Event(), [], []

        def load() -> None:
            while not stop.is_set():
                seen.append(gate.run([path]).returncode)
                if gate.run([known]).returncode:
                    failed.append(known)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(12):
            worker.configure(*((allow,) if number % 2 else ()))
            reached = len(seen) + 4
            wait_for(lambda reached=reached: len(seen) >= reached, "programs run under this policy")
        stop.set()
        for thread in threads:
            thread.join(20)
        assert failed == []
        assert set(seen) == {0, 126}
        worker.configure(allow)
        assert can_run(gate, path)
        worker.configure()
        assert not can_run(gate, path)


def test_nothing_hangs_when_the_worker_is_killed_under_load_and_protection_comes_back(worker, mount, known):
    worker.configure()
    with PrivateGate(mount, worker.judges) as gate:
        path, good = gate.write("x", variant(18), mode=0o755), gate.write("known", TRUE, mode=0o755)
        stop, codes = threading.Event(), []

        def load() -> None:
            while not stop.is_set():
                codes.append(gate.run([path], timeout_seconds=10).returncode)
                codes.append(gate.run([good], timeout_seconds=10).returncode)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(codes) >= 20, "programs run")
        worker.kill()
        again = ApplicationControlWorker(worker.directory, roots=(str(known),))
        try:
            again.configure()
            known_count = len(codes)
            wait_for(lambda: len(codes) >= known_count + 20, "programs run again")
            stop.set()
            for thread in threads:
                thread.join(20)
            assert set(codes) <= {0, 126}
            assert not can_run(gate, path)
            assert can_run(gate, good)
        finally:
            stop.set()
            again.stop()


# --- status, unlocking


def test_the_status_says_what_is_not_enforced(worker):
    worker.configure()
    assert worker.statuses[-1].health is Health.WARNING
    assert [one.code for one in worker.statuses[-1].not_enforced] == ["gate_away"]
    worker.configure(state=ModuleState.OFF)
    worker.wait(lambda: worker.statuses[-1].health is Health.INACTIVE)
    assert worker.run(CommandKind.LIST_SOFTWARE).state is CommandState.FAILED


def test_unlocking_is_for_the_computer_itself_and_survives_a_restart(worker):
    worker.configure()
    refused = worker.run(CommandKind.SET_MAINTENANCE, unlock=True, minutes=5)
    assert refused.state is CommandState.FAILED
    done = worker.run(CommandKind.SET_MAINTENANCE, is_local=True, unlock=True, minutes=5)
    assert done.state is CommandState.DONE
    assert worker.next_event("control.unlocked").severity is Severity.HIGH
    worker.wait(lambda: "unlocked" in [one.code for one in worker.statuses[-1].not_enforced])
    worker.kill()
    again = ApplicationControlWorker(worker.directory, roots=("/nowhere",))
    try:
        again.configure()
        again.wait(lambda: "unlocked" in [one.code for one in again.statuses[-1].not_enforced])
        again.run(CommandKind.SET_MAINTENANCE, is_local=True, unlock=True, minutes=0)
        again.wait(lambda: "unlocked" not in [one.code for one in again.statuses[-1].not_enforced])
    finally:
        again.stop()


def test_the_worker_asks_the_sensor_for_processes_and_knows_those_that_have_ended(worker, mount):
    worker.configure()
    assert worker.watches[-1].wants_processes
    with PrivateGate(mount, worker.judges) as gate:
        path = f"{mount}/short-lived"
        ended = subprocess.Popen(
            ["nsenter", f"--mount=/proc/{gate.pid}/ns/mnt", "/bin/sh", "-c", f"printf '#!/bin/sh\\n' > {path}"]
        )
        actor = Actor(process="/usr/bin/writer", pid=ended.pid, uid=33, user="www-data", source="bpf")
        ended.wait(10)
        worker.observe(Observation(Happening.PROCESS_STARTED, b"/usr/bin/writer", time.time(), actor=actor))
        worker.next_event("software.appeared", path)
