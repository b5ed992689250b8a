"""The ransomware watch in the real worker, behind a real gate on a private mount that only watches."""

import os
import sys

import pytest

from keibi.agent.gate.private import PrivateGate
from keibi.contract.events import EventAction
from keibi.contract.policy import ModuleState
from tests.system.anti_malware_worker import AntiMalwareWorker

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the gate needs root"),
    pytest.mark.timeout(90),
]

IMITATOR = """
import os, sys, time
place, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    with open(f'{place}/file{number}.txt', 'w') as file:
        file.write('something that somebody wrote\\n' * 40)
time.sleep(0.5)
for number in range(count):
    with open(f'{place}/file{number}.txt', 'r+b') as file:
        file.write(os.urandom(1200))
    time.sleep(0.01)
"""


@pytest.fixture
def worker(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "place").mkdir()
    worker = AntiMalwareWorker(str(tmp_path))
    yield worker
    worker.stop()
    assert "Traceback" not in worker.errors()


@pytest.mark.parametrize(("setting", "action"), [("detect", EventAction.DETECTED), ("stop", EventAction.STOPPED)])
def test_a_program_that_ruins_files_is_told_and_ended_where_the_policy_says_so(worker, tmp_path, setting, action):
    place = str(tmp_path / "place")
    applied = worker.configure(ModuleState.ON, behaviour_watch=setting, behaviour_directories=[place], scan_on_write=False)
    assert applied.error == ""
    with PrivateGate(place, worker.judges, is_proof=False) as gate:
        done = gate.run([sys.executable, "-c", IMITATOR, place, "200"], timeout_seconds=30)
        event = worker.wait_event("malware.behaviour")
    assert event.action is action
    assert event.details["engine"] == "behaviour"
    assert event.details["process_chain"][0]["process"].startswith(os.path.realpath(sys.executable)[:8])
    assert 12 <= event.details["files_count"] < 200
    assert event.details["files"][0] == {"path": f"{place}/file0.txt", "how": "contradiction"}
    if setting == "stop":
        assert done.returncode != 0
        assert [one["error"] for one in event.details["stopped"]] == [""]
    else:
        assert done.returncode == 0
