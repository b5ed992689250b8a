"""Whether a module's engine takes the settings and rules of a level. One line for each module that is built."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keibi.contract.names import ModuleId
from keibi.protection.integrity_monitoring.engine import compile_rules

ModuleCheck = Callable[[Any, Sequence[Any]], None]
"""Called with the settings struct and all assigned rules; raises InputError when they do not compile together."""


def module_checks() -> Mapping[ModuleId, ModuleCheck]:
    """Return the check of each built module."""
    return {ModuleId.INTEGRITY_MONITORING: _check_integrity_monitoring}


def _check_integrity_monitoring(settings: Any, rules: Sequence[Any]) -> None:
    compile_rules(rules, settings)
