"""Everything watched that is no file: collected from the drivers, as maps of key to attributes."""

import os
from collections.abc import Callable
from typing import Any

from keibi.agent.linux import accounts, processes, registry, services, software
from keibi.agent.linux.accounts import AccountNames
from keibi.agent.linux.ports import ListeningPorts
from keibi.errors import KeibiError
from keibi.protection.integrity_monitoring.engine import REGISTRY_TYPES, CompiledRules
from keibi.protection.integrity_monitoring.rules import EntityType

Entities = dict[str, dict[str, Any]]


class EntityCollectors:
    """The drivers, by entity type. A driver that fails gives no entities and a problem, never an empty system."""

    def __init__(self, names: AccountNames, fingerprint_key: bytes) -> None:
        self._ports = ListeningPorts(names)
        self._collect: dict[EntityType, Callable[[], Entities]] = {
            EntityType.PROCESS: lambda: processes.collect(names),
            EntityType.PORT: self._ports.collect,
            EntityType.USER: lambda: accounts.collect_users(fingerprint_key),
            EntityType.GROUP: accounts.collect_groups,
            EntityType.SERVICE: services.collect,
            EntityType.SOFTWARE: software.collect,
        }
        self._stamps: dict[EntityType, object] = {}

    def collect(self, type_: EntityType, compiled: CompiledRules) -> tuple[Entities | None, list[str]]:
        """Return the watched entities of a type and what could not be read; None when nothing is known of the type now."""
        try:
            if type_ in REGISTRY_TYPES:
                return _registry(type_, compiled)
            found = self._collect[type_]()
        except (OSError, KeibiError) as error:
            return None, [f"{type_}: {error}"]
        return {key: entity for key, entity in found.items() if compiled.sets_for(type_, _key(key))}, []

    def may_have_changed(self, type_: EntityType) -> bool:
        """Whether a look is worth while: cheap, and true for what has no cheap sign of change."""
        paths = {
            EntityType.USER: ("/etc/passwd", "/etc/shadow", "/etc/group"),
            EntityType.GROUP: ("/etc/group",),
            EntityType.SOFTWARE: ("/var/lib/dpkg/status", "/var/lib/rpm", "/usr/lib/sysimage/rpm"),
            EntityType.SERVICE: services.UNIT_DIRECTORIES,
        }.get(type_)
        if paths is None:
            return type_ not in REGISTRY_TYPES
        stamp = [_stamp(path) for path in paths]
        if self._stamps.get(type_) == stamp:
            return False
        self._stamps[type_] = stamp
        return True


def _registry(type_: EntityType, compiled: CompiledRules) -> tuple[Entities | None, list[str]]:
    found: Entities = {}
    problems: list[str] = []
    for hive, key in sorted(compiled.registry_bases()):
        try:
            content = registry.read_hive(hive, key)
        except KeibiError as error:
            problems.append(str(error))
            continue
        problems += content.problems
        found |= content.keys if type_ is EntityType.REGISTRY_KEY else content.values
    if problems:
        # Half a registry must not look like a registry from which the rest was deleted.
        return None, problems
    return {key: entity for key, entity in found.items() if compiled.sets_for(type_, _key(key))}, []


def _key(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _stamp(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino, found.st_size)
