"""What the kernel is told without Python: only what is known as it is now. On a private mount, with a group of the test's own."""

import contextlib
import fcntl
import os
import select
import signal
import struct
import termios
import threading
import time
import traceback
from collections.abc import Iterator

import pytest

from keibi.agent.gate import fanotify
from keibi.agent.gate.answers import make_answers
from keibi.agent.gate.files import stamp_of
from keibi.agent.gate.hardening import enter_own_mounts, mount_memory
from keibi.agent.gate.judging import OPEN
from keibi.agent.gate.verdicts import IGNORABLE, bit_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="permission events are root's")

OPEN_BIT, OTHER_BIT = bit_of(0, OPEN), bit_of(1, OPEN)
DEADLINE_SECONDS = 20


class Scene:
    """A private tmpfs with a permission group on it, in a child that is killed when it takes too long."""

    def __init__(self, place: str) -> None:
        enter_own_mounts()
        mount_memory(os.fsencode(place), b"size=1m")
        self.path = f"{place}/file"
        self._write(self.path, b"content")
        self.group = fanotify.Group(asks_permission=True)
        self.epoll = select.epoll()
        self.epoll.register(self.group.fd, select.EPOLLIN)
        self.answers = make_answers(self.group, self.epoll)
        assert type(self.answers).__module__ == "keibi.agent.linux._answers", "the C part is built"
        directory = os.open(place, os.O_PATH)
        self.group.mark_filesystem(directory, fanotify.OPEN_PERMISSION | fanotify.CLOSE_WRITE)
        os.close(directory)
        self.device = os.stat(place).st_dev
        self.left: list[int] = []
        self.answers.cover([(self.device, OPEN_BIT, 0, False)])

    @staticmethod
    def _write(path: str, content: bytes) -> None:
        with open(path, "wb") as file:
            file.write(content)

    def know(self, allowed: int = OPEN_BIT, denied: int = 0) -> None:
        """Put a record about the file as it is now."""
        status = os.stat(self.path)
        self.answers.put(status.st_dev, status.st_ino, stamp_of(status) + struct.pack("QQ", allowed, denied))

    def is_answered(self, flags: int = os.O_RDONLY) -> bool:
        """Open the file in another thread; return whether that was answered without Python, and answer it otherwise."""
        before = self.answers.count
        opener = threading.Thread(target=self._open, args=(flags,))
        opener.start()
        until = time.monotonic() + 5
        while opener.is_alive() and self.answers.count == before:
            if self.answers.wait(min(until, time.monotonic() + 0.02)):
                self.let_pass()
            assert time.monotonic() < until
        opener.join(5)
        return self.answers.count > before

    def open_for_writing(self) -> int:
        """Return a descriptor on the file; the opening itself is answered."""
        found: list[int] = []
        opener = threading.Thread(target=lambda: found.append(os.open(self.path, os.O_RDWR)))
        before = self.answers.count
        opener.start()
        while opener.is_alive():
            if self.answers.wait(time.monotonic() + 0.02):
                self.let_pass()
        assert self.answers.count in (before, before + 1)
        return found[0]

    def queued_bytes(self) -> int:
        """Return how many bytes of events wait in the kernel."""
        return int.from_bytes(fcntl.ioctl(self.group.fd, termios.FIONREAD, bytes(4)), "little")

    def _open(self, flags: int) -> None:
        os.close(os.open(self.path, flags))

    def let_pass(self) -> list[int]:
        """Answer what is left to Python; return the masks."""
        masks = []
        for mask, descriptor, _ in self.answers.take():
            masks.append(mask)
            if mask & fanotify.PERMISSIONS:
                self.group.answer(descriptor, is_allowed=True)
            os.close(descriptor)
        self.left += masks
        return masks


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Have the kernel end this process when something hangs; its group ends with it."""
    signal.alarm(DEADLINE_SECONDS)
    yield
    signal.alarm(0)


def in_child(act, place) -> None:
    """Call with a scene in a forked child."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with limited():
                act(Scene(str(place)))
            code = 0
        except BaseException:  # noqa: BLE001 -- the parent only sees the exit code
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def known_passes(scene: Scene) -> None:
    assert not scene.is_answered()
    scene.know()
    assert scene.is_answered()
    scene.answers.forget(scene.device, os.stat(scene.path).st_ino)
    assert not scene.is_answered()
    scene.know()
    scene.answers.clear()
    assert not scene.is_answered()


