"""The sensor and mounts: bind mounts, new ones, ones that go, and filesystems that cannot be observed."""

import os
import subprocess
import time

import pytest

from keibi.agent.ports import Happening
from tests.system.sensor_run import SensorRun

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting is root's")


def write(path: bytes) -> None:
    with open(path, "wb") as file:
        file.write(b"text")


@pytest.fixture
def sensor(tmp_path):
    with SensorRun(tmp_path) as run:
        run.watch()
        yield run


def test_a_change_is_told_under_the_bind_mount_that_is_watched(tmp_path):
    point, bound = tmp_path / "watched", tmp_path / "bound"
    bound.mkdir()
    mounts = (f"mount -t tmpfs keibi-test {point}", f"mkdir {point}/part {point}/other", f"mount --bind {point}/part {bound}")
    with SensorRun(tmp_path, *mounts) as run:
        run.watch(bound)
        write(run.reach("other/not_this"))
        write(run.reach("part/file"))
        run.wait_for(lambda: run.find(Happening.CREATED, os.fsencode(bound / "file")))
        assert [one.path for one in run.observations] == [os.fsencode(bound / "file")]
        run.observations.clear()
        run.watch(point, bound)
        write(run.reach("part/both"))
        run.expect(Happening.CREATED, "part/both")
        run.wait_for(lambda: run.find(Happening.CREATED, os.fsencode(bound / "both")))


def test_a_filesystem_of_which_only_a_part_is_mounted_is_told_right(tmp_path):
    point, bound = tmp_path / "watched", tmp_path / "bound"
    bound.mkdir()
    mounts = (
        f"mount -t tmpfs keibi-test {point}",
        f"mkdir -p {point}/part/below {point}{bound}",
        f"mount --bind {point}/part {bound}",
        f"mount --move {point} {point}/part/below 2>/dev/null || umount {point}",
    )
    with SensorRun(tmp_path, *mounts) as run:
        run.watch(bound)
        write(run.reach(bound / "below" / "file"))
        run.wait_for(lambda: run.find(Happening.CREATED, os.fsencode(bound / "below" / "file")))


def test_what_is_mounted_later_is_followed_and_the_watchers_told_to_look(sensor):
    os.mkdir(sensor.reach("later"))
    sensor.settle()
    sensor.run_inside("mount", "-t", "tmpfs", "keibi-test", os.fsdecode(sensor.shown("later")))
    overflow = sensor.wait_for(lambda: sensor.overflows, "the overflow")[0]
    assert "mounted" in overflow.reason
    write(sensor.reach("later/file"))
    sensor.expect(Happening.CREATED, "later/file")
    sensor.run_inside("umount", os.fsdecode(sensor.shown("later")))
    sensor.wait_for(lambda: len(sensor.overflows) > 1, "the overflow at unmounting")
    write(sensor.reach("later/beneath"))
    sensor.expect(Happening.CREATED, "later/beneath")


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_watched_filesystem_can_be_unmounted_and_mounted_again(sensor, tmp_path, kind):
    inner = os.fsdecode(sensor.shown("inner"))
    os.mkdir(sensor.reach("inner"))
    mount = ["mount", "-t", "tmpfs", "keibi-test", inner]
    if kind == "ext4":
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        mount = ["mount", "-o", "loop", str(image), inner]
    sensor.run_inside(*mount)
    sensor.wait_for(lambda: sensor.overflows, "the advice to look")
    write(sensor.reach("inner/file"))
    sensor.expect(Happening.CREATED, "inner/file")
    # In one go, so that the mount table may look as before when it is read.
    sensor.run_inside("sh", "-c", f'umount {inner}; "$@"', "sh", *mount)
    mounted_at = time.time()
    sensor.wait_for(lambda: any(one.until >= mounted_at for one in sensor.overflows), "the advice to look again")
    write(sensor.reach("inner/anew"))
    sensor.expect(Happening.CREATED, "inner/anew")


def test_a_filesystem_that_cannot_be_observed_is_named_with_the_reason(sensor):
    sensor.watch(sensor.point, "/proc/sys")
    capability = sensor.capability("fanotify_filesystem_marks")
    assert capability.is_available
    assert "/proc" in capability.reason
    write(sensor.reach("file"))
    sensor.expect(Happening.CREATED, "file")


def test_an_overlay_is_observed_or_refused_but_never_told_wrongly(tmp_path):
    point, layers = tmp_path / "watched", tmp_path / "layers"
    layers.mkdir()
    mounts = (
        f"mount -t tmpfs keibi-test {layers}",
        f"mkdir {layers}/lower {layers}/upper {layers}/work",
        f"mount -t overlay keibi-test -o lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work {point}",
    )
    with SensorRun(tmp_path, *mounts) as run:
        run.watch()
        capability = run.capability("fanotify_filesystem_marks")
        write(run.reach("file"))
        if capability.is_available:
            run.expect(Happening.CREATED, "file")
        else:
            assert "overlay" in capability.reason
