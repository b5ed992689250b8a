"""Each known way round ends as the table says: on a real private gate, with the real worker as its judge."""

import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import pytest

from keibi.agent.gate.private import PrivateGate
from keibi.protection.application_control.rules import RuleAction
from keibi.protection.application_control.settings import ApplicationControlSettings, InlineCode
from tests.system.application_control_bypasses import (
    ALLOWED,
    BLOCKED,
    BYPASSES,
    JUDGED,
    KERNEL_REFUSES,
    NOT_COVERED,
    REPORTED,
    Bypass,
    Ground,
    compile_material,
    compile_ring,
)
from tests.system.application_control_worker import ApplicationControlWorker, hash_entry, ruleset
from tests.system.gate_judges import wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="permission events need root"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the attacks are compiled with gcc, which is not installed"),
]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApplicationControlWorker]:
    directory = tmp_path_factory.mktemp("agent")
    os.chmod(directory, 0o755)
    known = tmp_path_factory.mktemp("known")
    # The interpreter that attacks use: a copy of it elsewhere is recognised by its content.
    shutil.copy(os.path.realpath("/usr/bin/python3"), known / "python3")
    worker = ApplicationControlWorker(str(directory), roots=(str(known),))
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def ground(worker: ApplicationControlWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    built = tmp_path_factory.mktemp("material")
    material, ring = compile_material(built), compile_ring(built)
    mount = tmp_path_factory.mktemp("mount")
    settings = ApplicationControlSettings(
        inventory_cpu_percent=400, inline_code=InlineCode.BLOCK, inline_code_from_uid=0, deadline_milliseconds=10_000
    )
    settings = type(settings)(
        **{
            **{name: getattr(settings, name) for name in settings.__struct_fields__},
            "interpreters": (*settings.interpreters, f"{mount}/python3"),
        }
    )
    worker.configure(ruleset(RuleAction.ALLOW, hash_entry(material.good), hash_entry(material.good_library)), settings=settings)
    with PrivateGate(str(mount), worker.judges) as gate:
        yield Ground(gate, material, ring)


@pytest.mark.parametrize("bypass", BYPASSES, ids=lambda bypass: f"{bypass.identity} {bypass.what}")
def test_a_known_way_round_ends_as_the_table_says(worker: ApplicationControlWorker, ground: Ground, bypass: Bypass) -> None:
    _skip_what_this_kernel_lacks(ground, bypass)
    told = sum(event.kind in JUDGED for event in worker.events)
    ran = bypass.attack(ground)
    if bypass.expected == ALLOWED:
        assert ran
        return
    if bypass.expected == BLOCKED:
        assert not ran
        return
    assert ran, "it is blocked here: the table is too modest"
    if bypass.expected == REPORTED:
        worker.wait(lambda: sum(event.kind in JUDGED for event in worker.events) > told, 5.0)
    else:
        assert bypass.expected == NOT_COVERED


def _skip_what_this_kernel_lacks(ground: Ground, bypass: Bypass) -> None:
    if bypass.identity == "48" and not ground.ring:
        pytest.skip("this kernel has no io_uring")


@pytest.mark.parametrize("bypass", [bypass for bypass in BYPASSES if bypass.with_guard], ids=lambda bypass: bypass.what)
def test_the_kernel_guard_stops_what_no_mark_sees(
    worker: ApplicationControlWorker,
    ground: Ground,
    bypass: Bypass,
    cgroup: str,
    tmp_path: pathlib.Path,
) -> None:
    told = len(worker.events)
    with PrivateGate(str(tmp_path), worker.judges, guard_scope=cgroup) as gate:
        wait_until(lambda: any(one["what"] == "guard" for one in gate.happenings), 30, "the guard")
        if not any(one.get("level") for one in gate.happenings):
            pytest.skip("no level of the guard loads here")
        # The attacker alone is in the cgroup that the guard looks at.
        attacker = os.fork()
        if attacker == 0:
            os._exit(_attack_in(cgroup, Ground(gate, ground.material, ground.ring), bypass))
        assert os.waitstatus_to_exitcode(os.waitpid(attacker, 0)[1]) == 0, "it ran all the same"
        # Of two programs of one name in one minute the second is counted with the first. On a busy computer the gate may see the
        # new file system before the attacker executes anything, and then it blocks the program itself.
        worker.wait(
            lambda: (
                any(event.kind == "software.blocked" for event in worker.events[told:])
                or any(event.details.get("reason_code") == "out_of_sight" for event in worker.events)
            ),
            10.0,
        )


def _attack_in(cgroup_directory: str, ground: Ground, bypass: Bypass) -> int:
    """Attack until it fails, since the guard begins with the next look of the warden; returns 1 when it never does."""
    with open(f"{cgroup_directory}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
    until = time.monotonic() + 10
    while bypass.attack(ground):
        if time.monotonic() > until:
            return 1
    return 0


@pytest.fixture(scope="module")
def open_ground(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The same ground where nobody judges."""
    judges = tmp_path_factory.mktemp("nobody")
    with PrivateGate(str(tmp_path_factory.mktemp("open_mount")), str(judges)) as gate:
        yield Ground(gate, ground.material, ground.ring)


@pytest.mark.parametrize("bypass", BYPASSES, ids=lambda bypass: f"{bypass.identity} {bypass.what}")
def test_each_attack_works_where_nobody_judges(open_ground: Ground, bypass: Bypass) -> None:
    _skip_what_this_kernel_lacks(open_ground, bypass)
    assert bypass.attack(open_ground) or bypass.identity in KERNEL_REFUSES


def test_the_table_has_each_case_once() -> None:
    assert len({bypass.identity for bypass in BYPASSES}) == len(BYPASSES)
