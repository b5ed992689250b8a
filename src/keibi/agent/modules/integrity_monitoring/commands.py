"""What a person can ask of the baseline: what it holds, what changed between versions, and how a file was before."""

import sqlite3
from typing import Any

from keibi.agent.linux.files import Absent, ContentOutcome, FileState, FileType, Unreadable, Wish, read_file_state
from keibi.agent.modules.integrity_monitoring.attributes import attributes_of, entity_type_of
from keibi.agent.modules.integrity_monitoring.baseline import FILE, LoggedChange
from keibi.agent.modules.integrity_monitoring.drifts import Drift, State, decode_state
from keibi.agent.modules.integrity_monitoring.examiner import Examiner, Policy
from keibi.errors import InputError, RefusedError
from keibi.protection.base import escape_name, unescape_name
from keibi.protection.integrity_monitoring.engine import changed_attributes
from keibi.protection.integrity_monitoring.rules import Change, EntityType

MAX_LISTED = 1000


def key_of(arguments: dict[str, Any], name: str = "key") -> bytes:
    """Return the raw key that an argument names in its escaped form.

    Raises:
        InputError: it is missing, or no escaped name.
    """
    text = arguments.get(name)
    if not isinstance(text, str) or not text:
        raise InputError("argument_missing", f"the command needs the argument {name!r}")
    try:
        return unescape_name(text)
    except ValueError as error:
        raise InputError("argument_invalid", f"{name} is no escaped name: {error}") from error


