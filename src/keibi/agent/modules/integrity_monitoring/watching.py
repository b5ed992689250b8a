"""From compiled rules to what a scan takes of each directory."""

from collections.abc import Iterable
from functools import lru_cache

from keibi.agent.linux.files import Wish
from keibi.agent.modules.integrity_monitoring.attributes import WISHES
from keibi.agent.modules.integrity_monitoring.file_pages import join_path
from keibi.agent.modules.integrity_monitoring.scan_plan import DirectoryDecision
from keibi.protection.integrity_monitoring.engine import CompiledRules, CompiledSet
from keibi.protection.integrity_monitoring.rules import EntityType


class Watching:
    """What the rules want of each directory and file. The agent's own state directory is never watched."""

    def __init__(self, compiled: CompiledRules, own_directories: Iterable[bytes]) -> None:
        self.compiled = compiled
        self._own = tuple(own_directories)
        self.decide = lru_cache(maxsize=4096)(self._decide)

    @property
    def roots(self) -> list[bytes]:
        """Where scans begin."""
        return self.compiled.watch_roots()

    @property
    def real_time_roots(self) -> list[bytes]:
        """What the sensor is to tell of."""
        return self.compiled.watch_roots(only_real_time=True)

    def is_own(self, path: bytes) -> bool:
        """Whether it is the agent's own state: watching that would never come to rest."""
        return any(path == own or path.startswith(own + b"/") for own in self._own)

    def wish_of(self, path: bytes) -> Wish:
        """Return what is wanted of one path that is no directory."""
        return _wish(self.compiled.sets_for(EntityType.FILE, path))

    def _decide(self, directory: bytes) -> DirectoryDecision | None:
        if self.is_own(directory):
            return None
        sets = self.compiled.sets_reaching(directory)
        if not sets:
            return None
        files = [one for one in sets if one.type is EntityType.FILE]
        directories = [one for one in sets if one.type is EntityType.DIRECTORY]
        takes_all = not self.compiled.never.patterns and all(one.takes_all_of(directory) for one in files)
        return DirectoryDecision(
            files=_wish(files) if takes_all else Wish.NOTHING,
            directories=_wish(directories) | Wish.STATE,
            select=None if takes_all or not files else lambda name: self.wish_of(join_path(directory, name)),
            follow_links=any(one.follow_links for one in sets),
            cross_filesystems=any(one.cross_filesystems for one in sets),
        )


def _wish(sets: Iterable[CompiledSet]) -> Wish:
    wish = Wish.NOTHING
    for one in sets:
        wish |= Wish.STATE
        for name in one.attributes:
            wish |= WISHES.get(name, Wish.STATE)
        if one.append_only:
            wish |= Wish.CONTENT
    return wish
