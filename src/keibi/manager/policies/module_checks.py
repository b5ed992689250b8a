"""Whether a module's engine takes the settings and rules of a level. One line for each module that is built."""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from keibi.contract.names import ModuleId
from keibi.manager.rules.model import body_of
from keibi.protection.anti_malware.policy_check import check_rules, check_settings
from keibi.protection.anti_malware.settings import AntiMalwareSettings
from keibi.protection.application_control.engine import compile_rules as compile_application_rules
from keibi.protection.application_control.settings import ApplicationControlSettings
from keibi.protection.integrity_monitoring.engine import compile_rules
from keibi.protection.integrity_monitoring.settings import IntegrityMonitoringSettings

ModuleCheck = Callable[[Any, Sequence[Any]], None]
"""Called with the settings struct and all assigned rules; raises InputError when they do not compile together."""

MAX_REMEMBERED = 20_000


def module_checks() -> Mapping[ModuleId, ModuleCheck]:
    """Return the check of each built module."""
    return {
        ModuleId.INTEGRITY_MONITORING: IntegrityMonitoringCheck(),
        ModuleId.APPLICATION_CONTROL: check_application_control,
        ModuleId.ANTI_MALWARE: AntiMalwareCheck(),
    }


def check_application_control(settings: ApplicationControlSettings, rules: Sequence[Any]) -> None:
    """Do nothing when settings and rulesets compile.

    Raises:
        InputError: they do not; the engine says where.
    """
    compile_application_rules(rules, settings)


class AntiMalwareCheck:
    """Compiles each YARA source with the compiler that agents use, once, and then remembers it. Thread-safe."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._lock = threading.Lock()

    def __call__(self, settings: AntiMalwareSettings, rules: Sequence[Any]) -> None:
        """Do nothing when an agent can use the settings and the sources compile.

        Raises:
            InputError: a setting is wrong, or a source does not compile; says where.
        """
        check_settings(settings)
        for rule in rules:
            key = hashlib.sha256(rule.yara.encode()).digest()
            if key in self._known:
                continue
            check_rules([rule])
            with self._lock:
                if len(self._known) >= MAX_REMEMBERED:
                    self._known.clear()
                self._known.add(key)


class IntegrityMonitoringCheck:
    """Compiles with the engine that agents use. Thread-safe.

    Rules do not depend on each other, only on the variables, and a tree names the same ones again and again: each is compiled
    once and then remembered, so that a change at the root of a large tree costs milliseconds.
    """

    def __init__(self) -> None:
        self._known: set[tuple[bytes, bytes]] = set()
        self._lock = threading.Lock()

    def __call__(self, settings: IntegrityMonitoringSettings, rules: Sequence[Any]) -> None:
        """Do nothing when they compile.

        Raises:
            InputError: they do not; the engine says where.
        """
        compile_rules([], settings)
        variables = msgspec.json.encode(settings.variables, order="deterministic")
        plain = IntegrityMonitoringSettings(variables=settings.variables)
        for rule in rules:
            key = (body_of(rule), variables)
            if key not in self._known:
                compile_rules([rule], plain)
                with self._lock:
                    if len(self._known) >= MAX_REMEMBERED:
                        self._known.clear()
                    self._known.add(key)
