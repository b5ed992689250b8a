"""The mount table, and which mount shows a path."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keibi.agent.linux.mounts import Mount, below, covering, parse_mounts

TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
28 27 254:16 / /srv rw - xfs /dev/vdb rw
29 27 254:16 /www\040data /var/www rw - xfs /dev/vdb rw
30 28 0:40 / /srv/tmp rw - tmpfs tmpfs rw
31 28 0:41 / /srv/tmp rw - tmpfs tmpfs rw
"""


def test_a_table_is_read_with_its_escapes():
    mounts = parse_mounts(TABLE)
    assert mounts[1] == Mount("254:0", b"/", b"/", "ext4")
    assert mounts[3] == Mount("254:16", b"/www data", b"/var/www", "xfs")


def test_the_last_and_longest_mount_covers():
    mounts = parse_mounts(TABLE)
    assert covering(mounts, b"/etc/passwd").device == "254:0"
    assert covering(mounts, b"/srv").device == "254:16"
    assert covering(mounts, b"/srvx").device == "254:0"
    assert covering(mounts, b"/srv/tmp/file").device == "0:41"
    assert covering([], b"/") is None


@pytest.mark.parametrize(
    ("point", "root", "path", "shown"),
    [
        (b"/", b"/", b"/etc", b"/etc"),
        (b"/", b"/", b"/", b"/"),
        (b"/srv", b"/", b"/a/b", b"/srv/a/b"),
        (b"/srv", b"/", b"/", b"/srv"),
        (b"/var/www", b"/www", b"/www/x", b"/var/www/x"),
        (b"/var/www", b"/www", b"/www", b"/var/www"),
        (b"/var/www", b"/www", b"/wwwx", None),
        (b"/", b"/@", b"/@/etc", b"/etc"),
        (b"/", b"/@", b"/@home", None),
    ],
)
def test_a_mount_shows_a_part_of_its_filesystem(point, root, path, shown):
    assert Mount("1:1", root, point, "ext4").shows(path) == shown


@given(st.binary(max_size=300))
def test_arbitrary_text_gives_mounts_or_none(text):
    assert all(isinstance(mount, Mount) for mount in parse_mounts(text))


@given(st.binary(min_size=1, max_size=30), st.binary(max_size=30))
def test_what_is_joined_is_below(directory, rest):
    directory = b"/" + directory.strip(b"/")
    assert below(directory.rstrip(b"/") + b"/" + rest, directory) == (b"/" + rest if directory != b"/" or rest else b"")
    assert below(directory, directory) == b""


def test_this_computers_own_table_has_a_root():
    with open("/proc/self/mountinfo", "rb") as file:
        assert covering(parse_mounts(file.read()), os.path.realpath(b"/")).point == b"/"
