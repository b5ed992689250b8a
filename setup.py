"""Builds the C parts; everything else is in pyproject.toml."""

from setuptools import Extension, setup


def part(name: str, *libraries: str) -> Extension:
    """Return one C part of `keibi.agent.linux`."""
    return Extension(
        f"keibi.agent.linux.{name}",
        [f"src/keibi/agent/linux/{name}.c"],
        libraries=list(libraries),
        extra_compile_args=[
            "-O2",
            "-Wall",
            "-Wextra",
            "-Wconversion",
            "-Wno-sign-conversion",
            "-fstack-protector-strong",
            "-D_FORTIFY_SOURCE=2",
        ],
    )


setup(ext_modules=[part("_files", "crypto"), part("_answers")])
