"""From groups of changes that somebody chose to the entries of a ruleset."""

from collections.abc import Sequence
from typing import Literal

from keibi.errors import InputError
from keibi.manager.software.model import ChangeGroup
from keibi.protection.application_control.rules import Entry, HashEntry, InterpreterEntry, PackageEntry, PathEntry

DecideBy = Literal["hash", "package", "path"]
INLINE = "inline:"
PATH = "path:"


def entries_of(groups: Sequence[ChangeGroup], by: DecideBy = "hash", *, only_root_writable: bool = True) -> list[Entry]:
    """Return entries for groups by content.

    Code without a file is of its interpreter whatever is asked for, and a file without a hash is of its path.

    Raises:
        InputError: a group has no package, or a path that no pattern can name.
    """
    entries: list[Entry] = []
    for group in groups:
        if group.key.startswith(INLINE):
            entries.append(InterpreterEntry(path=_pattern(group.key.removeprefix(INLINE))))
        elif by == "package":
            if group.package is None:
                raise InputError(
                    "package_unknown",
                    f"{_name(group)} belongs to no package",
                    hint="decide by its content or its path",
                )
            entries.append(PackageEntry(name=group.package.name, origin=group.package.origin))
        elif by == "path" or not group.sha256:
            paths = group.paths or (group.key.removeprefix(PATH),)
            if group.path_count > len(paths):
                raise InputError(
                    "paths_too_many",
                    f"{_name(group)} lies at {group.path_count} paths",
                    hint="write a pattern of them into a ruleset, or decide by content",
                )
            entries += [PathEntry(pattern=_pattern(path), only_root_writable=only_root_writable) for path in paths]
        else:
            entries.append(HashEntry(sha256=group.sha256, name=group.paths[0] if group.paths else ""))
    return entries


def _pattern(path: str) -> str:
    """Return a path as a pattern of itself.

    Raises:
        InputError: it has characters that stand for others in a pattern.
    """
    if any(character in path for character in "*?\\"):
        raise InputError(
            "pattern_impossible", f"no pattern can name exactly {path[:200]!r}", hint="decide by its content instead"
        )
    return path


def _name(group: ChangeGroup) -> str:
    return group.paths[0] if group.paths else group.key
