"""Events, batches and people for the tests of the event store."""

import asyncio
import random
import time

from keibi.contract.events import Actor, Event, EventBatch
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.manager.access.model import BUILT_IN_ROLES, GrantedRole, Principal
from keibi.manager.events.feed import EventFeed
from keibi.manager.events.ingest import EventIngest


class Groups:
    """The computers of each group, as a test says."""

    def __init__(self):
        self.computer_ids = {}

    def ids_in_groups(self, tenant_id, group_ids):
        return frozenset().union(*(self.computer_ids.get(group_id, frozenset()) for group_id in group_ids))


def an_event(subject="/etc/passwd", *, at=None, **fields):
    values = {
        "event_id": new_id(),
        "module": ModuleId.INTEGRITY_MONITORING,
        "kind": "file.updated",
        "severity": Severity.HIGH,
        "detected_at": time.time() if at is None else at,
        "rule_id": "keibi.linux.etc",
        "rule_version": 3,
        "subject": subject,
        "entity_type": "file",
        "message": f"{subject} was changed",
        "actor": Actor(
            process="/usr/bin/vim", pid=4242, parent="/bin/bash", user="root", uid=0, login_user="alice", source="bpf"
        ),
        "policy_generation": 7,
        "details": {"change": "updated", "before": {"size": 1}, "after": {"size": 2}},
    }
    return Event(**{**values, **fields})


def many_events(count, **fields):
    return [an_event(f"/srv/{random.randrange(10**9)}/{number}.conf", **fields) for number in range(count)]


def a_batch(*made):
    return EventBatch(batch_id=new_id(), events=list(made))


def principal(*tenant_ids, role="administrator", groups=None, current=None):
    permissions = BUILT_IN_ROLES[role].permissions
    grants = tuple(GrantedRole(permissions, tenant_id, groups) for tenant_id in tenant_ids)
    return Principal(
        user_id="u" * 32, name="alice", kind="session", tenant_ids=frozenset(tenant_ids), grants=grants, current_tenant_id=current
    )


def with_ingest(store, use, **options):
    """Run `use(ingest)` in an event loop with a started ingest."""

    async def run():
        ingest = EventIngest(store, EventFeed(), **options)
        await ingest.start()
        try:
            return await use(ingest)
        finally:
            await ingest.stop()

    return asyncio.run(run())
