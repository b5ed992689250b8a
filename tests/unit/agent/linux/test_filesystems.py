"""The kind of filesystems, by the mount table."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.linux.filesystems import FilesystemKind, MountTable

LINES = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /proc rw,nosuid - proc proc rw
24 22 0:6 / /srv/a\\040b rw - nfs4 server:/export rw
25 22 0:7 / /home/x/mnt rw - fuse.sshfs host: rw
26 22 0:8 / /media rw - fuseblk /dev/sdb1 rw
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "mountinfo").write_text(LINES)
    return MountTable(str(tmp_path / "mountinfo"))


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        (os.makedev(254, 0), FilesystemKind.ORDINARY),
        (os.makedev(0, 5), FilesystemKind.PSEUDO),
        (os.makedev(0, 6), FilesystemKind.REMOTE),
        (os.makedev(0, 7), FilesystemKind.REMOTE),
        (os.makedev(0, 8), FilesystemKind.ORDINARY),
        (os.makedev(0, 99), FilesystemKind.ORDINARY),
    ],
)
def test_each_device_has_its_kind(table, device, kind):
    assert table.kind_of(device) is kind


def test_a_mount_that_came_later_is_found(table, tmp_path):
    (tmp_path / "mountinfo").write_text(LINES + "30 22 0:50 / /sys rw - sysfs sysfs rw\n")
    assert table.kind_of(os.makedev(0, 50)) is FilesystemKind.PSEUDO


def test_this_computers_table_is_read():
    assert MountTable().kind_of(os.stat("/proc").st_dev) is FilesystemKind.PSEUDO


@given(st.binary())
def test_no_bytes_in_the_table_are_an_accident(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "mountinfo-any"
    path.write_bytes(data)
    MountTable(str(path))
