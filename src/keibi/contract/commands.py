"""Commands: one request to an agent, and its answer. Fetched in a heartbeat; a long-poll only says that there are some."""

from enum import StrEnum
from typing import Any

import msgspec

from keibi.contract.names import ModuleId


class CommandKind(StrEnum):
    """What an agent can be asked to do."""

    SCAN = "scan"
    REBUILD_BASELINE = "rebuild_baseline"
    PREVIEW_RESTORE = "preview_restore"
    RESTORE = "restore"
    DECIDE_DRIFT = "decide_drift"
    LIST_BASELINE = "list_baseline"
    COMPARE_BASELINE = "compare_baseline"
    DIAGNOSE = "diagnose"
    # Anti-malware
    PAUSE_SCAN = "pause_scan"  # {"scan_id"}; the id of a scan is the id of the command that began it
    RESUME_SCAN = "resume_scan"
    CANCEL_SCAN = "cancel_scan"
    LIST_QUARANTINE = "list_quarantine"  # {"after", "limit"}
    RESTORE_QUARANTINED = "restore_quarantined"  # {"quarantine_ids", "allow_until"}: a day, by which a policy allows them too
    DELETE_QUARANTINED = "delete_quarantined"  # {"quarantine_ids"}
    FETCH_QUARANTINED = "fetch_quarantined"  # {"quarantine_id", "password"}: an encrypted archive, sent as an upload
    # Application control
    BUILD_INVENTORY = "build_inventory"
    LIST_SOFTWARE = "list_software"  # {"text", "after", "limit"}
    SET_MAINTENANCE = "set_maintenance"  # {"minutes"}; 0 ends it


class CommandState(StrEnum):
    """Where a command stands."""

    PENDING = "pending"
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"  # the agent may not or cannot do it at all, with the reason
    EXPIRED = "expired"


class Command(msgspec.Struct, frozen=True):
    """One command. An agent runs each `command_id` once, also after a restart."""

    command_id: str
    kind: CommandKind
    module: ModuleId | None = None
    arguments: dict[str, Any] = {}
    expires_at: float = 0.0


class CommandResult(msgspec.Struct, frozen=True):
    """What came of it. RUNNING results may come many times, with progress; the others once."""

    command_id: str
    state: CommandState
    message: str = ""
    progress: float | None = None  # 0 to 1, where the end is known
    result: dict[str, Any] = {}
    at: float = 0.0
