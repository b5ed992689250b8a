"""The record inside an application control event (`Event.details`), and the closed set of kinds."""

from enum import StrEnum
from typing import Any

import msgspec


class Kind(StrEnum):
    """`Event.kind` of an application control event."""

    BLOCKED = "software.blocked"
    WOULD_BLOCK = "software.would_block"  # detect mode: prevent would have blocked it
    APPEARED = "software.appeared"
    CHANGED = "software.changed"
    DISTRUSTED = "software.distrusted"  # it was trusted or about to be, and anti-malware found a threat in it
    TRUSTED_AGAIN = "software.trusted_again"  # somebody allowed the threat, or it is not found any more
    OVERDUE = "software.overdue"  # no verdict in time, answered by the settings
    INLINE_CODE = "software.inline_code"  # reported and let run
    INVENTORY_FINISHED = "inventory.finished"
    MAINTENANCE_STARTED = "maintenance.started"
    MAINTENANCE_ENDED = "maintenance.ended"
    UNLOCKED = "control.unlocked"


KINDS = tuple(str(kind) for kind in Kind)


class FileKind(StrEnum):
    """`details.file_type`."""

    PROGRAM = "program"
    LIBRARY = "library"
    SCRIPT = "script"
    INTERPRETER = "interpreter"  # inline code: the file is the interpreter


class ReasonCode(StrEnum):
    """`details.reason_code`: why a verdict is as it is. The first seven can block."""

    MALWARE = "malware"  # anti-malware found a threat in the content
    UNRECOGNISED = "unrecognised"
    CHANGED = "changed"  # the inventory knows the path with another content
    BLOCK_RULE = "block_rule"
    INLINE_CODE = "inline_code"
    BEING_WRITTEN = "being_written"  # somebody holds it open for writing, so what runs is not what was judged
    OUT_OF_SIGHT = "out_of_sight"  # in memory, or on a file system that no gate has seen; met by the kernel guard
    ALLOW_RULE = "allow_rule"
    INVENTORY = "inventory"
    TRUSTED_UPDATER = "trusted_updater"
    MAINTENANCE = "maintenance"
    FLOOR = "floor"  # must never be blocked: agent, PID 1, login path, package manager
    UNRECOGNISED_ALLOWED = "unrecognised_allowed"  # the settings allow it until a rule blocks it
    NOT_SOFTWARE = "not_software"


class PackageRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The package that a file belongs to."""

    name: str
    version: str = ""
    origin: str = ""
    signer: str = ""  # key id of its repository (deb) or of itself (rpm)


class BroughtBy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who wrote a file: user, program, and the package where there is one."""

    user: str = ""
    process: str = ""
    package: str = ""


class ApplicationRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """`Event.details` of an event about software."""

    reason_code: ReasonCode
    sha256: str = ""
    size: int = 0
    file_type: FileKind | None = None
    previous_sha256: str = ""  # software.changed
    package: PackageRecord | None = None
    brought_by: BroughtBy | None = None
    rule_id: str = ""
    state: str = ""  # "trusted" or "unrecognised": what the inventory holds of it after this event
    source: str = ""  # "real-time", "inventory" (found by building or checking it)
    threat: str = ""  # what anti-malware found in the content
    process_chain: list[dict[str, Any]] = []
    inline: str = ""  # "command", "stdin" or "odd_name"
    command_line: str = ""  # inline code, cut
    repeat_count: int = 0  # how many times the same was counted since the event before
    milliseconds_to_verdict: float = 0.0
    is_proof: bool = False
