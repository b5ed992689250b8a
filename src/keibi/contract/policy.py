"""The effective policy of one computer: already inherited, overridden and compiled by the manager."""

from enum import StrEnum

import msgspec

from keibi.contract.names import ModuleId


class ModuleState(StrEnum):
    """What the policy wants of a module: REAL_TIME is for integrity monitoring, DETECT and PREVENT for those that can block."""

    OFF = "off"
    ON = "on"
    REAL_TIME = "real-time"
    DETECT = "detect"
    PREVENT = "prevent"


class AssignedRule(msgspec.Struct, frozen=True):
    """A rule as this computer shall run it. `body` is the JSON text of the module's rule struct, opaque to all but the module."""

    rule_id: str
    version: int
    body: bytes


class ContentReference(msgspec.Struct, frozen=True):
    """A file too large for a policy, such as a set of patterns: the agent has it before it applies the policy.

    Fetched with GET /agent/v1/content/{sha256}, kept at `{state}/content/{sha256}`.
    """

    sha256: str
    size: int
    kind: str  # the module's own word: "yara_source", "sha256_list", "clamav"
    name: str


class ModulePolicy(msgspec.Struct, frozen=True):
    """What one module shall do. `settings` is the JSON text of the module's settings struct, which rejects unknown fields."""

    module: ModuleId
    state: ModuleState
    settings: bytes
    rules: list[AssignedRule] = []
    content: list[ContentReference] = []


class EffectivePolicy(msgspec.Struct, frozen=True):
    """All modules of one computer under one generation, which grows with every change that reaches this computer."""

    generation: int
    policy_name: str
    modules: list[ModulePolicy] = []
    heartbeat_seconds: int = 60
    unlock_secret: bytes = b""  # of this computer; see contract.unlock
