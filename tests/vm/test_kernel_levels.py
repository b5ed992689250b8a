"""Level A of the guard, which needs a kernel that takes BPF LSM programs: Debian's stock ones do."""

import pathlib
import shutil

import pytest

from tests.vm.image import ROOT, build, newest_kernel
from tests.vm.machine import run

pytestmark = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed: make test-vm does it")

KERNELS = {
    "6.1.0": "max",
    # QEMU 7.2 does not do all that this kernel finds in "max".
    "6.12": "max,la57=off,cx16=off",
}


@pytest.mark.timeout(280)
@pytest.mark.parametrize("version", KERNELS)
def test_the_kernel_refuses_what_was_not_approved(version):
    package = newest_kernel(version)
    if package is None:
        pytest.skip(f"apt knows no stock kernel {version} here")
    reports, console = run(build(package, pathlib.Path(ROOT, "build", "vm")), processor=KERNELS[version])
    facts = {name: value for report in reports if "case" not in report for name, value in report.items()}
    assert facts.get("finished"), f"the machine ended early: {facts}\n{console}"
    assert facts["level"] == "A", facts["reason"]
    wrong = [report for report in reports if "case" in report and report["ran"] != report["expected"]]
    assert wrong == []
    assert facts["told"].keys() == {"exec", "map", "signal", "trace"}
