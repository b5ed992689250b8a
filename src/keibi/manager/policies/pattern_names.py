"""Names of pattern sets in policies: from the setting to the files that agents fetch, and whether there are such sets."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy.orm import Session

from keibi.contract.names import ModuleId
from keibi.contract.policy import ContentReference
from keibi.errors import InputError
from keibi.manager.policies.overrides import Overrides

SETTING = "pattern_sets"
"""Of anti-malware: the names of sets."""

PatternContents = Mapping[str, Sequence[ContentReference]]
"""Contents of the current version of each set that a tenant may use, by the set's name."""


class PatternSource(Protocol):
    """Whoever keeps pattern sets."""

    def contents(self, session: Session, tenant_id: str) -> PatternContents:
        """Return the contents of all sets that a tenant may use."""
        ...


class NoPatterns:
    """For a manager without pattern sets, as in tests of policies."""

    def contents(self, session: Session, tenant_id: str) -> PatternContents:
        """Return nothing."""
        del session, tenant_id
        return {}


def names_in(overrides: Overrides) -> list[str]:
    """Return the sets that a level names itself."""
    part = overrides.modules.get(ModuleId.ANTI_MALWARE)
    said: Any = part.settings.get(SETTING) if part is not None else None
    return [name for name in said if isinstance(name, str)] if isinstance(said, list) else []


def check_pattern_names(known: PatternContents, overrides: Overrides, before: Overrides) -> None:
    """Do nothing when there is every set that a level names; what it named before is not asked again.

    Raises:
        InputError: there is none of such a name, with the nearest.
    """
    for name in names_in(overrides):
        if name not in known and name not in names_in(before):
            near = difflib.get_close_matches(name, known, n=1)
            there_are = ", ".join(sorted(known)) or "none; import one first"
            raise InputError(
                "pattern_set_unknown",
                f"there is no pattern set {name!r}",
                where=f"{ModuleId.ANTI_MALWARE}.settings.{SETTING}",
                hint=f"did you mean {near[0]!r}?" if near else f"there are: {there_are}",
            )


def references(settings: Mapping[str, Any], known: PatternContents) -> list[ContentReference]:
    """Return the files that the settings of a module ask for, each once."""
    names: Sequence[str] = settings.get(SETTING, ())
    found = {reference.sha256: reference for name in names for reference in known.get(name, ())}
    return list(found.values())
