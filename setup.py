"""Builds the C part; everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "keibi.agent.linux._files",
            ["src/keibi/agent/linux/_files.c"],
            libraries=["crypto"],
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
    ]
)
