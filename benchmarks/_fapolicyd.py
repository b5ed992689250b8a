"""fapolicyd in a box (`_box.py`), for `gate.py`: Debian's package with its rules for
trusted programs and for opening (with the one shipped, nothing at all runs), trusting what lies in the box.

It marks every mount of its mount namespace that has a wanted file system; in a box these are the box's own. Before it may deny
anything, what it has marked is read from the kernel, and the box is ended if that is anything else. Whatever takes too long ends
the box too, and with it the listener, so that the kernel lets everybody go.
"""

import json
import os
import pathlib
import subprocess
import time

from _box import Box

MOST_SECONDS = 120.0
MARK_SECONDS = 30.0
# As shipped, but for what cannot be in a box: no rpm, no other user (which its libcap-ng cannot become in here).
_CHANGES = {
    "watch_fs = ext2,ext3,ext4,tmpfs,xfs,vfat,iso9660,btrfs": "watch_fs = tmpfs",
    "trust = rpmdb,file": "trust = file",
    "uid = fapolicyd": "uid = root",
    "gid = fapolicyd": "gid = root",
}
_PREPARE = """
mkdir -p /plain /guarded /run/fapolicyd
mount -t ramfs none /plain
for place in /plain /guarded; do
    mkdir $place/files
    cp /root/tiny $place/tiny
    for number in $(seq 100); do head -c 4096 /dev/zero > $place/files/$number; done
done
fapolicyd-cli --file add /usr
fapolicyd-cli --file add /opt
fapolicyd-cli --file add /guarded
fapolicyd-cli --file add /plain
cd /usr/share/fapolicyd/sample-rules
cp 42-trusted-elf.rules 95-allow-open.rules /etc/fapolicyd/rules.d
fagenrules --load
"""
_MEASURE = """
import json, os, sys, time
def opened(place):
    times = []
    for number in range(1, 101):
        started = time.perf_counter_ns()
        descriptor = os.open(f"{place}/files/{number}", os.O_RDONLY)
        times.append(time.perf_counter_ns() - started)
        os.close(descriptor)
    return times
def executed(place):
    started = time.perf_counter_ns()
    os.waitpid(os.posix_spawn(f"{place}/tiny", ["tiny"], {}), 0)
    return [time.perf_counter_ns() - started]
found = {}
for what, turns, act in (("open", 30, opened), ("exec", 300, executed)):
    rounds = {"/plain": [], "/guarded": []}
    for round_ in range(int(sys.argv[1]) + 1):
        times = {place: [] for place in rounds}
        for _ in range(turns):
            for place in rounds:
                times[place] += act(place)
        if round_:
            for place in rounds:
                rounds[place].append(times[place])
    found[what] = rounds
print(json.dumps(found))
"""

Times = dict[str, dict[str, list[list[int]]]]


def measure_in(box: Box, program: bytes, rounds: int) -> tuple[Times, Times]:
    """Return nanoseconds of "open" and "exec" on "/plain" and "/guarded", in rounds: without fapolicyd and with it.

    /plain is a ramfs, which fapolicyd does not watch.
    """
    box.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "fapolicyd")
    (box.root / "root/tiny").write_bytes(program)
    (box.root / "root/tiny").chmod(0o755)
    (box.root / "root/measure.py").write_text(_MEASURE)
    configuration = box.root / "etc/fapolicyd/fapolicyd.conf"
    text = configuration.read_text()
    for before, after in _CHANGES.items():
        text = text.replace(before, after)
    configuration.write_text(text.replace("permissive = 0", "permissive = 1"))
    box.run("sh", "-ec", _PREPARE)
    without = _measure(box, rounds)
    daemon = _start(box)
    os.kill(daemon, 15)
    _wait_gone(daemon)
    configuration.write_text(text)
    with box.limited(MOST_SECONDS):
        daemon = _start(box)
        with_it = _measure(box, rounds)
        os.kill(daemon, 9)
    return without, with_it


def _measure(box: Box, rounds: int) -> Times:
    found: Times = json.loads(box.run("/usr/bin/python3", "/root/measure.py", str(rounds), timeout_seconds=MOST_SECONDS))
    return found


def _start(box: Box) -> int:
    """Start the daemon, and check what it marks; returns its process id."""
    subprocess.run(box.command("/usr/sbin/fapolicyd"), check=True, timeout=MARK_SECONDS, capture_output=True)
    own_mounts = {line.split()[0] for line in pathlib.Path(f"/proc/{box.pid}/mountinfo").read_text().splitlines()}
    until = time.monotonic() + MARK_SECONDS
    while time.monotonic() < until:
        for daemon in _daemons(box):
            if marks := _marks_of(daemon):
                foreign = [mark for mark in marks if mark not in own_mounts]
                if foreign:
                    box.end()
                    raise RuntimeError(f"fapolicyd marks {foreign}, which are no mounts of the box")
                return daemon
        time.sleep(0.1)
    raise RuntimeError("fapolicyd did not mark anything in time")


def _daemons(box: Box) -> list[int]:
    namespace = os.stat(f"/proc/{box.pid}/ns/pid").st_ino
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                is_it = os.readlink(entry / "exe").endswith("/fapolicyd") and os.stat(entry / "ns/pid").st_ino == namespace
            except OSError:
                continue
            if is_it:
                found.append(int(entry.name))
    return found


def _marks_of(pid: int) -> list[str]:
    """Return the mount ids that a process's fanotify groups watch; other kinds of mark as the kernel tells them."""
    marks = []
    for path in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        for line in path.read_text().splitlines():
            if line.startswith("fanotify mnt_id:"):
                marks.append(str(int(line.split(":")[1].split()[0], 16)))
            elif line.startswith(("fanotify sdev:", "fanotify ino:")):
                marks.append(line)
    return marks


def _wait_gone(pid: int) -> None:
    until = time.monotonic() + MARK_SECONDS
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < until:
        time.sleep(0.05)
