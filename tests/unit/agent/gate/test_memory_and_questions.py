"""What the gate remembers, for whom it waits, and whom it asks."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.gate.held import Asked, Held, Questions
from keibi.agent.gate.judge_link import Outgoing
from keibi.agent.gate.judging import EXEC, OFF, OPEN, PREVENT, WATCH, WRITTEN, FileKey, Terms
from keibi.agent.gate.own_processes import OwnProcesses
from keibi.agent.gate.remembering import has_no_writer, is_settled, may_be_ignored
from keibi.agent.gate.verdicts import MAX_JUDGES, STAMP_BYTES, Verdicts, bit_of, identity_of
from keibi.agent.gate.wishes import Place, is_software, notification_mask, permission_mask, wish_of

STAMP, OTHER_STAMP = b"a" * STAMP_BYTES, b"b" * STAMP_BYTES
DISK = Place("254:0", 1, "ext4", ("/", "/srv"))
SERVER = Place("0:50", 2, "nfs4", ("/net",))


def test_bits_of_judges_and_events_are_all_different():
    bits = {bit_of(judge, event) for judge in range(MAX_JUDGES) for event in (EXEC, OPEN, WRITTEN)}
    assert len(bits) == MAX_JUDGES * 3


def test_a_verdict_is_found_for_the_same_stamp_only():
    verdicts = Verdicts()
    verdicts.remember(1, STAMP, 3, 4)
    assert verdicts.of(1, STAMP) == (3, 4)
    assert verdicts.of(1, OTHER_STAMP) == (0, 0)
    assert verdicts.of(2, STAMP) == (0, 0)


def test_a_later_verdict_of_one_judge_replaces_its_earlier_one_and_no_other():
    verdicts = Verdicts()
    verdicts.remember(1, STAMP, 0b011, 0b100)
    verdicts.remember(1, STAMP, 0b100, 0b001)
    assert verdicts.of(1, STAMP) == (0b110, 0b001)


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), max_size=300))
def test_memory_never_invents_and_never_exceeds_its_bound(steps):
    """Against a plain dictionary: what memory still knows is what was said last."""
    verdicts = Verdicts(most=10)
    said: dict[int, tuple[int, int]] = {}
    for identity, is_denied, is_forgotten in steps:
        if is_forgotten:
            verdicts.forget(identity)
            said.pop(identity, None)
        else:
            bits = (0, 1) if is_denied else (1, 0)
            verdicts.remember(identity, STAMP, *bits)
            said[identity] = bits
        assert len(verdicts) <= 10
        for known in range(41):
            assert verdicts.of(known, STAMP) in ((0, 0), said.get(known, (0, 0)))


def held(event: str = OPEN, identity: int = 1) -> Held:
    return Held(event, identity, STAMP, FileKey(1, identity, 1, 1, 1), b"/x", True, False, 0.0, 0, [(10, 100)])


def ask(questions: Questions, file: Held, judge: int, due_at: float) -> Asked:
    asked = Asked(questions.next_id(), file, judge, bit_of(judge, file.event), due_at, Outgoing({}))
    questions.add(asked)
    return asked


def test_a_file_is_joined_until_nobody_is_missing():
    questions = Questions()
    file = held()
    first, second = ask(questions, file, 0, 5.0), ask(questions, file, 1, 6.0)
    questions.hold(file)
    assert questions.about(1, OPEN, STAMP) is file
    assert questions.about(1, OPEN, OTHER_STAMP) is None
    assert questions.about(1, EXEC, STAMP) is None
    questions.answered(first.id)
    assert questions.about(1, OPEN, STAMP) is file
    questions.answered(second.id)
    assert questions.about(1, OPEN, STAMP) is None
    assert questions.next_due() is None


def test_what_is_due_is_taken_out_once_and_its_late_verdict_is_recognised():
    questions = Questions()
    asked = ask(questions, held(), 0, 5.0)
    assert questions.next_due() == 5.0
    assert questions.overdue(4.9) == []
    assert questions.overdue(5.0) == [asked]
    assert questions.overdue(9.0) == []
    late = questions.answered(asked.id)
    assert late is asked
    assert late.is_overdue
    assert questions.answered(asked.id) is None


def test_late_questions_are_bounded():
    questions = Questions(most_late=3)
    all_asked = [ask(questions, held(identity=number), 0, 1.0) for number in range(10)]
    questions.overdue(2.0)
    assert sum(questions.answered(asked.id) is not None for asked in all_asked) == 3


def test_a_judge_that_is_gone_gives_up_its_questions_and_no_other_ones():
    questions = Questions()
    file = held()
    mine, other = ask(questions, file, 0, 5.0), ask(questions, file, 1, 5.0)
    assert questions.of_judge(0) == [mine]
    assert questions.open_of(file) == [other]


@pytest.mark.parametrize(
    ("mode", "is_proof", "may_hold", "held_events", "watched"),
    [
        (OFF, False, True, set(), set()),
        (OFF, True, True, set(), set()),
        (WATCH, False, True, set(), {EXEC, OPEN, WRITTEN}),
        (PREVENT, False, True, {EXEC, OPEN}, {WRITTEN}),
        (PREVENT, False, False, set(), {EXEC, WRITTEN}),
        (WATCH, True, True, {EXEC, OPEN}, {WRITTEN}),
        (WATCH, True, False, set(), {EXEC, WRITTEN}),
    ],
)
def test_terms_come_to_what_may_be_done(mode, is_proof, may_hold, held_events, watched):
    terms = Terms(module="m", mode=mode, events=(EXEC, OPEN, WRITTEN))
    wish = wish_of(0, terms, is_proof=is_proof, may_hold=may_hold)
    assert (wish.held, wish.watched) == (held_events, watched)


def test_nothing_is_held_up_anywhere_by_terms_that_watch():
    wish = wish_of(0, Terms(module="m", mode=WATCH, events=(EXEC, OPEN, WRITTEN)), is_proof=False, may_hold=True)
    assert permission_mask([wish], DISK) == 0
    assert notification_mask([wish], DISK) != 0


@pytest.mark.parametrize(
    ("places", "includes_network", "place", "is_covered"),
    [
        ((), False, DISK, True),
        (("/srv",), False, DISK, True),
        (("/home",), False, DISK, False),
        ((), False, SERVER, False),
        ((), True, SERVER, True),
        ((), False, Place("0:9", 3, "fuse.sshfs", ("/mnt",)), False),
        ((), False, Place("0:9", 3, "fuseblk", ("/mnt",)), True),
    ],
)
def test_places_and_servers(places, includes_network, place, is_covered):
    terms = Terms(module="m", mode=PREVENT, events=(OPEN,), places=places, includes_network=includes_network)
    wish = wish_of(0, terms, is_proof=False, may_hold=True)
    assert wish.covers(place) is is_covered
    assert bool(permission_mask([wish], place)) is is_covered


def test_exclusions_are_whole_directories():
    wish = wish_of(0, Terms(module="m", mode=PREVENT, excluded=("/a/b",)), is_proof=False, may_hold=True)
    assert wish.excludes(b"/a/b/c")
    assert wish.excludes(b"/a/b")
    assert not wish.excludes(b"/a/bc")
    assert not wish.excludes(b"/a")


@pytest.mark.parametrize(
    ("mode", "head", "path", "expected"),
    [
        (0o644, b"text", b"/x/notes.txt", False),
        (0o644, b"", b"/x/notes.txt", False),
        (0o644, b"\x7fELF", b"/x/notes.txt", True),
        (0o644, b"#!/b", b"/x/notes", True),
        (0o645, b"text", b"/x/notes", True),
        (0o644, b"text", b"/x/notes.py", True),
        (0o644, None, b"/x/notes.txt", True),  # not in memory: the judge looks
    ],
)
def test_software_is_told_by_its_head_its_mode_or_its_name(mode, head, path, expected):
    assert is_software((".py",), stat.S_IFREG | mode, head, path) is expected


def test_a_file_with_a_writer_is_noticed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x")
    with open(path, "rb") as reader:
        assert has_no_writer(reader.fileno())
        with open(path, "r+b"):
            assert not has_no_writer(reader.fileno())
        assert has_no_writer(reader.fileno())


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of root's")
@pytest.mark.parametrize(
    ("file_mode", "directory_mode", "owner", "expected"),
    [
        (0o644, 0o755, 0, True),
        (0o664, 0o755, 0, False),
        (0o646, 0o755, 0, False),
        (0o644, 0o775, 0, False),
        (0o644, 0o1777, 0, False),
        (0o644, 0o755, 65534, False),
    ],
)
def test_a_kernel_mark_is_only_for_what_is_roots_alone(tmp_path, file_mode, directory_mode, owner, expected):
    path = tmp_path / "x"
    path.write_bytes(b"x")
    path.chmod(file_mode)
    os.chown(path, owner, owner)
    tmp_path.chmod(directory_mode)
    status = os.stat(path)
    assert may_be_ignored(status, os.fsencode(path)) is expected
    other = tmp_path / "y"
    other.write_bytes(b"y")
    assert not may_be_ignored(status, os.fsencode(other)), "the name is another file's in this mount namespace"
    assert status.st_ctime_ns % 1_000_000_000, "this file system notes parts of a second"
    assert not is_settled(status, status.st_ctime + 0.05)
    assert is_settled(status, status.st_ctime + 0.15)
    whole = int(status.st_ctime)
    coarse = os.stat_result(tuple(status)[:10], {"st_ctime": float(whole), "st_ctime_ns": whole * 1_000_000_000})
    assert not is_settled(coarse, coarse.st_ctime + 1.9)
    assert is_settled(coarse, coarse.st_ctime + 2.1)


def test_own_processes_are_those_named_declared_or_descended():
    own = OwnProcesses((10,))
    own.name((11,), os.getppid())
    own.declare("anti_malware", (12, 13))
    assert all(pid in own for pid in (1, 10, 11, 12, 13, os.getppid()))
    assert os.getpid() not in own
    assert own.descends(os.getpid())
    assert not own.descends(2)
    own.declare("anti_malware", ())
    assert 12 not in own
    assert identity_of(1, 2) != identity_of(2, 1)
