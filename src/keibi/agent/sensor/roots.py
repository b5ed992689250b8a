"""Which paths are wanted, and under which name they are told.

A root is told of by the name it was asked for, wherever it really lies: `/bin` is asked for and `/usr/bin` is where the kernel
sees a change, because one is a symbolic link to the other.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from keibi.agent.linux.mounts import below


@dataclass(frozen=True)
class Place:
    """How a directory shows. `names` None: everything in it is wanted, shown as `prefix` + name; else only these names are."""

    prefix: bytes
    names: Mapping[bytes, tuple[bytes, ...]] | None = None


class Roots:
    """The watched roots, where they really lie, and what is left out of them."""

    def __init__(self, roots: Iterable[bytes], excluded: Iterable[bytes] = (), remote: Iterable[bytes] = ()) -> None:
        """`remote`: mount points of filesystems that are not asked for anything, since their server may be away."""
        self.asked = tuple(roots)
        self._excluded = tuple(os.path.realpath(path) for path in excluded)
        self._remote = tuple(remote)
        self.pairs = self._resolve()

    def refresh(self, remote: Iterable[bytes] | None = None) -> bool:
        """Look again where symbolic links lead; returns whether that has changed."""
        if remote is not None:
            self._remote = tuple(remote)
        pairs = self._resolve()
        has_changed = pairs != self.pairs
        self.pairs = pairs
        return has_changed

    def real(self) -> list[bytes]:
        """Return where the roots really lie."""
        return [real for real, _ in self.pairs]

    def places(self, directory: bytes) -> tuple[Place, ...]:
        """Return how what lies in a directory (its real path) is shown; empty when nothing in it is wanted."""
        if any(below(directory, excluded) is not None for excluded in self._excluded):
            return ()
        places = []
        names: dict[bytes, tuple[bytes, ...]] = {}
        for real, shown in self.pairs:
            rest = below(directory, real)
            if rest is not None:
                places.append(Place(shown.rstrip(b"/") + rest + b"/"))
            elif rest := below(real, directory):
                # The root itself, or a directory above it, is a name in here: when that goes, so does the root.
                name = rest[1:].partition(b"/")[0]
                names[name] = (*names.get(name, ()), shown)
        return (*places, Place(b"", names)) if names else tuple(places)

    def _resolve(self) -> tuple[tuple[bytes, bytes], ...]:
        pairs = []
        for root in self.asked:
            if any(below(root, point) is not None for point in self._remote):
                pairs.append((root, root))
                continue
            parent, name = os.path.split(root.rstrip(b"/"))
            # The name itself too, not only what it leads to: the link may be replaced.
            named = os.path.join(os.path.realpath(parent or b"/"), name) if name else b"/"
            pairs.append((named, root))
            if (real := os.path.realpath(root)) != named:
                pairs.append((real, root))
        return tuple(pairs)
