"""The collectors of entities, each on the real system and on a small one made for the test."""

import hashlib
import os
import pathlib
import socket
import subprocess
import time

import pytest

from keibi.agent.linux import accounts, ports, processes, services, software

KEY = b"k" * 32


def test_this_very_process_is_among_the_processes():
    names = accounts.AccountNames()
    found = processes.collect(names)[os.readlink("/proc/self/exe")]
    assert names.user(os.getuid()) in found["user"].split(",")
    assert found["pid"] > 0


def test_a_listening_port_is_found_with_its_process_and_gone_when_closed():
    collector = ports.ListeningPorts(accounts.AccountNames())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagram:
        datagram.bind(("::1", 0))
        tcp = f"tcp/127.0.0.1/{server.getsockname()[1]}"
        udp = f"udp/::1/{datagram.getsockname()[1]}"
        found = collector.collect()
        assert found[tcp] == {"process": os.readlink("/proc/self/exe"), "user": "root", "pid": os.getpid()}
        assert found[udp]["pid"] == os.getpid()
    assert not {tcp, udp} & collector.collect().keys()


def test_users_and_groups_of_this_system():
    users = accounts.collect_users(KEY)
    assert users["root"]["uid"] == 0
    assert accounts.collect_groups()["root"]["gid"] == 0


def test_a_changed_password_changes_the_fingerprint_and_shows_no_hash(tmp_path):
    (tmp_path / "passwd").write_text("a:x:1000:1000:A,,,:/home/a:/bin/sh\nbroken line\n+nis\n")
    (tmp_path / "group").write_text("wheel:x:10:a,b\na:x:1000:\n")
    (tmp_path / "shadow").write_text("a:$6$salt$hash:20000:0:::::\n")
    before = accounts.collect_users(KEY, str(tmp_path))
    assert before["a"]["groups"] == ["wheel"]
    assert before["a"]["password_changed_on"] == "2024-10-04"
    assert "hash" not in str(before)
    (tmp_path / "shadow").write_text("a:!$6$salt$other:20001:0:::::\n")
    after = accounts.collect_users(KEY, str(tmp_path))
    assert after["a"]["password_fingerprint"] != before["a"]["password_fingerprint"]
    assert after["a"]["is_locked"]
    assert accounts.collect_users(b"other key", str(tmp_path))["a"]["password_fingerprint"] != after["a"]["password_fingerprint"]


def test_a_user_name_with_control_characters_is_escaped(tmp_path):
    (tmp_path / "passwd").write_bytes(b"e\x1b[2Jvil:x:0:0::/:/bin/sh\n")
    assert list(accounts.collect_users(KEY, str(tmp_path))) == ["e\\x1b[2Jvil"]


def test_names_follow_the_file(tmp_path):
    passwd = tmp_path / "passwd"
    passwd.write_text("old:x:5:5::/:/bin/sh\n")
    names = accounts.AccountNames(str(tmp_path))
    assert names.user(5) == "old"
    assert names.user(6) == "6"
    passwd.write_text("new:x:5:5::/:/bin/sh\n")
    os.utime(passwd, ns=(1, 1))
    assert names.user(5) == "new"


@pytest.fixture
def units(tmp_path):
    high, low = tmp_path / "etc", tmp_path / "usr"
    (high / "multi-user.target.wants").mkdir(parents=True)
    low.mkdir()
    (low / "web.service").write_text(
        "[Service]\nUser=www\nExecStart=/usr/sbin/web \\\n  --flag\n[Install]\nWantedBy=multi-user.target\n"
    )
    (low / "plain.service").write_text("[Service]\nExecStart=/bin/plain\n")
    (low / "off.service").write_text("[Service]\nExecStart=/bin/off\n[Install]\nWantedBy=x.target\n")
    (high / "multi-user.target.wants" / "web.service").symlink_to(low / "web.service")
    (high / "gone.service").symlink_to("/dev/null")
    return high, low


def collect(units: tuple[pathlib.Path, pathlib.Path]) -> dict:
    return services.collect(tuple(str(directory) for directory in units), with_state=False)


def test_units_have_their_start_type_command_and_user(units):
    found = collect(units)
    assert found["web.service"]["start_type"] == "enabled"
    assert found["web.service"]["user"] == "www"
    assert found["web.service"]["command"] == ["ExecStart=/usr/sbin/web    --flag"]
    assert [found[name]["start_type"] for name in ("plain.service", "off.service", "gone.service")] == [
        "static",
        "disabled",
        "masked",
    ]


def test_a_drop_in_that_replaces_the_command_is_seen(units):
    before = collect(units)["web.service"]
    drop_ins = units[0] / "web.service.d"
    drop_ins.mkdir()
    (drop_ins / "evil.conf").write_text("[Service]\nExecStart=\nExecStart=/tmp/evil\n")
    after = collect(units)["web.service"]
    assert after["command"] == ["ExecStart=/tmp/evil"]
    assert before != after


def test_installed_packages_are_those_that_dpkg_lists():
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f=${binary:Package}\t${Version}\t${db:Status-Status}\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = {}
    for line in listed.splitlines():
        name, version, status = line.split("\t")
        if status == "installed":
            expected.setdefault(name.partition(":")[0], version)
    found = software.collect()
    assert {name: entity["version"] for name, entity in found.items() if ":" not in name} == expected


def test_a_file_is_traced_to_its_package_by_either_name_of_a_merged_usr():
    found = software.DpkgFiles().lookup({b"/usr/bin/ls", b"/bin/cat", b"/etc/passwd"})
    assert {found[b"/usr/bin/ls"].package, found[b"/bin/cat"].package} == {"coreutils"}
    assert b"/etc/passwd" not in found
    assert software.DpkgFiles().lookup({b"/usr/bin/ls"}, since=2e10) == {}


def test_dpkg_is_busy_while_its_lock_is_held(tmp_path):
    (tmp_path / "lock").touch()
    files = software.DpkgFiles(str(tmp_path))
    assert not files.is_busy()
    holder = subprocess.Popen(
        ["/usr/bin/env", "python3", "-c",
         "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print('held',flush=True); sys.stdin.read()",
         str(tmp_path / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"
        assert files.is_busy()
    finally:
        holder.communicate(timeout=10)
    assert not files.is_busy()


def test_a_system_without_dpkg_is_never_busy():
    assert not software.DpkgFiles("/nonexistent").is_busy()


def test_a_list_that_was_just_unpacked_is_recent_however_old_the_package_is(tmp_path):
    info = tmp_path / "info"
    info.mkdir()
    listing = info / "sample.md5sums"
    (tmp_path / "status").write_text("Package: sample\nStatus: install ok installed\nVersion: 1.0\nArchitecture: all\n")
    began = time.time() - 1
    files = software.DpkgFiles(str(tmp_path))
    for version in ("1.0", "1.1"):
        digest = hashlib.md5(version.encode()).hexdigest()
        unpacked = info / "sample.md5sums.new"
        unpacked.write_text(f"{digest}  usr/sbin/sample\n")
        os.utime(unpacked, (1_600_000_000, 1_600_000_000))
        unpacked.rename(listing)
        found = files.lookup({b"/usr/sbin/sample"}, since=began)
        assert found[b"/usr/sbin/sample"].digest == digest
    assert files.lookup({b"/usr/sbin/sample"}, since=time.time() + 60) == {}
