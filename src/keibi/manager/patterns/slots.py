"""Who may import now: few at once for the computer's sake, and one of each customer, so that nobody keeps the others waiting."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from keibi.errors import TryLaterError

MAX_AT_ONCE = 2
"""Each may take gigabytes of memory and minutes of a processor."""
RETRY_SECONDS = 15.0


class ImportSlots:
    """Counts the imports that are under way. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._importing: set[str] = set()

    @contextmanager
    def taken(self, tenant_id: str) -> Iterator[None]:
        """Keep a slot of a customer for as long as the context lasts.

        Raises:
            TryLaterError: that customer imports already, or too many others do.
        """
        with self._lock:
            if tenant_id in self._importing or len(self._importing) >= MAX_AT_ONCE:
                whose = "another import of yours is" if tenant_id in self._importing else "other imports are"
                raise TryLaterError(
                    "import_busy", f"{whose} under way", hint="wait until it has ended", retry_after_seconds=RETRY_SECONDS
                )
            self._importing.add(tenant_id)
        try:
            yield
        finally:
            with self._lock:
                self._importing.discard(tenant_id)
