"""Which agent this is."""

import importlib.metadata


def agent_version() -> str:
    """Return the version of the installed distribution."""
    return importlib.metadata.version("keibi")
