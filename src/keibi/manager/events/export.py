"""Events as CSV, line by line, so that a million of them need no memory."""

import csv
import datetime as dt
import io
from collections.abc import Iterable, Iterator

from keibi.manager.events.model import EventRow

_COLUMNS = {
    "detected_at": "検知日時",
    "changed_at": "更新日時",
    "computer_id": "コンピュータ",
    "module": "モジュール",
    "severity": "重要度",
    "kind": "種別",
    "action": "処理",
    "subject": "対象",
    "message": "メッセージ",
    "reason": "理由",
    "rule_id": "ルール",
    "user": "ユーザ",
    "login_user": "ログインユーザ",
    "process": "プロセス",
    "pid": "PID",
    "parent": "親プロセス",
    "container": "コンテナ",
    "tags": "タグ",
    "event_id": "イベントID",
}
_STARTS_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_lines(rows: Iterable[EventRow], language: str) -> Iterator[str]:
    """Return the lines of a CSV file (RFC 4180, with a byte order mark so that spreadsheets read Japanese); times are UTC."""
    yield "\ufeff" + _line(_COLUMNS.values() if language == "ja" else _COLUMNS)
    for row in rows:
        yield _line(
            (
                _moment(row.detected_at),
                _moment(row.changed_at),
                row.computer_id,
                row.module.value,
                row.severity.value,
                row.kind,
                row.action.value,
                row.subject,
                row.message,
                row.reason,
                row.rule_id,
                row.actor.user,
                row.actor.login_user,
                row.actor.process,
                str(row.actor.pid or ""),
                row.actor.parent,
                row.actor.container,
                " ".join(row.tags),
                row.event_id,
            )
        )


def _line(values: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow([_harmless(value) for value in values])
    return out.getvalue()


def _harmless(value: str) -> str:
    # A spreadsheet runs a cell that begins like a formula, and a file on a protected computer can have any name.
    return f"'{value}" if value.startswith(_STARTS_FORMULA) else value


def _moment(at: float | None) -> str:
    if at is None:
        return ""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