def list_baseline(examiner: Examiner, policy: Policy, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return versions, newest first, and with `prefix` the entries at and below it; `after` continues a page."""
    limit = _limit(arguments)
    with examiner.lock:
        versions = [
            {
                "version": version.version, "kind": str(version.kind), "started_at": version.started_at,
                "finished_at": version.finished_at, "entry_count": version.entry_count, "change_count": version.change_count,
            }
            for version in reversed(examiner.baseline.versions())
        ]  # fmt: skip
        result: dict[str, Any] = {
            "versions": versions[:limit],
            "drifts": [shown_drift(examiner, policy, one) for one in examiner.drifts.all()],
        }
        if "prefix" in arguments:
            prefix, after = key_of(arguments, "prefix"), str(arguments.get("after", ""))
            states = [examiner.baseline.file(prefix), *examiner.baseline.files_under(prefix)]
            entries = sorted((escape_name(state.path), state) for state in states if state is not None)
            page = [(key, state) for key, state in entries if key > after][:limit]
            result["entries"] = [{"key": key, **attributes_of(state, examiner.names)} for key, state in page]
            result["next"] = page[-1][0] if len(page) == limit else ""
    return result


def compare_baseline(examiner: Examiner, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what differs between the versions `before` and `after`, at most `limit` entries (MAX_LISTED in all)."""
    older, newer = sorted((_version(arguments, "before"), _version(arguments, "after")))
    limit = _limit(arguments)
    changes: list[dict[str, Any]] = []
    with examiner.lock:
        for change in examiner.baseline.changes_between(older, newer):
            if len(changes) == limit:
                break
            changes.append(_shown_change(examiner, change))
    return {"changes": changes, "is_complete": len(changes) < limit}


def shown_drift(examiner: Examiner, policy: Policy, drift: Drift) -> dict[str, Any]:
    """Return a drift for a person: what the baseline has, what is there, and which watched attributes differ."""
    before: State = examiner.baseline.file(drift.key) if drift.type == FILE else examiner.baseline.entity(drift.type, drift.key)
    known = drift.after if drift.after is not None else before
    type_ = entity_type_of(known) if isinstance(known, FileState) else EntityType(drift.type)
    was, now = _shown(examiner, before), _shown(examiner, drift.after)
    watched = frozenset[str]().union(*(one.attributes for one in policy.watching.compiled.sets_for(type_, drift.key)))
    return {
        "drift_id": drift.drift_id,
        "type": str(type_),
        "key": escape_name(drift.key),
        "change": _change_of(was, now),
        "changed_attributes": changed_attributes(was, now, watched) if was is not None and now is not None else [],
        "detected_at": drift.detected_at,
        "event_id": drift.event_id,
        "decision": str(drift.decision),
        "before": was,
        "after": now,
    }


def preview_restore(examiner: Examiner, policy: Policy, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what a restore of the file would change, and whether it can be done."""
    path, then, now = _then_and_now(examiner, arguments)
    content, reason = _content_then(policy, then, now)
    difference = policy.contents.difference(now, then) if now is not None or then is not None else None
    return {
        "key": escape_name(path),
        "can_restore": not reason,
        "reason": reason,
        "restores_content": content is not None,
        "difference": difference.text if difference else "",
        "difference_note": difference.note if difference else "",
        "masked_count": difference.masked_count if difference else 0,
        "before": _shown(examiner, now),
        "after": _shown(examiner, then),
        "expected_hash": _hash_now(now),
    }


def prepare_restore(examiner: Examiner, policy: Policy, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return everything that `restore.restore_file` needs (the core's `FileToRestore`), for the core to carry out.

    Raises:
        RefusedError: the file is not what the preview showed, or cannot be restored; the message says why.
    """
    path, then, now = _then_and_now(examiner, arguments)
    content, reason = _content_then(policy, then, now)
    if reason or then is None:
        raise RefusedError("cannot_restore", f"the file cannot be restored: {reason}", where=escape_name(path))
    expected = _hash_now(now)
    if arguments.get("expected_hash") not in (None, expected):
        raise RefusedError(
            "restore_changed", "the file changed since the preview", where=escape_name(path), hint="look at a new preview"
        )
    examiner.expect_restore(path, then.content_hash)
    return {
        "path": path,
        "content": content,
        "mode": then.permissions,
        "uid": then.uid,
        "gid": then.gid,
        "expected_hash": expected,
        "algorithm": examiner.algorithm,
    }


def _then_and_now(examiner: Examiner, arguments: dict[str, Any]) -> tuple[bytes, FileState | None, FileState | None]:
    path = key_of(arguments)
    version = arguments.get("version")
    with examiner.lock:
        then = _state_at(examiner.baseline.connection, path, _version(arguments, "version")) if version else False
        state = examiner.baseline.file(path) if isinstance(then, bool) else then
    found = read_file_state(path, Wish.STATE | Wish.CONTENT, algorithm=examiner.algorithm)
    if isinstance(found, Unreadable):
        raise RefusedError("cannot_read", f"the file cannot be read: {found.problem}", where=escape_name(path))
    return path, state, None if isinstance(found, Absent) else found


def _state_at(connection: sqlite3.Connection, path: bytes, version: int) -> FileState | bool | None:
    """Return what a path was in a version; False when it has not changed since."""
    row = connection.execute(
        "SELECT before FROM change WHERE type = ? AND key = ? AND version > ? ORDER BY version LIMIT 1", (FILE, path, version)
    ).fetchone()
    if row is None:
        return False
    state = decode_state(FILE, row[0])
    return state if isinstance(state, FileState) else None


def _content_then(policy: Policy, then: FileState | None, now: FileState | None) -> tuple[bytes | None, str]:
    """Return the content to write (None: it need not be written) and why it cannot be done ("" when it can)."""
    if then is None:
        return None, "it did not exist then; delete it by hand if it is unwanted"
    if then.type is not FileType.REGULAR or (now is not None and now.type is not FileType.REGULAR):
        return None, "only regular files are restored"
    if now is not None and now.content_hash == then.content_hash and then.content is ContentOutcome.HASHED:
        is_same = (now.permissions, now.uid, now.gid) == (then.permissions, then.uid, then.gid)
        return None, "it is as it was" if is_same else ""
    content = policy.contents.kept(then)
    return content, "" if content is not None else "no copy of its content is kept (binary, too large, or not kept by policy)"


def _hash_now(now: FileState | None) -> str:
    return now.content_hash.hex() if now is not None and now.type is FileType.REGULAR else ""


def _shown_change(examiner: Examiner, change: LoggedChange) -> dict[str, Any]:
    known = change.after if change.after is not None else change.before
    was, now = _shown(examiner, change.before), _shown(examiner, change.after)
    return {
        "type": str(entity_type_of(known)) if isinstance(known, FileState) else change.type,
        "key": escape_name(change.key),
        "change": _change_of(was, now),
        "before": was,
        "after": now,
    }


def _change_of(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    return str(Change.CREATED if before is None else Change.DELETED if after is None else Change.UPDATED)


def _shown(examiner: Examiner, state: State) -> dict[str, Any] | None:
    return attributes_of(state, examiner.names) if isinstance(state, FileState) else state


def _limit(arguments: dict[str, Any]) -> int:
    limit = arguments.get("limit", 200)
    return max(1, min(MAX_LISTED, limit)) if isinstance(limit, int) else 200


def _version(arguments: dict[str, Any], name: str) -> int:
    value = arguments.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError("argument_invalid", f"{name} must be the number of a version, not {value!r}")
    return value
