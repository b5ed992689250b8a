"""Inside a test machine: each known way round at level A, on a private gate with the real worker as its judge."""

import os
import pathlib
import shutil
import time

import msgspec

from keibi.agent.gate.private import PrivateGate
from keibi.protection.application_control.rules import RuleAction
from keibi.protection.application_control.settings import ApplicationControlSettings, InlineCode
from tests.system.application_control_bypasses import BYPASSES, JUDGED, REPORTED, Ground, Material
from tests.system.application_control_worker import ApplicationControlWorker, hash_entry, ruleset
from tests.vm.reporting import say

MATERIAL = pathlib.Path("/samples/material")
DIRECTORY = "/var/lib/ways"
CGROUP = "/sys/fs/cgroup/attacker"


def main() -> None:
    """Attack; the attacker alone is in the cgroup that the guard looks at."""
    os.makedirs(f"{DIRECTORY}/known")
    os.makedirs(f"{DIRECTORY}/mount")
    os.mkdir(CGROUP)
    shutil.copy(os.path.realpath("/usr/bin/python3"), f"{DIRECTORY}/known/python3")
    material = Material(*((MATERIAL / name).read_bytes() for name in ("good", "bad", "bad_static", "good.so", "bad.so")))
    worker = ApplicationControlWorker(DIRECTORY, roots=(f"{DIRECTORY}/known",))
    settings = ApplicationControlSettings(
        inventory_cpu_percent=400, inline_code=InlineCode.BLOCK, inline_code_from_uid=0, deadline_milliseconds=10_000
    )
    settings = msgspec.structs.replace(settings, interpreters=(*settings.interpreters, f"{DIRECTORY}/mount/python3"))
    worker.configure(
        ruleset(RuleAction.ALLOW, hash_entry(material.good), hash_entry(material.good_library)), settings=settings, seconds=180.0
    )
    works = _works_where_nobody_judges(material)
    with PrivateGate(f"{DIRECTORY}/mount", worker.judges, guard_scope=CGROUP) as gate:
        gate.wait_for(lambda _: any(one["what"] == "guard" for one in gate.happenings), 60, "the guard")
        ground = Ground(gate, material, str(MATERIAL / "ring"))
        _until_it_refuses(ground)
        for bypass in BYPASSES:
            told = sum(event.kind in JUDGED for event in worker.events)
            outcome = _attacked_while_it_holds(ground, bypass.identity)
            if bypass.expected_at("A") == REPORTED:
                worker.wait(lambda told=told: sum(event.kind in JUDGED for event in worker.events) > told, 10.0)
            say(
                way=bypass.identity,
                works=works[bypass.identity],
                ran=outcome,
                told=sum(event.kind in JUDGED for event in worker.events) > told,
            )
    worker.stop()


def _works_where_nobody_judges(material: Material) -> dict[str, str]:
    """Return what becomes of each attack without a judge and without the guard: what does not work then proves nothing later."""
    os.makedirs(f"{DIRECTORY}/nobody")
    with PrivateGate(f"{DIRECTORY}/mount", f"{DIRECTORY}/nobody") as gate:
        ground = Ground(gate, material, str(MATERIAL / "ring"))
        return {bypass.identity: _attacked(ground, bypass.identity) for bypass in BYPASSES}


def _until_it_refuses(ground: Ground) -> None:
    until = time.monotonic() + 20
    while _attacked(ground, "14") == "ran":
        assert time.monotonic() < until, "the guard does not begin"


def _attacked_while_it_holds(ground: Ground, identity: str) -> str:
    """Attack again where the gate was closed meanwhile, as a machine that is emulated on a busy computer may have it."""
    for _ in range(5):
        ground.gate.wait_for(lambda state: state["is_enforcing"], 60, "the gate enforces again")
        if any(one["what"] == "closed" for one in ground.gate.happenings):
            _until_it_refuses(ground)  # the guard comes back a moment after the gate
        closed = len(ground.gate.happenings)
        outcome = _attacked(ground, identity)
        if len(ground.gate.happenings) == closed:
            return outcome
    return outcome


def _attacked(ground: Ground, identity: str) -> str:
    """Return "ran" or "stopped", or how the attack itself failed."""
    ground.count += 100  # names that no other child takes
    attacker = os.fork()
    if attacker == 0:
        code = 2
        try:
            with open(f"{CGROUP}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
            bypass = next(one for one in BYPASSES if one.identity == identity)
            code = int(bool(bypass.attack(ground)))
        except BaseException as error:  # noqa: BLE001 -- the parent tells of it
            say(attack=identity, failed=repr(error))
        finally:
            os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(attacker, 0)[1])
    return {0: "stopped", 1: "ran"}.get(ended, f"ended with {ended}")
