"""Own rules as values: each version of each is parsed once."""

import logging
import threading
from collections.abc import Iterable, Iterator

from keibi.contract.names import ModuleId
from keibi.manager.rules.checking import check_text
from keibi.manager.rules.model import CatalogRule, RuleInvalidError, RuleSource
from keibi.manager.rules.tables import OwnRuleRecord

MAX_PARSED = 5000

logger = logging.getLogger("keibi.rules")


class OwnRules:
    """Makes rules of rows. Thread-safe."""

    def __init__(self) -> None:
        self._parsed: dict[tuple[str, int, str], CatalogRule] = {}
        self._lock = threading.Lock()

    def readable(self, records: Iterable[OwnRuleRecord]) -> Iterator[CatalogRule]:
        """Yield the stored rules; one that can no longer be read is logged and left out: the others must still reach agents."""
        for record in records:
            try:
                yield self(record)
            except RuleInvalidError as error:
                logger.warning("the own rule %s of tenant %s cannot be read: %s", record.rule_id, record.tenant_id, error)

    def __call__(self, record: OwnRuleRecord) -> CatalogRule:
        """Return a stored rule.

        Raises:
            RuleInvalidError: this program can no longer read it at all.
        """
        # The text is part of the key: a version that was rolled back comes again with another one.
        key = (record.id, record.version, record.text)
        with self._lock:
            found = self._parsed.get(key)
        if found is not None:
            return found
        # It was checked when it was written; to a newer program it may have problems that do not stop it.
        rule, problems = check_text(ModuleId(record.module), record.text)
        if rule is None:
            raise RuleInvalidError(problems, record.rule_id)
        found = CatalogRule(
            rule=rule,
            module=ModuleId(record.module),
            source=RuleSource.OWN,
            text=record.text,
            tenant_id=record.tenant_id,
            changed_at=record.changed_at,
            changed_by=record.changed_by,
        )
        with self._lock:
            if len(self._parsed) >= MAX_PARSED:
                self._parsed.clear()
            self._parsed[key] = found
        return found
