"""The whole thing as a user has it: `keibi up`, a changed file, an event in the API; then blows."""

import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest

from keibi.cli.client import ApiClient, Profile

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="protecting a computer needs root"), pytest.mark.timeout(300)]
FOLDER = pathlib.Path("/var/lib/keibi/prove")


def keibi(*arguments: str, expected: int | None = 0) -> str:
    outcome = subprocess.run(
        [sys.executable, "-m", "keibi.cli.main", *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert expected is None or outcome.returncode == expected, outcome.stdout + outcome.stderr
    return outcome.stdout + outcome.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Installation:
    def __init__(self, home: pathlib.Path) -> None:
        self.home, self.port = home, free_port()
        self.options = ("--home", str(home), "--port", str(self.port))

    def api(self) -> ApiClient:
        content = dict(line.split(" = ", 1) for line in (self.home / "cli.toml").read_text().splitlines())
        return ApiClient(Profile(*(json.loads(content[name]) for name in ("url", "api_key", "ca"))))

    def pid(self, name: str) -> int:
        return int((self.home / "run" / f"{name}.pid").read_text().split()[0])


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    base = tmp_path_factory.mktemp("keibi")
    # The manager and the worker are not root, so the way to their folders must be open.
    for path in (base, *base.parents[:2]):
        path.chmod(path.stat().st_mode | 0o711)
    installation = Installation(base / "home")
    keibi("up", *installation.options)
    yield installation
    keibi("down", *installation.options)


@pytest.fixture
def folder():
    path = FOLDER / secrets.token_hex(4)
    path.mkdir(parents=True)
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def wait_for_subjects(api: ApiClient, folder: pathlib.Path, names: set[str], kind: str, seconds: float) -> list[dict]:
    deadline = time.monotonic() + seconds
    wanted = {f"{folder}/{name}" for name in names}
    found: dict[str, dict] = {}
    while not wanted <= found.keys():
        cursor = None
        while True:
            page = api.get("/events", text=str(folder), kind=kind, limit=200, cursor=cursor)
            found |= {event["subject"]: event for event in page["items"]}
            cursor = page["next_cursor"]
            if not cursor:
                break
        assert time.monotonic() < deadline, f"{len(wanted - found.keys())} of {len(wanted)} are missing"
        time.sleep(0.1)
    return list(found.values())


def wait_for_health(
    installed: Installation, wanted: set[str], modules_off: frozenset[str] = frozenset(), seconds: float = 30.0
) -> set[str]:
    """Wait until every module is in one of these states, or inactive where it is off; returns which modules there are."""
    deadline = time.monotonic() + seconds
    while True:
        status = json.loads(keibi("agent", "status", "--json", "--config", str(installed.home / "agent.toml")))
        modules = {module["module"]: module["health"] for module in status["agent"]["modules"]}
        if all(health in ({"inactive"} if name in modules_off else wanted) for name, health in modules.items()):
            return set(modules)
        assert time.monotonic() < deadline, modules
        time.sleep(0.2)


def prove(installed: Installation) -> list[dict]:
    return json.loads(keibi("prove", "--home", str(installed.home), "--seconds", "20", "--json", expected=None))


def test_prove_sees_every_row_and_leaves_nothing_behind(installed):
    rows = prove(installed)
    assert [row for row in rows if row["outcome"] != "seen"] == []
    counts = Counter(row["module"] for row in rows)
    assert counts == {"integrity monitoring": 7, "anti malware": 5, "application control": 5}
    api = installed.api()
    assert api.get("/malware/quarantine", text=str(FOLDER))["items"] == []
    assert "ac-own-proof" not in [ruleset["rule_id"] for ruleset in api.get("/software/rulesets")]


def test_prove_says_which_modules_are_off_and_misses_nothing(installed):
    api = installed.api()
    (computer,) = api.get("/computers")["items"]
    path = f"/policies/computers/{computer['computer_id']}"

    def set_states(state: str | None) -> None:
        modules = {name: {"state": state} for name in ("anti_malware", "application_control")}
        api.call("PATCH", path, body={"expected_version": api.get(path)["version"], "modules": modules})

    set_states("off")
    try:
        # A policy that arrives in the middle would have the baseline looked at anew, where a rename is two changes.
        wait_for_health(installed, {"active", "warning"}, frozenset({"anti_malware", "application_control"}))
        rows = prove(installed)
    finally:
        set_states(None)
    wait_for_health(installed, {"active", "warning", "starting"})
    assert {(row["module"], row["outcome"]) for row in rows} == {
        ("integrity monitoring", "seen"),
        ("anti malware", "off"),
        ("application control", "off"),
    }


def test_a_changed_file_is_an_event_within_a_second(installed, folder):
    api = installed.api()
    (folder / "warm").write_text("1")
    wait_for_subjects(api, folder, {"warm"}, "file.created", 20)
    times = []
    for number in range(5):
        (folder / f"n{number}").write_text("1")
        started = time.monotonic()
        wait_for_subjects(api, folder, {f"n{number}"}, "file.created", 20)
        times.append(time.monotonic() - started)
    assert sorted(times)[2] < 1.0, times


def test_a_second_up_changes_nothing(installed):
    before = {name: installed.pid(name) for name in ("manager", "agent")}
    profile = (installed.home / "cli.toml").read_text()
    keibi("up", *installed.options)
    assert {name: installed.pid(name) for name in ("manager", "agent")} == before
    assert (installed.home / "cli.toml").read_text() == profile


def test_nothing_is_lost_when_the_agent_is_killed_in_a_burst(installed, folder):
    api = installed.api()
    names = set()
    for number in range(400):
        (folder / f"f{number}").write_text(str(number))
        names.add(f"f{number}")
        if number == 250:
            os.kill(installed.pid("agent"), signal.SIGKILL)
    keibi("up", *installed.options)
    events = wait_for_subjects(api, folder, names, "file.created", 60)
    assert len({event["event_id"] for event in events}) == len(names)
    assert api.get("/events/count", text=str(folder), kind="file.created")["event_count"] == len(names), "none is told twice"


def test_nothing_is_lost_when_the_manager_is_killed_in_a_burst(installed, folder):
    names = set()
    for number in range(300):
        (folder / f"m{number}").write_text(str(number))
        names.add(f"m{number}")
        if number == 100:
            os.kill(installed.pid("manager"), signal.SIGKILL)
    keibi("up", *installed.options)
    api = installed.api()
    wait_for_subjects(api, folder, names, "file.created", 90)
    assert api.get("/events/count", text=str(folder), kind="file.created")["event_count"] == len(names)


def test_a_port_that_is_busy_is_named_with_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = keibi("up", "--home", str(tmp_path / "other"), "--port", str(port), expected=2)
    assert f"port {port} is used by another program" in said
    assert "--port" in said


def test_the_agent_tells_how_it_is(installed):
    config = str(installed.home / "agent.toml")
    modules = wait_for_health(installed, {"active", "warning", "starting"})
    assert modules == {"anti_malware", "application_control", "integrity_monitoring"}
    assert "outcome" in keibi("agent", "doctor", "--json", "--config", config, expected=None)
