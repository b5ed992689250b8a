"""A manager's event intake as a process of its own: prints a line for each acknowledged batch, until it is killed."""

import asyncio
import sys
import time
from pathlib import Path

from keibi.contract.events import Event, EventBatch
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.errors import TryLaterError
from keibi.manager.events.client import ClickHouse
from keibi.manager.events.daemon import EventDaemon
from keibi.manager.events.feed import EventFeed
from keibi.manager.events.ingest import EventIngest
from keibi.manager.events.store import EventStore

BATCH_EVENTS = 50


def make_event() -> Event:
    return Event(
        event_id=new_id(),
        module=ModuleId.INTEGRITY_MONITORING,
        kind="file.updated",
        severity=Severity.LOW,
        detected_at=time.time(),
        subject="/etc/x",
        details={"text": "x" * 300},
    )


async def agent(ingest: EventIngest, number: int) -> None:
    """Send batches like an agent: the same batch again until it is acknowledged."""
    while True:
        batch = EventBatch(batch_id=new_id(), events=[make_event() for _ in range(BATCH_EVENTS)])
        while True:
            try:
                await ingest.submit("a" * 32, f"{number:032x}", batch)
                break
            except TryLaterError:
                await asyncio.sleep(0.1)
        sys.stdout.write(" ".join(event.event_id for event in batch.events) + "\n")
        sys.stdout.flush()


async def main(directory: str) -> None:
    daemon = EventDaemon(Path(directory))
    daemon.start()
    store = EventStore(ClickHouse(daemon.url, key=daemon.key))
    store.prepare()
    ingest = EventIngest(store, EventFeed())
    await ingest.start()
    sys.stdout.write(f"eventd {daemon.status().pid}\n")
    sys.stdout.flush()
    await asyncio.gather(*(agent(ingest, number) for number in range(20)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
