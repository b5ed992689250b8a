"""What each computer shall have right now, at the price of one query for a heartbeat.

Compiled policies are kept by everything they are made of: the tenant's revision, the shipped rules, the policy, the system,
what the agent declares, and the computer itself where it overrides something. So a thousand computers of one policy are one
compilation, and a change makes new ones by changing the revision.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.contract.policy import ContentReference, EffectivePolicy
from keibi.errors import InputError
from keibi.manager.computers.tables import ComputerRecord, ReportRecord
from keibi.manager.keys import UnlockSecrets
from keibi.manager.policies import forest as forests
from keibi.manager.policies.compiler import Compiled, compile_policy
from keibi.manager.policies.pattern_names import NoPatterns, PatternSource
from keibi.manager.policies.resolution import resolve
from keibi.manager.policies.tables import ComputerOverridesRecord, GenerationRecord, PolicyRevisionRecord
from keibi.manager.rules.service import RuleService
from keibi.protection.base import Module

MAX_KEPT = 4096


@dataclass(frozen=True)
class _Key:
    tenant_id: str
    revision: str
    content: str
    policy_id: str | None
    os_name: str
    declared: tuple[tuple[str, int], ...]
    computer_id: str  # "" when it overrides nothing


class EffectivePolicies:
    """Answers heartbeats. Thread-safe."""

    def __init__(
        self,
        rules: RuleService,
        modules: Sequence[Module],
        unlock_secrets: UnlockSecrets | None = None,
        patterns: PatternSource = NoPatterns(),
    ) -> None:
        self._rules = rules
        self._patterns = patterns
        self._modules = tuple(modules)
        self._unlock_secrets = unlock_secrets
        self._kept: OrderedDict[_Key, Compiled] = OrderedDict()
        self._lock = threading.Lock()
        self.compilations = 0

    def effective(self, session: Session, computer_id: str, declared: Mapping[str, int] | None = None) -> EffectivePolicy:
        """Return the policy of a computer under its generation; writes only when the content differs from what it had.

        Raises:
            InputError: there is no such computer.
        """
        row = session.execute(
            select(
                ComputerRecord.tenant_id,
                ComputerRecord.policy_id,
                ComputerRecord.display_name,
                ReportRecord.os_name,
                PolicyRevisionRecord.revision,
                ComputerOverridesRecord.overrides,
                GenerationRecord.generation,
                GenerationRecord.digest,
            )
            .outerjoin(ReportRecord, ReportRecord.id == ComputerRecord.id)
            .outerjoin(PolicyRevisionRecord, PolicyRevisionRecord.id == ComputerRecord.tenant_id)
            .outerjoin(ComputerOverridesRecord, ComputerOverridesRecord.id == ComputerRecord.id)
            .outerjoin(GenerationRecord, GenerationRecord.id == ComputerRecord.id)
            .where(ComputerRecord.id == computer_id)
        ).one_or_none()
        if row is None:
            raise InputError("computer_not_found", f"there is no computer {computer_id!r}")
        tenant_id, policy_id, name, os_name, revision, overrides, generation, digest = row
        key = _Key(
            tenant_id,
            revision or "",
            self._rules.shipped.digest,
            policy_id,
            os_name or "",
            tuple(sorted((declared or {}).items())),
            computer_id if (overrides or forests.NOTHING_SAID) != forests.NOTHING_SAID else "",
        )
        compiled = self._compiled(session, key, name)
        if digest != compiled.digest:
            generation = self._next_generation(session, tenant_id, computer_id, compiled.digest)
        return EffectivePolicy(
            generation=generation,
            policy_name=compiled.policy_name,
            modules=compiled.modules,
            heartbeat_seconds=compiled.heartbeat_seconds,
            # Never part of the digest: it stays the same for as long as the computer exists.
            unlock_secret=self._unlock_secrets.of(computer_id) if self._unlock_secrets else b"",
        )

    def content_of(self, session: Session, computer_id: str) -> dict[str, ContentReference]:
        """Return the files that a computer's policy names now, by digest; empty when there is no such computer."""
        row = session.execute(
            select(
                ComputerRecord.tenant_id,
                ComputerRecord.policy_id,
                ComputerRecord.display_name,
                ReportRecord.os_name,
                PolicyRevisionRecord.revision,
                ComputerOverridesRecord.overrides,
            )
            .outerjoin(ReportRecord, ReportRecord.id == ComputerRecord.id)
            .outerjoin(PolicyRevisionRecord, PolicyRevisionRecord.id == ComputerRecord.tenant_id)
            .outerjoin(ComputerOverridesRecord, ComputerOverridesRecord.id == ComputerRecord.id)
            .where(ComputerRecord.id == computer_id)
        ).one_or_none()
        if row is None:
            return {}
        tenant_id, policy_id, name, os_name, revision, overrides = row
        speaks = (overrides or forests.NOTHING_SAID) != forests.NOTHING_SAID
        # Nothing declared: which settings an agent knows makes no difference to the files that it is given.
        key = _Key(
            tenant_id, revision or "", self._rules.shipped.digest, policy_id, os_name or "", (), computer_id if speaks else ""
        )
        compiled = self._compiled(session, key, name)
        return {reference.sha256: reference for part in compiled.modules for reference in part.content}

    def _compiled(self, session: Session, key: _Key, computer_name: str) -> Compiled:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        forest = forests.load(session, key.tenant_id)
        used = forest.used_by(key.policy_id, key.os_name)
        compiled = compile_policy(
            resolve(forest.layers(used, key.computer_id, computer_name), self._modules),
            self._modules,
            self._rules.catalog(session, key.tenant_id),
            key.os_name,
            dict(key.declared),
            forest.path(used) if used is not None else "",
            self._patterns.contents(session, key.tenant_id),
        )
        with self._lock:
            self.compilations += 1
            self._kept[key] = compiled
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _next_generation(self, session: Session, tenant_id: str, computer_id: str, digest: str) -> int:
        record = session.get(GenerationRecord, computer_id, with_for_update=True)
        if record is None:
            record = GenerationRecord(id=computer_id, tenant_id=tenant_id, generation=0, digest="", changed_at=0.0)
            session.add(record)
        if record.digest != digest:
            record.generation += 1
            record.digest, record.changed_at = digest, time.time()
        session.flush()
        return record.generation


def lock_tree(session: Session, tenant_id: str) -> PolicyRevisionRecord:
    """Wait until nobody else changes this tenant's tree, and hold that until the transaction ends."""
    record = session.get(PolicyRevisionRecord, tenant_id, with_for_update=True)
    if record is None:
        record = PolicyRevisionRecord(id=tenant_id, tenant_id=tenant_id, revision=new_id())
        session.add(record)
        session.flush()
    return record


def touch(session: Session, tenant_id: str) -> None:
    """Say that something changed of which this tenant's policies are made."""
    lock_tree(session, tenant_id).revision = new_id()
    session.flush()
