"""In which order the file systems are looked through: where programs of the system lie first, homes last.

So what everybody needs to work is known in seconds, also where homes hold a million files.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

PROGRAMS = (b"/bin", b"/lib", b"/lib64", b"/opt", b"/sbin", b"/usr")
HOMES = (b"/home", b"/root")


@dataclass(frozen=True)
class Stage:
    """One walk: from `roots` down, but not into what has a walk of its own."""

    roots: tuple[bytes, ...]
    left_out: frozenset[bytes] = frozenset()


def stages_of(roots: Sequence[bytes]) -> list[Stage]:
    """Return the walks over some roots, of which each directory below them is in one."""
    programs, homes = _those_below(PROGRAMS, roots), _those_below(HOMES, roots)
    stages = [Stage(programs), Stage(tuple(roots), frozenset(programs + homes)), Stage(homes)]
    return [stage for stage in stages if stage.roots]


def _those_below(places: Sequence[bytes], roots: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the places that are directories below one of the roots; not symlinks, as /bin often is one."""
    return tuple(
        place for place in places if any(place.startswith(root.rstrip(b"/") + b"/") for root in roots) and _is_directory(place)
    )


def _is_directory(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False
