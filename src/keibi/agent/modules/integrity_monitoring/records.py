"""From a verdict to the event that tells of it."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from keibi.agent.modules.integrity_monitoring.contents import PACKAGE_MANAGERS
from keibi.contract.events import Actor, Event, EventAction
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.protection.integrity_monitoring.difference import ContentDifference, mask_secrets
from keibi.protection.integrity_monitoring.engine import Verdict
from keibi.protection.integrity_monitoring.events import IntegrityRecord, PackageOrigin, ScanSource
from keibi.protection.integrity_monitoring.packages import origin_sentence
from keibi.protection.integrity_monitoring.rules import EntityType

_MAY_HOLD_SECRETS = {EntityType.PROCESS, EntityType.SERVICE}


def integrity_event(
    verdict: Verdict,
    source: ScanSource,
    *,
    actor: Actor,
    changed_at: float | None,
    policy_generation: int,
    baseline_version: int,
    difference: ContentDifference,
    package: PackageOrigin | None,
    can_restore: bool,
    is_restored: bool,
    masks_secrets: bool,
) -> Event:
    """Return the event of a verdict, with a new id. The drift id of the approval mode is put in later (`with_drift`)."""
    before, after, masked = verdict.before, verdict.after, difference.masked_count
    if masks_secrets and verdict.type in _MAY_HOLD_SECRETS:
        (before, count_before), (after, count_after) = _masked(before), _masked(after)
        masked += count_before + count_after
    record = IntegrityRecord(
        change=verdict.change,
        source=source,
        before=before,
        after=after,
        changed_attributes=verdict.changed_attributes,
        previous_key=verdict.previous_key,
        difference=difference.text,
        difference_note=difference.note,
        masked_count=masked,
        package=package,
        matching_rules=verdict.matching_rules,
        baseline_version=baseline_version,
        can_restore=can_restore,
    )
    # Told all the same, but nobody is woken: the package manager wrote it, and it is what its database says.
    is_upgrade = package is not None and package.is_verified and actor.process in PACKAGE_MANAGERS
    message = verdict.message
    if package is not None:
        message += " " + origin_sentence(package)
    if is_restored:
        message += " It was restored from the baseline on request."
    return Event(
        event_id=new_id(),
        module=ModuleId.INTEGRITY_MONITORING,
        kind=verdict.kind,
        severity=Severity.LOW if is_restored or is_upgrade else verdict.severity,
        detected_at=round(time.time(), 6),
        changed_at=changed_at,
        rule_id=verdict.rule.id,
        rule_version=verdict.rule.version,
        action=EventAction.RESTORED if is_restored else EventAction.DETECTED,
        subject=verdict.key,
        entity_type=verdict.type,
        reason=verdict.rule.description.en,
        message=message,
        actor=actor,
        policy_generation=policy_generation,
        details=msgspec.to_builtins(record),
    )


def with_drift(event: Event, drift_id: str) -> Event:
    """Return the event with the id by which its drift can be approved or rejected."""
    return msgspec.structs.replace(event, details={**event.details, "drift_id": drift_id})


def recovery_event(since: float, until: float, reason: str, policy_generation: int) -> Event:
    """Return the event that says that observations may be missing and the watched roots are being looked at again."""
    return Event(
        event_id=new_id(),
        module=ModuleId.INTEGRITY_MONITORING,
        kind="agent.observations_missing",
        severity=Severity.LOW,
        detected_at=round(time.time(), 6),
        reason=reason,
        message=f"For {max(0.0, until - since):.1f} seconds changes may have been missed in real time ({reason}); "
        "a scan of everything watched finds what they were.",
        policy_generation=policy_generation,
        details={"since": since, "until": until},
    )


def _masked(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    count = 0
    masked: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, str):
            masked[name], found = mask_secrets(value)
            count += found
        elif isinstance(value, list):
            pairs = [mask_secrets(item) if isinstance(item, str) else (item, 0) for item in value]
            masked[name] = [pair[0] for pair in pairs]
            count += sum(pair[1] for pair in pairs)
        else:
            masked[name] = value
    return masked, count
