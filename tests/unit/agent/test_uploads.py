"""Which files of a worker the core sends, and how an upload goes on after an interruption."""

import asyncio
import os

import pytest

from keibi.agent.lane import Lane
from keibi.agent.uploads import _send, allowed_directories, open_upload
from keibi.contract.commands import Command, CommandKind
from keibi.contract.names import ModuleId
from keibi.contract.uploads import PART_BYTES, UploadReceipt
from keibi.errors import InputError, RefusedError, TryLaterError

COMMAND = Command("c" * 32, CommandKind.FETCH_QUARANTINED, ModuleId.ANTI_MALWARE)


@pytest.fixture
def state(tmp_path):
    for name in ("uploads", "anti_malware/archives", "integrity_monitoring"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def opened(state, path):
    file = open_upload(str(path), allowed_directories(str(state), COMMAND))
    content = file.read(0)
    file.remove()
    return content


@pytest.mark.parametrize("place", ["uploads/one.zip", "anti_malware/one.zip", "anti_malware/archives/one.zip"])
def test_a_plain_file_of_the_worker_is_read_and_deleted_afterwards(state, place):
    path = state / place
    path.write_bytes(b"archive")
    assert opened(state, path) == b"archive"
    assert not path.exists()


@pytest.mark.parametrize(
    "place",
    [
        "identity.json",
        "integrity_monitoring/baseline.db",
        "uploads/../identity.json",
        "uploads/./one",
        "uploads//one",
        "uploads",
        "uploads/",
        "uploads2/one",
        "anti_malware/archives",
    ],
)
def test_whatever_lies_elsewhere_is_refused(state, place):
    (state / "identity.json").write_bytes(b"the key of this computer")
    (state / "integrity_monitoring/baseline.db").write_bytes(b"x")
    (state / "uploads2").mkdir()
    for name in ("uploads/one", "uploads2/one"):
        (state / name).write_bytes(b"x")
    with pytest.raises(RefusedError):
        opened(state, f"{state}/{place}")
    with pytest.raises(RefusedError):
        opened(state, "uploads/one")
    assert (state / "identity.json").exists()


def test_links_devices_and_files_with_other_names_are_refused(state):
    secret = state / "identity.json"
    secret.write_bytes(b"the key of this computer")
    os.symlink(secret, state / "uploads/link")
    os.symlink(state, state / "anti_malware/folder")
    os.link(secret, state / "uploads/hard")
    os.mkfifo(state / "uploads/fifo")
    for place in ("uploads/link", "anti_malware/folder/identity.json", "uploads/hard", "uploads/fifo", "uploads/missing"):
        with pytest.raises(RefusedError):
            opened(state, state / place)
    assert secret.read_bytes() == b"the key of this computer"


def test_a_file_that_is_too_large_is_told(state):
    path = state / "uploads/big"
    with path.open("wb") as file:
        file.truncate(256 * 1024 * 1024 + 1)
    with pytest.raises(InputError, match="can be sent"):
        opened(state, path)


class MemoryManager:
    """Takes parts as the manager's store does; loses answers and parts as it is told."""

    def __init__(self, *, lose_answers=(), away=()):
        self.content = bytearray()
        self.calls = 0
        self.lose_answers, self.away = set(lose_answers), set(away)

    def send_part(self, command_id, offset, body, is_final):
        self.calls += 1
        if self.calls in self.away:
            raise TryLaterError("manager_timeout", "away", retry_after_seconds=0.01)
        if offset == len(self.content):
            self.content += body
        if self.calls in self.lose_answers:
            raise TryLaterError("manager_hung_up", "the answer was lost", retry_after_seconds=0.01)
        return UploadReceipt(len(self.content), is_complete=is_final and offset + len(body) == len(self.content))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", [0, 5, PART_BYTES, 2 * PART_BYTES + 3])
@pytest.mark.parametrize("trouble", [{}, {"away": {1}}, {"lose_answers": {1}}])
def test_an_upload_goes_on_where_the_manager_is(state, size, trouble):
    path = state / "uploads/one"
    path.write_bytes(os.urandom(size))
    content = path.read_bytes()
    manager, lane = MemoryManager(**trouble), Lane("test")
    file = open_upload(str(path), allowed_directories(str(state), COMMAND))
    asyncio.run(_send(lane, manager.send_part, COMMAND.command_id, file))
    file.remove()
    lane.close()
    assert bytes(manager.content) == content


def test_a_manager_that_says_nonsense_does_not_keep_the_agent_busy(state):
    path = state / "uploads/one"
    path.write_bytes(b"x" * 10)
    file = open_upload(str(path), allowed_directories(str(state), COMMAND))
    lane = Lane("test")
    for answer in (UploadReceipt(11), UploadReceipt(-1)):
        with pytest.raises(RefusedError):
            asyncio.run(_send(lane, lambda *_, answer=answer: answer, COMMAND.command_id, file))
    file.remove()
    lane.close()
