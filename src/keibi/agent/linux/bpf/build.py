"""Builds the agent's kernel programs: `python -m keibi.agent.linux.bpf.build`. Needs clang and libbpf's headers.

The objects fit every kernel from 5.8 on that has type information (/sys/kernel/btf/vmlinux), not only this one.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence

from keibi.errors import InputError, KeibiError, TryLaterError

_DIRECTORY = os.path.dirname(os.path.abspath(__file__))
OBJECT = os.path.join(_DIRECTORY, "sensor.bpf.o")
GUARD_OBJECT = os.path.join(_DIRECTORY, "guard.bpf.o")
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


def build(output: str) -> str:
    """Write the object, from the source of that name in this directory, and return its path. It appears whole or not at all.

    Raises:
        InputError: clang is not installed, or this is no architecture that Keibi knows.
        TryLaterError: clang refused, or the directory cannot be written.
    """
    source = os.path.join(_DIRECTORY, os.path.basename(output).removesuffix(".o") + ".c")
    clang = shutil.which("clang")
    if clang is None:
        raise InputError("clang_absent", "clang is not installed", hint="apt-get install clang libbpf-dev")
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise InputError("architecture_unknown", f"no kernel part for {platform.machine()!r}")
    unfinished = f"{output}.{os.getpid()}"
    command = [clang, "-O2", "-g", "-Wall", "-Werror", "-Wno-missing-declarations", "-target", "bpf"]
    command += [f"-D__TARGET_ARCH_{architecture}", "-c", source, "-o", unfinished]
    try:
        finished = subprocess.run(command, capture_output=True, timeout=120, check=False)
        if finished.returncode:
            complaint = finished.stderr.decode("utf-8", "replace").strip()
            raise TryLaterError(
                "bpf_not_built", f"clang ended with {finished.returncode}: {complaint}", where=source, hint="is libbpf-dev there?"
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
    """Build, and return 0 when the objects are there."""
    parser = argparse.ArgumentParser(description="Build the agent's kernel programs.")
    parser.add_argument("--directory", default=_DIRECTORY, help="where to write the objects")
    options = parser.parse_args(arguments)
    try:
        for path in (OBJECT, GUARD_OBJECT):
            sys.stdout.write(build(os.path.join(options.directory, os.path.basename(path))) + "\n")
    except KeibiError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
