"""Log lines that a person can read at 3 a.m.: time, level, what happened, then the values.

    2026-11-26T01:05:58.123Z warning worker ended worker=integrity_monitoring how="signal SIGKILL" restart_in_seconds=1.0

Values are escaped, because names of files and answers of servers are hostile. The same line is written at most a few
times a minute; what was left out is counted in the next one.
"""

import datetime as dt
import sys
import threading
import time
from enum import StrEnum
from typing import TextIO

from keibi.errors import KeibiError
from keibi.protection.base import escape_name

MAX_VALUE_CHARACTERS = 400


class Level(StrEnum):
    """How much a line matters."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Log:
    """Writes lines to a stream; shared by all threads of the agent."""

    def __init__(self, least: Level = Level.INFO, *, stream: TextIO | None = None, lines_a_minute: int = 10) -> None:
        self._least = list(Level).index(least)
        self._stream = stream
        self._lines_a_minute = lines_a_minute
        self._lock = threading.Lock()
        self._written: dict[str, list[float]] = {}
        self._left_out: dict[str, int] = {}

    def debug(self, what: str, **values: object) -> None:
        """Write a line that only somebody who looks for a fault wants."""
        self._write(Level.DEBUG, what, values)

    def info(self, what: str, **values: object) -> None:
        """Write a line about something that is as it should be."""
        self._write(Level.INFO, what, values)

    def warning(self, what: str, **values: object) -> None:
        """Write a line about something that mends itself, but that one should know."""
        self._write(Level.WARNING, what, values)

    def error(self, what: str, error: BaseException | None = None, **values: object) -> None:
        """Write a line about something that somebody must act on."""
        if isinstance(error, KeibiError):
            values = {**values, "code": error.code, "error": str(error)}
        elif error is not None:
            values = {**values, "error": f"{type(error).__name__}: {error}"}
        self._write(Level.ERROR, what, values)

    def _write(self, level: Level, what: str, values: dict[str, object]) -> None:
        if list(Level).index(level) < self._least:
            return
        with self._lock:
            now = time.monotonic()
            recent = [at for at in self._written.get(what, ()) if now - at < 60.0]
            if len(recent) >= self._lines_a_minute:
                self._written[what] = recent
                self._left_out[what] = self._left_out.get(what, 0) + 1
                return
            self._written[what] = [*recent, now]
            if left_out := self._left_out.pop(what, 0):
                values = {**values, "similar_lines_left_out": left_out}
            stream = self._stream or sys.stderr
            try:
                stream.write(_line(level, what, values))
                stream.flush()
            except (OSError, ValueError):
                return  # whoever read the log is gone; protecting the computer matters more


def _line(level: Level, what: str, values: dict[str, object]) -> str:
    at = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    return " ".join([f"{at}Z", f"{level:7}", what, *(f"{name}={_value(value)}" for name, value in values.items())]) + "\n"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = escape_name(value if isinstance(value, bytes | str) else str(value))
    if len(text) > MAX_VALUE_CHARACTERS:
        text = text[:MAX_VALUE_CHARACTERS] + "…"
    return '"' + text.replace('"', '\\"') + '"' if not text or " " in text or '"' in text else text
