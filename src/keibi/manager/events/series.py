"""Counts over time for charts, from the hourly counts where they can answer and from the events where not."""

import datetime as dt
import zoneinfo

import msgspec

from keibi.errors import InputError
from keibi.manager.events.model import EventQuery, EventSeries, SeriesKey, SeriesLine
from keibi.manager.events.query import Condition, add_coarse, is_coarse, matching, visible
from keibi.manager.events.reach import Reach
from keibi.manager.events.store import QUERY_LIMITS, EventStore

STEPS_SECONDS = (1, 5, 15, 60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 7 * 86400)
MAX_BUCKETS = 500
DEFAULT_PERIOD_SECONDS = 86400.0

_KEYS = {
    "module": "module",
    "severity": "['', 'low', 'medium', 'high', 'critical'][severity + 1]",
    "action": "action",
    "kind": "kind",
}


class _Point(msgspec.Struct):
    key: str
    bucket: int
    count: int


def hourly_condition(query: EventQuery, reach: Reach) -> Condition:
    """Return the query's condition on the hourly counts; the query must be coarse."""
    condition = visible(reach)
    add_coarse(condition, query)
    if query.since is not None:
        condition.add("hour >= toDateTime({since:UInt32}, 'UTC')", since=int(query.since))
    if query.until is not None:
        condition.add("hour < toDateTime({until:UInt32}, 'UTC')", until=int(query.until))
    return condition


def read_series(
    store: EventStore, query: EventQuery, reach: Reach, buckets: int, by: SeriesKey, time_zone: str, now: float
) -> EventSeries:
    """Return the counts of the query's events in about `buckets` steps, which begin at round times of the time zone.

    Raises:
        InputError: too many buckets, or an unknown key or time zone.
    """
    if not 1 <= buckets <= MAX_BUCKETS:
        raise InputError("buckets_invalid", f"a chart can have from 1 to {MAX_BUCKETS} steps, not {buckets}")
    if by not in _KEYS:
        raise InputError("field_invalid", f"a chart cannot be drawn by {by!r}", hint=f"use one of: {', '.join(_KEYS)}")
    until = query.until if query.until is not None else now
    since = query.since if query.since is not None else until - DEFAULT_PERIOD_SECONDS
    if since >= until:
        raise InputError("period_empty", "the period ends before it begins", where="since, until")
    step = next((step for step in STEPS_SECONDS if (until - since) / step <= buckets), 0)
    if not step:
        step = -int(-(until - since) // (buckets * 86400)) * 86400
    offset = _offset_seconds(time_zone, since)
    first = int((since + offset) // step)
    last = int(-((until + offset) // -step)) - 1
    starts = tuple(float(bucket * step - offset) for bucket in range(first, last + 1))
    if reach.is_empty:
        return EventSeries(step, starts, (), 0)
    bounded = msgspec.structs.replace(query, since=since, until=until)
    # The hour now running is whole in the counts, so an end in the future or at this moment cuts nothing off.
    rounded = msgspec.structs.replace(bounded, until=-(-until // 3600) * 3600) if query.until is None else bounded
    if step % 3600 == 0 and offset % 3600 == 0 and is_coarse(rounded):
        condition, moment, count, table = hourly_condition(rounded, reach), "hour", "sum(count)", "events_hourly"
    else:
        condition = matching(bounded, reach, database=store.database)
        moment, count, table = "detected_at", "count()", "events"
    bucket = f"intDiv(toUnixTimestamp({moment}) + {{offset:Int64}}, {{step:Int64}})"
    sql = f"""SELECT {_KEYS[by]} AS key, {bucket} AS bucket, {count} AS count
FROM {store.database}.{table} WHERE {condition.sql} GROUP BY key, bucket"""
    parameters = {**condition.parameters, "offset": offset, "step": step}
    lines: dict[str, list[int]] = {}
    for point in store.client.select(sql, parameters, _Point, settings=QUERY_LIMITS):
        if first <= point.bucket <= last:
            lines.setdefault(point.key, [0] * len(starts))[point.bucket - first] += point.count
    return EventSeries(
        step_seconds=step,
        starts_at=starts,
        lines=tuple(SeriesLine(key, tuple(counts)) for key, counts in sorted(lines.items())),
        total=sum(map(sum, lines.values())),
    )


def _offset_seconds(time_zone: str, at: float) -> int:
    try:
        zone = zoneinfo.ZoneInfo(time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(
            "time_zone_unknown", f"{time_zone[:64]!r} is not a time zone", hint="use a name such as Asia/Tokyo"
        ) from error
    offset = dt.datetime.fromtimestamp(at, zone).utcoffset()
    return int(offset.total_seconds()) if offset is not None else 0
