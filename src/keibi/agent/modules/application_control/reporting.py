"""Events about software: written with the inventory in one transaction, and the same thing again and again told as a count."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from keibi.agent.modules.application_control.inventory import Inventory
from keibi.contract.events import Actor, Event, EventAction
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.protection.application_control.events import ApplicationRecord, Kind

REPEAT_SECONDS = 60.0
MAX_KNOWN = 10_000


@dataclass(slots=True)
class _Repeated:
    event: Event
    told_at: float
    count: int = 0  # since it was told


@dataclass
class Reporter:
    """Writes events into the outbox. Any thread may use it."""

    inventory: Inventory
    generation: Callable[[], int]
    repeat_seconds: float = REPEAT_SECONDS
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: "OrderedDict[tuple[object, ...], _Repeated]" = field(default_factory=OrderedDict)
    _counted: "dict[tuple[object, ...], _Repeated]" = field(default_factory=dict)  # those with a count: few among many

    def tell(
        self,
        kind: Kind,
        severity: Severity,
        message: str,
        record: ApplicationRecord | None = None,
        *,
        subject: str = "",
        action: EventAction = EventAction.DETECTED,
        actor: Actor = Actor(),
        rule_version: int = 0,
        reason: str = "",
        same: tuple[object, ...] = (),
    ) -> None:
        """Write an event. What has the same key `same` as one told a short while ago is only counted."""
        event = Event(
            event_id=new_id(),
            module=ModuleId.APPLICATION_CONTROL,
            kind=str(kind),
            severity=severity,
            detected_at=time.time(),
            rule_id=record.rule_id if record else "",
            rule_version=rule_version,
            action=action,
            subject=subject,
            entity_type=str(record.file_type) if record and record.file_type else "",
            reason=reason,
            message=message,
            actor=actor,
            policy_generation=self.generation(),
            details=msgspec.to_builtins(record) if record else {},
        )
        if same and self._is_repeated(same, event):
            return
        self._write(event)

    def count_again(self, same: tuple[object, ...], count: int) -> bool:
        """Count what a gate answered from its memory; False when nothing is known of it."""
        with self._lock:
            known = self._known.get(same)
            if known is None:
                return False
            known.count += count
            self._counted[same] = known
            return True

    def flush(self, *, everything: bool = False) -> None:
        """Tell of what was repeated and not told for a while."""
        now = time.monotonic()
        with self._lock:
            due = [
                self._again(repeated, now)
                for repeated in self._counted.values()
                if everything or now - repeated.told_at >= self.repeat_seconds
            ]
            self._counted = {same: repeated for same, repeated in self._counted.items() if repeated.count}
        for event in due:
            self._write(event)

    def _is_repeated(self, same: tuple[object, ...], event: Event) -> bool:
        now = time.monotonic()
        forgotten: list[Event] = []
        with self._lock:
            known = self._known.get(same)
            if known is not None and (known.count or now - known.told_at < self.repeat_seconds):
                known.count += 1
                self._counted[same] = known
                self._known.move_to_end(same)
                return True
            self._known[same] = _Repeated(event, now)
            while len(self._known) > MAX_KNOWN:
                key, oldest = self._known.popitem(last=False)
                if oldest.count:
                    del self._counted[key]
                    forgotten.append(self._again(oldest, now))
        for one in forgotten:
            self._write(one)
        return False

    def _again(self, repeated: _Repeated, now: float) -> Event:
        details = {**repeated.event.details, "repeat_count": repeated.count}
        repeated.count, repeated.told_at = 0, now
        return msgspec.structs.replace(repeated.event, event_id=new_id(), detected_at=time.time(), details=details)

    def _write(self, event: Event) -> None:
        with self.inventory.transaction():
            self.inventory.outbox.append([event])
