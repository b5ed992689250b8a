"""What the kernel guard is told of single files: its real maps, real files, leases and writers."""

import os
from collections.abc import Iterator

import pytest

from keibi.agent.gate.code_states import CodeStates
from keibi.agent.gate.files import stamp_of
from keibi.agent.gate.guard import Guard
from keibi.agent.gate.guard_maps import APPROVED, REFUSED, TAINTED, FileStates
from keibi.agent.gate.held import Held
from keibi.agent.gate.judging import CODE_APPROVED, CODE_FREE, CODE_REFUSED, EXEC, FileKey
from keibi.agent.gate.verdicts import identity_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loading kernel programs needs root")


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    loaded, reason = Guard.load()
    if loaded is None:
        pytest.skip(f"no level of the guard loads here: {reason}")
    yield loaded
    loaded.close()


@pytest.fixture
def states(guard: Guard) -> FileStates:
    guard.files.forget_all()
    return guard.files


@pytest.fixture
def code(states: FileStates) -> CodeStates:
    made = CodeStates()
    made.use(states)
    return made


@pytest.fixture
def program(tmp_path) -> Iterator[int]:
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF")
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def judged(code: CodeStates, descriptor: int, *codes: str, is_denied: bool = False) -> None:
    status = os.fstat(descriptor)
    held = Held(
        event=EXEC,
        identity=identity_of(status.st_dev, status.st_ino),
        stamp=stamp_of(status),
        key=FileKey.of(status),
        path=b"/program",
        has_no_writer=True,
        may_ignore=False,
        asked_at=0.0,
        epoch=0,
    )
    code.begin(held, descriptor)
    held.codes.update(codes)
    held.is_denied = is_denied
    code.settle(held)


def state(states: FileStates, descriptor: int) -> int:
    status = os.fstat(descriptor)
    return states.of(status.st_dev, status.st_ino)


def set_state(states: FileStates, descriptor: int, value: int) -> None:
    status = os.fstat(descriptor)
    states.set(status.st_dev, status.st_ino, value)


def test_what_is_said_of_files_is_forgotten_singly_or_all_at_once(states):
    states.set(1, 7, APPROVED)
    states.set(1, 8, REFUSED)
    states.set(1, 7, 0)
    assert (states.of(1, 7), states.of(1, 8), states.of(2, 8)) == (0, REFUSED, 0)
    states.forget_all()
    assert states.of(1, 8) == 0


@pytest.mark.parametrize(
    ("codes", "is_denied", "expected"),
    [
        ([CODE_APPROVED], False, APPROVED),
        ([CODE_APPROVED, ""], False, APPROVED),  # another judge knows nothing of code
        ([CODE_APPROVED, CODE_FREE], False, 0),
        ([CODE_FREE], False, 0),
        ([], False, 0),  # nobody answered in time
        ([CODE_REFUSED], True, REFUSED),
        ([CODE_APPROVED, CODE_REFUSED], True, REFUSED),
        ([""], True, 0),  # denied to this asker alone
    ],
)
def test_a_verdict_on_a_new_file_becomes_its_state(code, states, program, codes, is_denied, expected):
    judged(code, program, *codes, is_denied=is_denied)
    assert state(states, program) == expected


def test_a_file_with_a_writer_is_not_approved(code, states, program):
    with open(f"/proc/self/fd/{program}", "r+b"):
        judged(code, program, CODE_APPROVED)
        assert state(states, program) == 0


def test_an_approval_stays_when_nothing_new_is_said_of_it(code, states, program):
    judged(code, program, CODE_APPROVED)
    judged(code, program, "")
    assert state(states, program) == APPROVED


def test_a_tainted_file_is_approved_anew_only_without_its_writer(code, states, program):
    set_state(states, program, APPROVED | TAINTED)
    with open(f"/proc/self/fd/{program}", "r+b"):
        judged(code, program, CODE_APPROVED)
        assert state(states, program) & TAINTED
    judged(code, program, CODE_APPROVED)
    assert state(states, program) == APPROVED


def test_a_writer_locks_nobody_out_of_what_is_free(code, states, program):
    set_state(states, program, APPROVED | TAINTED)
    with open(f"/proc/self/fd/{program}", "r+b"):
        judged(code, program, CODE_FREE)
        assert state(states, program) == 0


def test_a_refused_file_that_is_approved_now_is_no_longer_refused(code, states, program):
    set_state(states, program, REFUSED)
    judged(code, program, "")
    assert state(states, program) == REFUSED  # who may only read it says nothing of it as code
    judged(code, program, CODE_APPROVED)
    assert state(states, program) == 0
