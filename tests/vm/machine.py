"""Runs a test machine until it has said everything, or the time is over."""

import json
import pathlib
import subprocess
import tempfile
from typing import Any

from tests.vm.image import Image

SECONDS = 600.0
END_BYTES = 4000


class Machine:
    """A machine that runs. `close` must be called by whoever made it."""

    def __init__(self, image: Image, *, processor: str = "max") -> None:
        """Boot it. It has no network and no disk."""
        self._directory = tempfile.TemporaryDirectory()
        self._report = pathlib.Path(self._directory.name, "report")
        self._console = pathlib.Path(self._directory.name, "console")
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", processor, "-smp", "2", "-m", "1024"]
        command += ["-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-kernel", str(image.kernel), "-initrd", str(image.file_system)]
        command += ["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]
        command += ["-serial", f"file:{self._console}", "-serial", f"file:{self._report}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(self) -> tuple[list[dict[str, Any]], str]:
        """Wait for its end, and return what the guest reported (one JSON object a line) and the end of its console."""
        complaint = b""
        try:
            if self._process.poll() is None:
                _, complaint = self._process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, complaint = self._process.communicate()
        lines = self._report.read_text("utf-8", "replace").splitlines() if self._report.exists() else []
        end = self._console.read_text("utf-8", "replace")[-END_BYTES:] if self._console.exists() else ""
        return [json.loads(line) for line in lines if line.startswith("{")], complaint.decode("utf-8", "replace") + end

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._directory.cleanup()
