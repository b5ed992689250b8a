"""What was scanned of the inventory: it waits, is trusted or not, and what is a threat stays one until it is none."""

import threading

import pytest

from keibi.agent.gate.judging import FileKey
from keibi.agent.modules.application_control import examined, examiner_link
from keibi.agent.modules.application_control.examined import Counts, Examinations
from keibi.agent.modules.application_control.examiner_link import ExaminerLink
from keibi.agent.modules.application_control.inventory import Inventory, Software
from keibi.agent.modules.application_control.places import Stage, stages_of
from keibi.agent.ports import Examined, ExaminerIs, ExaminerState, FileExamined, FileToExamine, ThreatNote
from keibi.protection.application_control.engine import Standing
from keibi.protection.application_control.events import FileKind, PackageRecord, ReasonCode

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


@pytest.fixture
def inventory(tmp_path):
    found, _ = Inventory.open(str(tmp_path / "inventory.db"))
    yield found
    found.close()


def put(inventory: Inventory, path: bytes, content: str, *, is_trusted: bool = False, **more: object) -> None:
    """Put a file in; unless it says otherwise it is held back."""
    key = FileKey(1, hash(path) & 0xFFFF, 10, 1, 1)
    inventory.put([Software(path=path, key=key, sha256=content, kind=FileKind.SCRIPT, is_trusted=is_trusted, **more)])  # type: ignore[arg-type]


def note(inventory: Inventory, *results: FileExamined) -> examined.Changed:
    with inventory.transaction():
        return Examinations(inventory).note(results)


def test_what_is_held_back_is_trusted_once_it_was_scanned_and_only_then(inventory):
    put(inventory, b"/opt/one", ONE)
    put(inventory, b"/opt/seen", TWO, trusted_by=ReasonCode.UNRECOGNISED)
    put(inventory, b"/usr/bin/packaged", THREE, is_trusted=True, package=PackageRecord("nginx"))
    examinations = Examinations(inventory)
    assert examinations.counts(is_exact=True) == Counts(unexamined=1, held_back=1)
    assert inventory.count() == (3, 1), "what waits for its scan is nothing to decide about"
    assert inventory.standing(b"/opt/one", ONE)[0] is Standing.UNRECOGNISED
    assert examinations.pending("", 10, 1000) == [FileToExamine(ONE, [b"/opt/one"])]
    note(inventory, FileExamined(ONE))
    assert inventory.standing(b"/opt/one", ONE)[0] is Standing.TRUSTED
    assert inventory.standing(b"/opt/seen", TWO)[0] is Standing.UNRECOGNISED
    assert examinations.counts(is_exact=True) == Counts()
    assert examinations.pending("", 10, 1000, are_threats=True) == []


def test_a_threat_is_not_trusted_wherever_it_lies_and_whoever_puts_it_there_until_it_is_none(inventory, tmp_path):
    put(inventory, b"/opt/one", ONE, is_trusted=True)
    put(inventory, b"/opt/seen", ONE, trusted_by=ReasonCode.UNRECOGNISED)
    changed = note(inventory, FileExamined(ONE, threat="Test.Marker"))
    assert [(one.path, one.threat) for one in changed.distrusted] == [(b"/opt/one", "Test.Marker")]
    put(inventory, b"/opt/two", ONE, is_trusted=True, trusted_by=ReasonCode.TRUSTED_UPDATER)
    assert note(inventory, FileExamined(ONE, threat="Test.Marker")).distrusted == ()
    assert inventory.trusted(ONE) is None
    assert inventory.count() == (3, 3)
    assert inventory.standing(b"/anywhere", ONE)[0] is Standing.MALICIOUS
    assert Examinations(inventory).counts().malicious == 3
    assert Examinations(inventory).trust_the_rest() == 0
    again, damage = Inventory.open(str(tmp_path / "inventory.db"))
    assert (again.standing(b"/anywhere", ONE)[0], damage) == (Standing.MALICIOUS, "")
    again.close()
    (pending,) = Examinations(inventory).pending("", 10, 1000, are_threats=True)
    assert pending.sha256 == ONE
    with inventory.transaction():
        changed = Examinations(inventory).take([ThreatNote(ONE), ThreatNote(TWO)])
    assert {one.path for one in changed.restored} == {b"/opt/one", b"/opt/two"}
    seen = inventory.at(b"/opt/seen")
    assert seen is not None
    assert not seen.is_trusted


