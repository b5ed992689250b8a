"""Ids and closed sets of words that agent and manager share."""

import secrets
import time
from enum import StrEnum
from typing import NewType

ComputerId = NewType("ComputerId", str)
TenantId = NewType("TenantId", str)
RuleId = NewType("RuleId", str)
EventId = NewType("EventId", str)
CommandId = NewType("CommandId", str)


class ModuleId(StrEnum):
    """The seven protection modules. Which of them are built is `protection.catalog.MODULES`."""

    ANTI_MALWARE = "anti_malware"
    WEB_REPUTATION = "web_reputation"
    FIREWALL = "firewall"
    INTRUSION_PREVENTION = "intrusion_prevention"
    INTEGRITY_MONITORING = "integrity_monitoring"
    LOG_INSPECTION = "log_inspection"
    APPLICATION_CONTROL = "application_control"


class Severity(StrEnum):
    """How grave a rule's author holds a match to be, from least to most."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """1 (low) to 4 (critical), for ordering and filters such as *high and above*."""
        return list(Severity).index(self) + 1


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562) as 32 hex digits: ids made later sort later, to the millisecond."""
    milliseconds = time.time_ns() // 1_000_000
    tail = secrets.randbits(74)
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (tail >> 62) << 64 | 0b10 << 62 | tail & (1 << 62) - 1
    return f"{value:032x}"
