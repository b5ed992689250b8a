"""Configuration, log, facts, stores and the other small parts of the agent core."""

import io
import os
import sqlite3
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.command_log import CommandLog
from keibi.agent.config import AgentConfig, load_config, parse_config, sample_toml
from keibi.agent.doctor import Outcome, examine
from keibi.agent.durable_file import write_durably
from keibi.agent.facts import collect_facts, read_machine_id
from keibi.agent.instance_lock import InstanceLock
from keibi.agent.log import Level, Log
from keibi.agent.policy_store import PolicyStore
from keibi.agent.safe_mode import ALL_WORKERS, SafeMode, StartRecord
from keibi.agent.status import StatusBoard, status_digest
from keibi.agent.transport import Backoff
from keibi.agent.worker_link import WorkerSpec
from keibi.contract.commands import Command, CommandKind, CommandResult, CommandState
from keibi.contract.names import ModuleId
from keibi.contract.policy import EffectivePolicy, ModuleState
from keibi.contract.status import Capability, Health, ModuleStatus, SpoolStatus
from keibi.errors import InputError, TryLaterError
from keibi.protection.base import outermost

# --- configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heartbeat_secs = 3", "did you mean 'heartbeat_seconds'?"),
        ("colour = 'red'", "the settings are manager_url"),
        ("heartbeat_seconds = -1", "heartbeat_seconds = -1: Expected `int` >= 0"),
        ("manager_url = 'http://x'", "manager_url = 'http://x'"),
        ("state_directory = 'relative'", "state_directory = 'relative'"),
        ("spool_max_bytes = '1 GB'", "Expected `int`, got `str`"),
        ("a = ", "not TOML"),
    ],
)
def test_a_wrong_setting_is_told_with_its_value_and_what_to_do(text, message):
    with pytest.raises(InputError) as told:
        parse_config(text, where="agent.toml")
    assert message in str(told.value)
    assert "agent.toml" in str(told.value)


def test_no_file_means_defaults_unless_it_was_named(tmp_path):
    path = str(tmp_path / "none.toml")
    assert load_config(path) == AgentConfig()
    with pytest.raises(InputError, match="there is no configuration file"):
        load_config(path, must_exist=True)


def test_the_sample_names_every_setting_and_is_the_default():
    sample = sample_toml()
    assert parse_config(sample, where="sample") == AgentConfig()
    assert parse_config(sample.replace("\n#", "\n").replace("\n ", "\n# "), where="sample") == AgentConfig()
    for field in msgspec.structs.fields(AgentConfig):
        assert f"#{field.name} = " in sample


# --- log


