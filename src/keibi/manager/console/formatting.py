"""Times, sizes and numbers as a reader of one language in one time zone expects them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from markupsafe import Markup

from keibi.manager.console.language import Catalogue

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def zone_named(name: str) -> tzinfo:
    """Return the time zone of that IANA name, or UTC where the host does not know it."""
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


@dataclass(frozen=True)
class Format:
    """How values are written for one reader."""

    catalogue: Catalogue
    zone: tzinfo
    zone_name: str
    now: Callable[[], float]

    def moment(self, at: float) -> str:
        """Return a moment as 2026/11/22 13:05:09 (Japanese) or 2026-11-22 13:05:09."""
        pattern = "%Y/%m/%d %H:%M:%S" if self.catalogue.language == "ja" else "%Y-%m-%d %H:%M:%S"
        return datetime.fromtimestamp(at, self.zone).strftime(pattern)

    def exact(self, at: float) -> str:
        """Return a moment to the microsecond with its zone, for the tooltip."""
        moment = datetime.fromtimestamp(at, self.zone)
        offset = moment.strftime("%z")
        return f"{self.moment(at)}.{moment.microsecond:06d} {self.zone_name} (UTC{offset[:3]}:{offset[3:]})"

    def time(self, at: float | None) -> Markup:
        """Return a `<time>` element, or a dash for no moment."""
        return self._element(at, self.moment(at)) if at else Markup('<span class="muted">–</span>')

    def ago(self, at: float | None) -> Markup:
        """Return how long ago in words, with the exact moment on hover."""
        return self._element(at, self.ago_words(at)) if at else Markup('<span class="muted">–</span>')

    def ago_words(self, at: float) -> str:
        """Return "12 seconds ago", "in 5 minutes", or the date when it is more than a month away."""
        seconds = self.now() - at
        if abs(seconds) >= 31 * DAY:
            return self.moment(at)
        words = self.duration(abs(seconds))
        if abs(seconds) < 1:
            return self.catalogue.gettext("just now")
        pattern = self.catalogue.gettext("%(duration)s ago") if seconds > 0 else self.catalogue.gettext("in %(duration)s")
        return pattern % {"duration": words}

    def duration(self, seconds: float) -> str:
        """Return a length of time in its largest fitting unit."""
        if seconds < 1:
            return self.catalogue.gettext("%(number)s ms") % {"number": round(seconds * 1000)}
        if seconds < 90:
            number = round(seconds)
            return self.catalogue.ngettext("%(number)s second", "%(number)s seconds", number) % {"number": number}
        if seconds < 90 * MINUTE:
            number = round(seconds / MINUTE)
            return self.catalogue.ngettext("%(number)s minute", "%(number)s minutes", number) % {"number": number}
        if seconds < 36 * HOUR:
            number = round(seconds / HOUR)
            return self.catalogue.ngettext("%(number)s hour", "%(number)s hours", number) % {"number": number}
        number = round(seconds / DAY)
        return self.catalogue.ngettext("%(number)s day", "%(number)s days", number) % {"number": number}

    def number(self, value: float | None) -> str:
        """Return a number with its thousands grouped."""
        if value is None:
            return "–"
        if isinstance(value, float) and not value.is_integer():
            return f"{value:,.1f}"
        return f"{int(value):,}"

    def size(self, count: float | None) -> str:
        """Return a number of bytes in binary units."""
        if count is None:
            return "–"
        value = float(count)
        for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
            if value < 1024 or unit == "TiB":
                return f"{value:,.0f} {unit}" if unit == "B" or value >= 100 else f"{value:,.1f} {unit}"
            value /= 1024
        raise AssertionError

    def _element(self, at: float, words: str) -> Markup:
        machine = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return Markup('<time datetime="{}" title="{}">{}</time>').format(machine, self.exact(at), words)
