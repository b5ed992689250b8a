"""Builds the sensor's kernel programs: `python -m keibi.agent.linux.bpf.build`. Needs clang and libbpf's headers.

The object fits every kernel from 5.8 on that has type information (/sys/kernel/btf/vmlinux), not only this one.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence

from keibi.errors import InputError, KeibiError, TryLaterError

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sensor.bpf.c")
OBJECT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sensor.bpf.o")
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


def build(output: str = OBJECT) -> str:
    """Write the object and return its path. It appears whole or not at all.

    Raises:
        InputError: clang is not installed, or this is no architecture that Keibi knows.
        TryLaterError: clang refused, or the directory cannot be written.
    """
    clang = shutil.which("clang")
    if clang is None:
        raise InputError("clang_absent", "clang is not installed", hint="apt-get install clang libbpf-dev")
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise InputError("architecture_unknown", f"no kernel part for {platform.machine()!r}")
    unfinished = f"{output}.{os.getpid()}"
    command = [clang, "-O2", "-g", "-Wall", "-Werror", "-Wno-missing-declarations", "-target", "bpf"]
    command += [f"-D__TARGET_ARCH_{architecture}", "-c", SOURCE, "-o", unfinished]
    try:
        finished = subprocess.run(command, capture_output=True, timeout=120, check=False)
        if finished.returncode:
            complaint = finished.stderr.decode("utf-8", "replace").strip()
            raise TryLaterError(
                "bpf_not_built", f"clang ended with {finished.returncode}: {complaint}", where=SOURCE, hint="is libbpf-dev there?"
            )
        if strip := shutil.which("llvm-strip"):
            # Leaves the type information that the loader needs, and takes the debugger's away.
            subprocess.run([strip, "-g", unfinished], capture_output=True, timeout=60, check=False)
        os.replace(unfinished, output)
    except OSError as error:
        raise TryLaterError("bpf_not_built", f"the object cannot be written: {error.strerror}", where=output) from error
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and return 0 when the object is there."""
    parser = argparse.ArgumentParser(description="Build the sensor's kernel programs.")
    parser.add_argument("--output", default=OBJECT)
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(build(options.output) + "\n")
    except KeibiError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
