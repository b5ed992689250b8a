"""`keibi agent unlock` on a computer that has no network: the real command, core and worker."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from keibi.agent.policy_store import PolicyStore
from keibi.agent.version import agent_version
from keibi.contract.names import ModuleId
from keibi.contract.policy import EffectivePolicy, ModulePolicy, ModuleState
from keibi.contract.unlock import unlock_code
from tests.system.agent_run import AgentRun, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the worker gives up root")

SECRET = b"the secret of this computer......"


def keibi(run: AgentRun, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "keibi.cli.main", "agent", "unlock", "--config", str(run.config_path), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def codes_of(run: AgentRun) -> set[str]:
    """Return what the module says is not enforced."""
    modules = run.status()["agent"]["modules"]
    return {one["code"] for module in modules for one in module.get("not_enforced", [])}


def test_a_code_of_the_console_unlocks_a_computer_without_a_network(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o755)
    known = tmp_path / "known"
    known.mkdir()
    run = AgentRun(tmp_path)
    run.state.mkdir(mode=0o700)
    part = ModulePolicy(ModuleId.APPLICATION_CONTROL, ModuleState.PREVENT, b"{}")
    PolicyStore(str(run.state), agent_version()).accept(EffectivePolicy(7, "Base", [part], unlock_secret=SECRET))
    argv = ["-m", "keibi.agent.modules.application_control.worker", "--state", str(run.state / "application_control")]
    argv += ["--judges", str(run.state / "judges"), "--root", str(known)]
    try:
        run.start({"name": "application_control", "argv": argv, "module": "application_control"})
        wait_for(lambda: "gate_away" in codes_of(run), "application control is in force")
        assert "no challenge" in keibi(run, "ABCD").stderr
        shown = keibi(run)
        assert shown.returncode == 0, shown.stderr
        challenge = re.search(r"Challenge: (\S+)", shown.stdout)
        assert challenge is not None
        wrong = keibi(run, "AAAA-AAAA-AAAA-AAAA")
        assert wrong.returncode != 0
        assert "not the code" in wrong.stderr
        right = keibi(run, *unlock_code(SECRET, challenge[1]).split("-"), "--minutes", "5")
        assert right.returncode == 0, right.stderr
        assert "blocks nothing until" in right.stdout
        wait_for(lambda: "unlocked" in codes_of(run), "the status says that it is unlocked")
        again = keibi(run, unlock_code(SECRET, challenge[1]))
        assert again.returncode != 0
    finally:
        run.stop()