def test_a_log_line_is_escaped_and_similar_ones_are_counted_instead_of_written():
    stream = io.StringIO()
    log = Log(Level.INFO, stream=stream, lines_a_minute=3)
    log.debug("not shown")
    for _ in range(5):
        log.warning("file changed", path=b"/tmp/a\nb\x1b[31m", size=1.50)
    log.error("other", TryLaterError("disk_full", "no room", hint="make some"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("warning file changed path=/tmp/a\\x0ab\\x1b[31m size=1.5")
    assert lines[3].endswith('error   other code=disk_full error="no room (make some)"')


def test_a_log_nobody_reads_any_more_is_no_reason_to_end():
    stream = io.StringIO()
    stream.close()
    Log(stream=stream).info("still here")


# --- facts


def test_facts_are_read_from_the_files_of_a_computer(tmp_path):
    files = {
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian \x1b GNU"\n',
        "proc/meminfo": "MemTotal:       2048 kB\n",
        "proc/net/fib_trie": "  |-- 10.0.0.5\n     /32 host LOCAL\n"
        "  |-- 127.0.0.1\n     /32 host LOCAL\n  |-- 10.0.0.0\n     /24 link UNICAST\n",
        "proc/net/if_inet6": "fe800000000000000000000000000001 02 40 20 80 eth0\n"
        "20010db8000000000000000000000001 02 40 00 80 eth0\n",
        "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
        "sys/class/dmi/id/board_asset_tag": "i-0abc\n",
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    facts = collect_facts(str(tmp_path))
    assert facts.machine_id == "0123456789abcdef0123456789abcdef"
    assert (facts.os_name, facts.os_version, facts.os_pretty_name) == ("debian", "12", "Debian \\x1b GNU")
    assert facts.memory_bytes == 2048 * 1024
    assert facts.addresses == ["10.0.0.5", "2001:db8::1"]
    assert (facts.cloud, facts.cloud_instance_id) == ("aws", "i-0abc")


def test_a_computer_that_tells_nothing_has_empty_facts(tmp_path):
    facts = collect_facts(str(tmp_path))
    assert (facts.machine_id, facts.addresses, facts.memory_bytes, facts.cloud) == ("", [], 0, "")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("uninitialized\n")
    assert read_machine_id(str(tmp_path)) == ""


# --- files


def test_a_file_is_replaced_whole_and_a_full_disk_leaves_the_old_one(tmp_path):
    path = str(tmp_path / "file")
    write_durably(path, b"old")
    assert os.stat(path).st_mode & 0o777 == 0o600
    os.mkdir(tmp_path / "not-there-later")
    with pytest.raises(TryLaterError, match="could not be written"):
        write_durably(str(tmp_path / "absent" / "file"), b"new")
    write_durably(path, b"new")
    assert os.listdir(tmp_path).count("file") == 1
    assert len([name for name in os.listdir(tmp_path) if name.endswith(".new")]) == 0


def test_the_lock_is_for_one_and_free_when_its_holder_dies(tmp_path):
    lock = InstanceLock(str(tmp_path))
    lock.take()
    with pytest.raises(TryLaterError, match=f"another agent \\(process {os.getpid()}\\)"):
        InstanceLock(str(tmp_path)).take()
    lock.release()
    program = (
        "import sys, os; from keibi.agent.instance_lock import InstanceLock as L; L(sys.argv[1]).take(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    lock.take()
    lock.release()


# --- policies


def policy(generation: int) -> EffectivePolicy:
    return EffectivePolicy(generation, f"policy {generation}")


def test_the_last_good_policy_stays_in_force_until_a_newer_one_is_accepted(tmp_path):
    store = PolicyStore(str(tmp_path), "1.0")
    assert (store.received_generation, store.in_force, store.candidate()) == (0, None, None)
    store.receive(policy(1))
    assert store.candidate() == policy(1)
    assert store.in_force is None
    store.accept(policy(1))
    store.receive(policy(2))
    store.refuse(2, "no such hash")
    store = PolicyStore(str(tmp_path), "1.0")
    assert store.in_force == policy(1)
    assert store.received_generation == 2
    assert store.error == "generation 2: no such hash"
    assert store.candidate() is None
    assert PolicyStore(str(tmp_path), "1.1").candidate() == policy(2)  # a new agent may understand it
    store.receive(policy(3))
    store.accept(policy(3))
    assert (store.in_force, store.error) == (policy(3), "")


def test_a_policy_that_the_agent_does_not_survive_is_counted_across_restarts(tmp_path):
    PolicyStore(str(tmp_path), "1.0").receive(policy(4))
    counts = [PolicyStore(str(tmp_path), "1.0").begin_attempt(4) for _ in range(4)]
    assert counts == [1, 2, 3, 4]
    assert PolicyStore(str(tmp_path), "1.0").begin_attempt(5) == 1


def test_a_damaged_policy_file_counts_as_absent_and_is_told(tmp_path):
    store = PolicyStore(str(tmp_path), "1.0")
    store.receive(policy(1))
    store.accept(policy(1))
    (tmp_path / "policy" / "in-force").write_bytes(b"\xc1junk")
    again = PolicyStore(str(tmp_path), "1.0")
    assert again.in_force is None
    assert "in-force" in again.damage
    assert again.candidate() == policy(1)


def test_a_policy_that_cannot_be_read_is_not_asked_for_again(tmp_path):
    store = PolicyStore(str(tmp_path), "1.0")
    store.receive(policy(1))
    store.accept(policy(1))
    store.refuse_unreadable(9, "from the future")
    again = PolicyStore(str(tmp_path), "1.0")
    assert (again.received_generation, again.in_force, again.candidate()) == (9, policy(1), None)
    assert PolicyStore(str(tmp_path), "1.1").received_generation == 1


# --- commands


def test_a_command_is_taken_up_once_and_its_result_stays_until_delivered(tmp_path):
    path = str(tmp_path / "commands.db")
    log = CommandLog(path)
    assert log.take_up("a")
    assert not log.take_up("a")
    log.finish(CommandResult("a", CommandState.DONE, "well"))
    log.finish(CommandResult("a", CommandState.FAILED, "second"))
    log.close()
    again = CommandLog(path)
    assert [(r.command_id, r.state) for r in again.undelivered()] == [("a", CommandState.DONE)]
    again.delivered(["a"])
    assert again.undelivered() == []
    assert not again.take_up("a")
    again.close()


def test_what_was_not_finished_is_known_after_a_restart_and_whole_where_it_was_kept(tmp_path):
    path = str(tmp_path / "commands.db")
    scan = Command("b", CommandKind.SCAN, ModuleId.ANTI_MALWARE, {"kind": "paths", "paths": ["/srv"]})
    log = CommandLog(path)
    log.take_up("a")
    log.take_up("b", scan)
    log.take_up("c", scan)
    log.finish(CommandResult("c", CommandState.DONE))
    log.close()
    again = CommandLog(path)
    assert again.unfinished() == [("a", None), ("b", scan)]
    again.finish(CommandResult("b", CommandState.DONE))
    assert again.unfinished() == [("a", None)]
    again.close()


def test_the_command_log_of_an_older_agent_keeps_its_undelivered_results(tmp_path):
    path = str(tmp_path / "commands.db")
    with sqlite3.connect(path) as older:
        older.execute(
            "CREATE TABLE commands (command_id TEXT PRIMARY KEY, taken_up_at REAL NOT NULL, result BLOB,"
            " is_delivered INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID"
        )
        done = msgspec.msgpack.encode(CommandResult("a", CommandState.DONE, "well"))
        older.executemany("INSERT INTO commands VALUES (?, ?, ?, 0)", [("a", 1.0, done), ("b", 2.0, None)])
    older.close()
    log = CommandLog(path)
    assert [result.message for result in log.undelivered()] == ["well"]
    assert log.unfinished() == [("b", None)]
    assert log.take_up("c", Command("c", CommandKind.SCAN))
    log.close()


def test_a_corrupt_command_log_is_moved_aside(tmp_path):
    path = tmp_path / "commands.db"
    path.write_bytes(b"not a database" * 1000)
    log = CommandLog(str(path))
    assert "moved aside" in log.corruption
    assert log.take_up("a")
    log.close()


# --- safe mode


def test_safe_mode_outlives_a_restart_and_is_left_by_name_or_for_all(tmp_path):
    mode = SafeMode(str(tmp_path))
    mode.enter("sensor", "kept crashing")
    mode.enter("integrity_monitoring", "too")
    again = SafeMode(str(tmp_path))
    assert again.reason("sensor") == "kept crashing"
    assert again.leave("sensor") == ["sensor"]
    assert again.reason("sensor") == ""
    again.enter(ALL_WORKERS, "the core")
    assert again.reason("anything") == "the core"
    assert again.leave("integrity_monitoring") == ["integrity_monitoring", ALL_WORKERS]
    assert SafeMode(str(tmp_path)).reasons() == {}


def test_starts_without_an_orderly_end_are_counted(tmp_path):
    assert [StartRecord(str(tmp_path)).begin() for _ in range(3)] == [0, 1, 2]
    StartRecord(str(tmp_path)).end()
    assert StartRecord(str(tmp_path)).begin() == 0
    (tmp_path / "starts.json").write_text("{}")
    assert StartRecord(str(tmp_path)).begin() == 0


# --- the rest


@pytest.mark.parametrize(
    ("roots", "expected"),
    [
        ([b"/etc", b"/etc/ssh", b"/etcetera"], [b"/etc", b"/etcetera"]),
        ([b"/", b"/usr"], [b"/"]),
        ([b"/a/b", b"/a"], [b"/a"]),
        ([b"/etc-old", b"/etc", b"/etc/x"], [b"/etc", b"/etc-old"]),
        ([], []),
    ],
)
def test_roots_beneath_others_are_left_out(roots, expected):
    assert outermost(set(roots)) == expected


@given(st.sets(st.lists(st.sampled_from([b"a", b"b", b"a-"]), min_size=1, max_size=3).map(lambda parts: b"/" + b"/".join(parts))))
def test_every_root_is_still_covered_and_none_twice(roots):
    kept = outermost(roots)

    def covers(above, root):
        return root == above or root.startswith(above + b"/")

    assert all(any(covers(above, root) for above in kept) for root in roots)
    assert all(not covers(a, b) for a in kept for b in kept if a is not b)


def test_waits_grow_up_to_a_bound_are_spread_and_heed_the_manager():
    backoff = Backoff()
    waits = [backoff.failed() for _ in range(200)]
    assert max(waits[:1]) <= 1.0
    assert max(waits) <= 60.0
    assert max(waits) - min(waits[10:]) > 20.0
    assert backoff.failed(TryLaterError("manager_busy", "busy", retry_after_seconds=30.0)) >= 30.0
    backoff.succeeded()
    assert backoff.failed() <= 1.0


def test_clock_and_load_do_not_change_the_digest_of_a_status_but_a_refused_policy_does():
    board = StatusBoard([])
    first = status_digest(board.build(SpoolStatus(), []))
    assert status_digest(board.build(SpoolStatus(waiting_count=5), [])) == first
    module = ModuleStatus(ModuleId.INTEGRITY_MONITORING, Health.ACTIVE, metrics={"worker_memory_bytes": 1.0})
    board.module_says(module)
    first, version = status_digest(board.build(SpoolStatus(), [])), board.version
    board.module_says(msgspec.structs.replace(module, metrics={"worker_memory_bytes": 2.0}))
    assert (status_digest(board.build(SpoolStatus(), [])), board.version) == (first, version)
    assert board.build(SpoolStatus(), []).modules[0].metrics == {"worker_memory_bytes": 2.0}
    board.module_says(msgspec.structs.replace(module, metrics={"drifts_waiting_count": 1.0}))
    assert status_digest(board.build(SpoolStatus(), [])) != first
    assert board.version > version
    first = status_digest(board.build(SpoolStatus(), []))
    board.policy_is(1, "refused", {})
    assert status_digest(board.build(SpoolStatus(), [])) != first


def test_the_doctor_finds_a_state_directory_that_others_can_read(tmp_path):
    (tmp_path / "state").mkdir(mode=0o755)
    rows = {row.check: row for row in examine(AgentConfig(state_directory=str(tmp_path / "state")))}
    assert rows["state directory"].outcome is Outcome.FAIL
    assert "chmod 0700" in rows["state directory"].what_to_do
    assert rows["identity"].outcome is Outcome.WARN


def test_a_filesystem_that_refuses_observation_is_told_with_the_module_that_wants_it():
    sensor = WorkerSpec(name="sensor", argv=("x",), serves=ModuleId.INTEGRITY_MONITORING, is_sensor=True)
    board = StatusBoard([sensor])
    board.policy_is(1, "", {ModuleId.INTEGRITY_MONITORING: ModuleState.REAL_TIME})
    board.module_says(ModuleStatus(ModuleId.INTEGRITY_MONITORING, Health.ACTIVE))
    board.worker_is_up(sensor, [Capability("fanotify_filesystem_marks", True, "/srv: overlay refuses")])
    (module,) = board.build(SpoolStatus(), []).modules
    assert module.health is Health.WARNING
    assert [lacking.reason for lacking in module.not_enforced] == ["/srv: overlay refuses"]
    board.policy_is(2, "", {ModuleId.INTEGRITY_MONITORING: ModuleState.ON})
    assert board.build(SpoolStatus(), []).modules[0].not_enforced == []