def changed_is_left(scene: Scene) -> None:
    scene.know()
    os.utime(scene.path, ns=(1, 1))
    assert not scene.is_answered()


def bits_matter(scene: Scene) -> None:
    scene.know(allowed=0)
    assert not scene.is_answered()
    scene.know(denied=OPEN_BIT)
    assert not scene.is_answered()
    scene.know(allowed=OPEN_BIT | IGNORABLE)
    assert not scene.is_answered(), "Python sets the kernel's mark"
    scene.know(allowed=OPEN_BIT)
    scene.answers.cover([(scene.device, OPEN_BIT | OTHER_BIT, 0, False)])
    assert not scene.is_answered(), "another judge wants to be asked too"
    scene.know(allowed=OPEN_BIT | OTHER_BIT)
    assert scene.is_answered()
    scene.answers.cover([])
    assert not scene.is_answered(), "a file system that is not covered"


def writers_matter(scene: Scene) -> None:
    scene.know()
    assert scene.is_answered(os.O_RDWR)
    until = time.monotonic() + 5
    while fanotify.CLOSE_WRITE not in scene.left:
        assert time.monotonic() < until, "the end of a writer is left to Python"
        if scene.answers.wait(time.monotonic() + 0.02):
            scene.let_pass()
    writer = scene.open_for_writing()
    assert scene.is_answered(), "not memory: times tell of a change"
    scene.answers.cover([(scene.device, OPEN_BIT, 0, True)])
    assert not scene.is_answered(), "memory, and somebody may be writing to it"
    os.close(writer)


def nothing_passes_a_writer(scene: Scene) -> None:
    writer = scene.open_for_writing()
    scene.know()
    os.close(writer)
    waiting = threading.Thread(target=scene._open, args=(os.O_RDONLY,))
    waiting.start()
    until = time.monotonic() + 5
    while scene.queued_bytes() < 2 * 24:
        assert time.monotonic() < until
    assert scene.answers.wait(until)
    assert scene.answers.count == 0, "the end of a writer waits before this opening"
    masks = scene.let_pass()
    waiting.join(5)
    assert masks == [fanotify.CLOSE_WRITE, fanotify.OPEN_PERMISSION]
    assert scene.is_answered(), "nothing waits any more"


@pytest.mark.parametrize("act", [known_passes, changed_is_left, bits_matter, writers_matter, nothing_passes_a_writer])
def test_only_what_is_known_as_it_is_now_passes_without_python(act, tmp_path):
    in_child(act, tmp_path)


def test_a_record_of_another_length_is_refused(tmp_path):
    def act(scene: Scene) -> None:
        with pytest.raises(ValueError, match="40 bytes, not 3"):
            scene.answers.put(1, 1, b"abc")
        with pytest.raises(TypeError):
            scene.answers.cover([3])  # type: ignore[list-item]

    in_child(act, tmp_path)


def test_waiting_ends_in_time_and_with_other_descriptors(tmp_path):
    def act(scene: Scene) -> None:
        started = time.monotonic()
        assert scene.answers.wait(started + 0.05) == []
        assert 0.04 < time.monotonic() - started < 2
        reader, writer = os.pipe()
        scene.epoll.register(reader, select.EPOLLIN)
        os.write(writer, b"x")
        assert scene.answers.wait(time.monotonic() + 5) == [(reader, select.EPOLLIN)]

    in_child(act, tmp_path)
