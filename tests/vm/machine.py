"""Runs a test machine until it has said everything, or the time is over."""

import json
import pathlib
import subprocess
import tempfile
from typing import Any

from tests.vm.image import Image

BOOT_SECONDS = 150.0


def run(image: Image, *, processor: str = "max") -> tuple[list[dict[str, Any]], str]:
    """Boot, and return what the guest reported (one JSON object a line) and the end of its console."""
    with tempfile.TemporaryDirectory() as directory:
        report, console = pathlib.Path(directory, "report"), pathlib.Path(directory, "console")
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", processor, "-smp", "2", "-m", "768"]
        command += [
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-kernel",
            str(image.kernel),
            "-initrd",
            str(image.file_system),
        ]
        command += [
            "-append",
            "console=ttyS0 quiet panic=-1 rdinit=/init",
            "-serial",
            f"file:{console}",
            "-serial",
            f"file:{report}",
        ]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as machine:
            try:
                _, complaint = machine.communicate(timeout=BOOT_SECONDS)
            except subprocess.TimeoutExpired:
                machine.kill()
                _, complaint = machine.communicate()
        lines = report.read_text("utf-8", "replace").splitlines() if report.exists() else []
        end = console.read_text("utf-8", "replace")[-4000:] if console.exists() else ""
        return [json.loads(line) for line in lines if line.startswith("{")], complaint.decode() + end