def test_what_could_not_be_scanned_is_trusted_and_counted(inventory):
    put(inventory, b"/opt/one", ONE)
    put(inventory, b"/opt/two", TWO)
    note(inventory, FileExamined(ONE, gap="encrypted"), FileExamined(TWO, is_gone=True))
    assert Examinations(inventory).trust_the_rest() == 1
    assert Examinations(inventory).counts() == Counts(unexamined=1, partly_examined=1)
    assert Examinations(inventory).gaps([ONE, TWO]) == {ONE: "encrypted"}


def test_threats_that_are_remembered_have_a_limit(inventory, monkeypatch):
    monkeypatch.setattr(examined, "MAX_THREATS", 3)
    for number in range(5):
        note(inventory, FileExamined(f"{number:064}", threat="Test.Marker"))
    assert inventory.threat_count == 3
    assert [bool(inventory.threat_of(f"{number:064}")) for number in range(5)] == [False, False, True, True, True]


def test_an_inventory_of_the_first_schema_is_taken_over_and_trusts_nothing_more(inventory, tmp_path):
    put(inventory, b"/opt/seen", ONE, trusted_by=ReasonCode.INVENTORY)
    inventory.connection.execute("PRAGMA user_version=1")
    again, damage = Inventory.open(str(tmp_path / "inventory.db"))
    found = again.at(b"/opt/seen")
    assert found is not None
    assert (damage, found.is_held_back) == ("", False)
    again.close()


# --- the way to anti-malware


READY = ExaminerIs(ExaminerState.READY)
FILES = [FileToExamine(ONE, [b"/opt/one"])]


def ask(link: ExaminerLink, sent: list, *then: tuple[ExaminerIs | Examined, ...]) -> Examined | None:
    """Ask in a thread; after each question hand in the next answers."""
    answers: list[Examined | None] = []
    thread = threading.Thread(target=lambda: answers.append(link.ask(FILES, lambda: False)))
    thread.start()
    for count, messages in enumerate(then, start=1):
        for _ in range(1000):
            if len(sent) >= count or not thread.is_alive():
                break
            thread.join(0.01)
        for message in messages:
            link.take(Examined(sent[-1].number, message.files) if isinstance(message, Examined) else message)
    thread.join(10)
    assert answers, "it waits for ever"
    return answers[0]


def test_nobody_is_asked_while_anti_malware_is_off_or_unknown():
    sent: list = []
    link = ExaminerLink(sent.append)
    assert (link.ask(FILES, lambda: False), sent, link.is_ready) == (None, [], False)
    link.take(ExaminerIs(ExaminerState.OFF, "anti-malware is off by policy"))
    assert (link.ask(FILES, lambda: False), link.reason) == (None, "anti-malware is off by policy")


def test_an_examiner_that_starts_is_waited_for_only_for_a_while(monkeypatch):
    monkeypatch.setattr(examiner_link, "AWAY_SECONDS", 0.2)
    link = ExaminerLink(lambda message: None)
    link.take(ExaminerIs(ExaminerState.AWAY, "anti-malware has not started yet"))
    assert (link.ask(FILES, lambda: False), link.reason) == (None, "anti-malware has not started yet")


def test_an_answer_that_never_comes_is_given_up(monkeypatch):
    monkeypatch.setattr(examiner_link, "ANSWER_SECONDS", 0.2)
    link = ExaminerLink(lambda message: None)
    link.take(READY)
    assert link.ask(FILES, lambda: False) is None
    assert link.reason == "anti-malware did not answer within 0 s"


def test_an_examiner_that_was_killed_is_asked_again_when_it_is_back():
    sent: list = []
    link = ExaminerLink(sent.append)
    link.take(READY)
    away = ExaminerIs(ExaminerState.AWAY, "its worker ended")
    answer = ask(link, sent, (away, READY), (Examined(0, [FileExamined(ONE)]),))
    assert answer is not None
    assert answer.files == [FileExamined(ONE)]
    assert len(sent) == 2
    assert sent[0].number != sent[1].number


def test_one_that_dies_again_and_again_is_given_up():
    sent: list = []
    link = ExaminerLink(sent.append)
    link.take(READY)
    away = ExaminerIs(ExaminerState.AWAY, "its worker ended")
    assert ask(link, sent, *[(away, READY)] * examiner_link.TRIES) is None
    assert "again and again" in link.reason


# --- the order of the walk


def test_programs_of_the_system_are_looked_through_first_and_homes_last():
    stages = stages_of([b"/"])
    assert b"/usr" in stages[0].roots
    assert stages[-1].roots[-1] == b"/root"
    (middle,) = [stage for stage in stages if stage.roots == (b"/",)]
    assert middle.left_out == frozenset(stages[0].roots + stages[-1].roots)
    assert stages_of([b"/srv/x"]) == [Stage((b"/srv/x",))]
