"""The inventory: trust belongs to content, changes are told from what is unknown, and nothing is lost by a kill."""

import pathlib
import time

import pytest

from keibi.agent.gate.judging import FileKey
from keibi.agent.modules.application_control.inventory import Inventory, Software
from keibi.agent.modules.application_control.lasting import MAX_MINUTES, Lasting
from keibi.agent.modules.application_control.reporting import Reporter
from keibi.contract.names import Severity
from keibi.protection.application_control.engine import Standing
from keibi.protection.application_control.events import FileKind, Kind, PackageRecord, ReasonCode

ONE, TWO = "1" * 64, "2" * 64
KEY = FileKey((1 << 64) - 5, (1 << 63) + 7, 10, 1_700_000_000_123_456_789, 1_700_000_000_123_456_790)


@pytest.fixture
def inventory(tmp_path: pathlib.Path) -> Inventory:
    found, damage = Inventory.open(str(tmp_path / "inventory.db"))
    assert damage == ""
    return found


def software(path: bytes = b"/bin/x", content: str = ONE, **more: object) -> Software:
    values: dict[str, object] = {"path": path, "key": KEY, "sha256": content, "kind": FileKind.PROGRAM, "is_trusted": True}
    return Software(**{**values, **more})  # type: ignore[arg-type]


def test_what_is_put_is_found_again_whole(inventory):
    kept = software(
        package=PackageRecord("nginx", "1", "Debian", "ABCD"),
        trusted_by=ReasonCode.TRUSTED_UPDATER,
        user="root",
        process="/usr/bin/dpkg",
        first_seen_at=5.0,
        previous_sha256=TWO,
    )
    inventory.put([kept])
    assert inventory.at(b"/bin/x") == kept
    assert inventory.content_of(KEY) == ONE
    assert inventory.content_of(FileKey(KEY.device, KEY.inode, 11, KEY.modified_ns, KEY.changed_ns)) == ""


def test_commits_leave_the_disk_to_the_checkpoint(inventory, tmp_path):
    inventory.put([software(b"/bin/%d" % number) for number in range(20_000)])
    log = tmp_path / "inventory.db-wal"
    assert log.stat().st_size > 1000 * 4096, "the log is as long as what was written"
    inventory.checkpoint()
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "inventory.db").write_bytes((tmp_path / "inventory.db").read_bytes())
    without_log, damage = Inventory.open(str(alone / "inventory.db"))
    assert (without_log.count(), damage) == ((20_000, 0), "")
    without_log.close()


def test_trust_belongs_to_content(inventory):
    inventory.put([software()])
    assert inventory.standing(b"/other", ONE)[0] is Standing.TRUSTED
    assert inventory.standing(b"/other", TWO)[0] is Standing.UNKNOWN
    assert inventory.standing(b"/bin/x", TWO)[0] is Standing.CHANGED
    inventory.put([software(content=TWO, is_trusted=False, previous_sha256=ONE)])
    assert inventory.standing(b"/bin/x", TWO)[0] is Standing.CHANGED
    assert inventory.standing(b"/other", ONE)[0] is Standing.UNKNOWN
    inventory.put([software(b"/new", TWO, is_trusted=False)])
    assert inventory.standing(b"/new", TWO)[0] is Standing.UNRECOGNISED
    assert inventory.standing(b"/new", "")[0] is Standing.UNKNOWN


def test_a_proof_trusts_nothing_outside_of_it(inventory):
    inventory.put([software(is_proof=True)])
    assert inventory.standing(b"/bin/x", ONE)[0] is Standing.UNKNOWN
    assert inventory.standing(b"/bin/x", ONE, is_proof=True)[0] is Standing.TRUSTED
    assert inventory.count() == (0, 0)
    assert inventory.page("", b"", 10) == []
    inventory.forget_proofs()
    assert inventory.standing(b"/bin/x", ONE, is_proof=True)[0] is Standing.UNKNOWN


def test_pages_follow_each_other_and_can_be_searched(inventory):
    inventory.put([software(b"/a/%d" % number, f"{number:064x}") for number in range(5)])
    assert [one.path for one in inventory.page("", b"/a/1", 2)] == [b"/a/2", b"/a/3"]
    assert [one.path for one in inventory.page("/4", b"", 9)] == [b"/a/4"]
    assert [one.path for one in inventory.page(f"{3:064x}", b"", 9)] == [b"/a/3"]
    assert inventory.page("100%", b"", 9) == []


def test_half_a_transaction_is_nothing(inventory):
    def begin() -> None:
        with inventory.transaction():
            inventory.put([software()])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin()
    assert inventory.at(b"/bin/x") is None


def test_a_damaged_database_is_moved_aside(tmp_path):
    path = tmp_path / "inventory.db"
    path.write_bytes(b"no database at all" * 100)
    inventory, damage = Inventory.open(str(path))
    assert "damaged" in damage
    assert inventory.count() == (0, 0)
    assert path.with_suffix(".db.damaged").exists()


def test_a_condition_lasts_over_a_restart_and_ends(inventory):
    maintenance = Lasting(inventory, "maintenance")
    assert not maintenance.is_on
    maintenance.begin(5, "somebody")
    again = Lasting(inventory, "maintenance")
    assert again.is_on
    assert 4 < again.minutes_left <= 5
    again.end()
    assert not Lasting(inventory, "maintenance").is_on


def test_a_clock_that_was_set_back_does_not_prolong_it(inventory):
    Lasting(inventory, "maintenance").begin(MAX_MINUTES * 100, "a future clock")
    assert Lasting(inventory, "maintenance").until <= time.time() + MAX_MINUTES * 60


def test_the_same_thing_again_and_again_is_told_once_and_counted(inventory):
    reporter = Reporter(inventory, lambda: 1, repeat_seconds=1000)
    for _ in range(5):
        reporter.tell(Kind.BLOCKED, Severity.HIGH, "Blocked.", same=("x",))
    reporter.tell(Kind.BLOCKED, Severity.HIGH, "Blocked.", same=("y",))
    assert reporter.count_again(("x",), 3)
    assert not reporter.count_again(("z",), 1)
    assert inventory.outbox.waiting_count() == 2
    reporter.flush()
    assert inventory.outbox.waiting_count() == 2
    reporter.flush(everything=True)
    events = inventory.outbox.next_frame().events
    assert [event.details.get("repeat_count", 0) for event in events] == [0, 0, 7]
    reporter.flush(everything=True)
    assert inventory.outbox.waiting_count() == 3


def test_what_is_due_is_told_anew(inventory):
    reporter = Reporter(inventory, lambda: 1, repeat_seconds=0)
    for _ in range(3):
        reporter.tell(Kind.BLOCKED, Severity.HIGH, "Blocked.", same=("x",))
    assert inventory.outbox.waiting_count() == 3
