"""Software changes of a fleet, grouped by the event store. No limit: every count is over all events that are kept."""

from collections.abc import Sequence

import msgspec

from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.events.query import Condition, add_period, like_pattern, one_of, visible, words
from keibi.manager.events.reach import Reach
from keibi.manager.events.store import QUERY_LIMITS, EventStore
from keibi.manager.paging import Page, check_limit, decode_cursor, encode_cursor, not_a_cursor
from keibi.manager.software.known import KnownSoftware, TenantRulesets
from keibi.manager.software.model import Bringer, ChangeFilter, ChangeGroup, GroupBy, PackageName, Standing
from keibi.protection.application_control.events import Kind, ReasonCode

KINDS = (
    *(Kind.APPEARED, Kind.CHANGED, Kind.BLOCKED, Kind.WOULD_BLOCK, Kind.INLINE_CODE),
    *(Kind.DISTRUSTED, Kind.TRUSTED_AGAIN),
)
RECOGNISED = (
    ReasonCode.INVENTORY,
    ReasonCode.TRUSTED_UPDATER,
    ReasonCode.MAINTENANCE,
    ReasonCode.FLOOR,
    ReasonCode.NOT_SOFTWARE,
)
MAX_SHOWN = 8

_STANDINGS = (Standing.OPEN, Standing.ALLOWED, Standing.BLOCKED, Standing.RECOGNISED)  # as the query numbers them
_RECORD = (
    "Tuple(sha256 String, size UInt64, file_type String, reason_code String, state String, repeat_count UInt64, is_proof Bool,"
    " package Tuple(name String, version String, origin String, signer String),"
    " brought_by Tuple(user String, process String, package String), threat String)"
)
_KEYS: dict[str, str] = {
    # Code without a file is of its interpreter, which is no software that anybody brought.
    "hash": "multiIf(is_inline, concat('inline:', subject), sha256 != '', sha256, concat('path:', subject))",
    "computer": "computer_id",
    "bringer": "concat(brought.3, '\\n', brought.2, '\\n', brought.1)",
    "place": "concat(computer_id, '\\n', subject)",
}
_ROW_COLUMNS = f"""tenant_id, computer_id, event_id, kind, subject, user, uid, login_user, process, detected_at, search_text,
    JSONExtract(details, '{_RECORD}') AS record,
    record.1 AS sha256, record.2 AS size, record.3 AS file_type, record.4 AS reason_code, record.5 AS state,
    record.6 AS repeat_count, record.7 AS is_proof, record.8.1 AS package_name, record.8.2 AS package_version,
    record.8.3 AS package_origin, record.8.4 AS package_signer, record.9 AS brought,
    [brought.1, brought.2, brought.3] AS bringer,
    reason_code = 'inline_code' AS is_inline, record.10 AS threat"""


_DIGEST = "lower(hex(sipHash128(key)))"
"""Stands for a key in cursors: a key is made of paths, which may be as long as they like."""
_IS_TRUSTED_AGAIN = f"max(said) = 0 AND uniqExact(record.1) = 1 AND argMax(toString(kind), detected_at) = '{Kind.TRUSTED_AGAIN}'"
"""Nobody has decided, and the last that was told is that its threat was allowed."""
_STANDING = (
    f"multiIf({_IS_TRUSTED_AGAIN}, 3, min(row_standing) = 0, 0, max(row_standing = 2), 2, max(row_standing = 1), 1, 3)"
    " AS standing"
)
_GROUP_COLUMNS = f"""SELECT tenant_id, key, {_DIGEST} AS key_digest, {_STANDING},
    if(uniqExact(rows.sha256) = 1, any(rows.sha256), '') AS sha256, argMax(rows.size, detected_at) AS size,
    argMax(rows.file_type, detected_at) AS file_type,
    toUnixTimestamp64Micro(min(detected_at)) AS first_us, toUnixTimestamp64Micro(max(detected_at)) AS last_us,
    count() AS event_count,
    sum(if(kind IN ('{Kind.BLOCKED}', '{Kind.WOULD_BLOCK}', '{Kind.INLINE_CODE}'), greatest(repeat_count, 1), 0))
        AS execution_count,
    sum(if(kind = '{Kind.BLOCKED}', greatest(repeat_count, 1), 0)) AS blocked_count,
    arraySort(groupUniqArray({MAX_SHOWN})(computer_id)) AS computer_ids, uniqExact(computer_id) AS computer_count,
    arraySort(groupUniqArray({MAX_SHOWN})(subject)) AS paths, uniqExact(subject) AS path_count,
    uniqExactIf(rows.sha256, rows.sha256 != '') AS hash_count,
    argMax([package_name, package_version, package_origin], if(package_name = '', toDateTime64(0, 6, 'UTC'), detected_at))
        AS package,
    arraySort(groupUniqArrayIf({MAX_SHOWN})(bringer, arrayStringConcat(bringer) != '')) AS bringers,
    arraySort(groupUniqArray({MAX_SHOWN})(toString(kind))) AS kinds,
    arraySort(groupUniqArray({MAX_SHOWN})(reason_code)) AS reason_codes,
    arraySort(groupUniqArrayIf({MAX_SHOWN})(threat, threat != '')) AS threats,
    argMax(lower(hex(event_id)), detected_at) AS last_event_id"""


class _Rank(msgspec.Struct):
    """A group as far as its place in the list goes; `total_count` is of the whole list."""

    tenant_id: str
    key_digest: str
    last_us: int
    total_count: int


class _Row(msgspec.Struct):
    """One group as ClickHouse writes it."""

    tenant_id: str
    key: str
    key_digest: str
    standing: int
    sha256: str
    size: int
    file_type: str
    first_us: int
    last_us: int
    event_count: int
    execution_count: int
    blocked_count: int
    computer_ids: list[str]
    computer_count: int
    paths: list[str]
    path_count: int
    hash_count: int
    package: list[str]
    bringers: list[list[str]]
    kinds: list[str]
    reason_codes: list[str]
    threats: list[str]
    last_event_id: str


class ChangeReader:
    """Asks the event store."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    def page(
        self,
        reach: Reach,
        rulesets: Sequence[TenantRulesets],
        filters: ChangeFilter,
        by: GroupBy,
        cursor: str | None,
        limit: int,
    ) -> Page[ChangeGroup]:
        """Return one page of groups, those with the newest change first; `total` is the true number of groups.

        Raises:
            InputError: a bad grouping, cursor or limit, or the query is too heavy.
        """
        check_limit(limit)
        return self._page(reach, rulesets, filters, by, cursor, limit)

    def newest(self, reach: Reach, rulesets: Sequence[TenantRulesets], filters: ChangeFilter, most: int) -> Sequence[ChangeGroup]:
        """Return up to `most` groups by content at once, however many that is.

        Raises:
            InputError: the query is too heavy.
        """
        return self._page(reach, rulesets, filters, "hash", None, most).items

    def count(self, reach: Reach, rulesets: Sequence[TenantRulesets], filters: ChangeFilter, by: GroupBy) -> int:
        """Return how many groups there are, exactly."""
        if reach.is_empty:
            return 0
        condition, rows = self._judged(reach, rulesets, filters, by)
        sql = f"SELECT count() FROM ({_ranked(condition, rows, filters)})"
        return int(self._store.client.raw(sql, condition.parameters, settings=QUERY_LIMITS) or 0)

    def _page(
        self,
        reach: Reach,
        rulesets: Sequence[TenantRulesets],
        filters: ChangeFilter,
        by: GroupBy,
        cursor: str | None,
        limit: int,
    ) -> Page[ChangeGroup]:
        # In two steps: which groups are on the page, and all about those. All about all of them takes three times as long.
        if by not in _KEYS:
            raise InputError("field_invalid", f"changes cannot be grouped by {by!r}", hint=f"use one of: {', '.join(_KEYS)}")
        if reach.is_empty:
            return Page([], None, 0)
        condition, rows = self._judged(reach, rulesets, filters, by)
        sql = f"SELECT *, count() OVER () AS total_count FROM ({_ranked(condition, rows, filters)})"
        if cursor:
            at_us, tenant_id, digest = _position(cursor)
            condition.parameters |= {"at_us": at_us, "after_tenant": tenant_id, "after_key": digest}
            place = "(-last_us, tenant_id, key_digest)"
            sql = f"SELECT * FROM ({sql}) WHERE {place} > (-{{at_us:Int64}}, {{after_tenant:String}}, {{after_key:String}})"
        sql += f" ORDER BY last_us DESC, tenant_id, key_digest LIMIT {limit + 1}"
        ranks = self._store.client.select(sql, condition.parameters, _Rank, settings=QUERY_LIMITS)
        if not ranks:
            return Page([], None, self.count(reach, rulesets, filters, by) if cursor else 0)
        more = None
        if len(ranks) > limit:
            last = ranks[limit - 1]
            more = encode_cursor([last.last_us, last.tenant_id, last.key_digest])
        shown = [f"{rank.tenant_id}{rank.key_digest}" for rank in ranks[:limit]]
        clause, parameters = one_of(f"concat(tenant_id, {_DIGEST})", "shown", shown)
        sql = f"{_GROUP_COLUMNS} FROM (SELECT * FROM ({rows}) WHERE {clause}) AS rows GROUP BY tenant_id, key"
        found = self._store.client.select(sql, {**condition.parameters, **parameters}, _Row, settings=QUERY_LIMITS)
        order = {key: number for number, key in enumerate(shown)}
        found.sort(key=lambda row: order[f"{row.tenant_id}{row.key_digest}"])
        return Page([_group(row) for row in found], more, ranks[0].total_count)

    def computers_with(self, ruleset: TenantRulesets) -> frozenset[str]:
        """Return the computers of a tenant that have told of any software of which these rulesets speak."""
        condition = visible(Reach(frozenset({ruleset.tenant_id})))
        filters = ChangeFilter()
        _narrow(condition, filters)
        known = KnownSoftware()
        said = known.expression([ruleset])
        condition.parameters |= known.parameters
        sql = f"SELECT DISTINCT computer_id FROM ({self._rows(condition)}) WHERE {_fine(condition, filters)} AND {said} != 0"
        rows = self._store.client.select(sql, condition.parameters, _Computer, settings=QUERY_LIMITS)
        return frozenset(row.computer_id for row in rows)

    def _judged(
        self, reach: Reach, rulesets: Sequence[TenantRulesets], filters: ChangeFilter, by: GroupBy
    ) -> tuple[Condition, str]:
        """Return the query for all changes that are meant, each with its key and where it stands, and its parameters."""
        condition = visible(reach)
        _narrow(condition, filters)
        known = KnownSoftware()
        said = known.expression(rulesets)
        condition.parameters |= known.parameters
        condition.parameters["recognised"] = [str(code) for code in RECOGNISED]
        own = "if(state = 'trusted' OR reason_code IN {recognised:Array(String)}, 3, 0)"
        rows = f"SELECT *, {said} AS said, if(said = 0, {own}, said) AS row_standing, {_KEYS[by]} AS key"
        return condition, f"{rows} FROM ({self._rows(condition)}) WHERE {_fine(condition, filters)}"

    def _rows(self, condition: Condition) -> str:
        return f"SELECT {_ROW_COLUMNS} FROM {self._store.database}.events WHERE {condition.sql}"


class _Computer(msgspec.Struct):
    computer_id: str


def _ranked(condition: Condition, rows: str, filters: ChangeFilter) -> str:
    """Return the query for the groups that are meant, with no more of each than ranking them takes."""
    sql = f"""SELECT tenant_id, {_DIGEST} AS key_digest, {_STANDING}, toUnixTimestamp64Micro(max(detected_at)) AS last_us
FROM ({rows}) GROUP BY tenant_id, key"""
    having = []
    if filters.keys:
        clause, parameters = one_of("key", "keys", filters.keys)
        condition.parameters |= parameters
        having.append(clause)
    if filters.standing is not None:
        condition.parameters["standing"] = _STANDINGS.index(filters.standing)
        having.append("standing = {standing:UInt8}")
    return f"{sql} HAVING {' AND '.join(having)}" if having else sql


def _narrow(condition: Condition, filters: ChangeFilter) -> None:
    """Add what columns of their own can answer, so that the rest is read for few rows only."""
    condition.add("module = {module:String}", module=ModuleId.APPLICATION_CONTROL.value)
    wanted = [str(kind) for kind in KINDS if not filters.kinds or kind in filters.kinds]
    condition.add("kind IN {kinds:Array(String)}", kinds=wanted)
    add_period(condition, filters.since, filters.until)
    if filters.computer_ids:
        condition.add_one_of("computer_id", "computers", filters.computer_ids)
    if filters.path.endswith("/"):
        condition.add("startsWith(subject, {path:String})", path=filters.path)
    elif filters.path:
        condition.add("subject = {path:String}", path=filters.path)
    if filters.file:
        condition.add("splitByChar('/', subject)[-1] LIKE {file:String}", file=_like(filters.file))


def _fine(condition: Condition, filters: ChangeFilter) -> str:
    """Return the condition on what stands in the details; its parameters are added to `condition`."""
    clauses = ["NOT is_proof"]
    if filters.sha256:
        clauses.append("startsWith(sha256, {sha256:String})")
        condition.parameters["sha256"] = filters.sha256.lower()
    if filters.package:
        clauses.append("package_name = {package:String} OR brought.3 = {package:String}")
        condition.parameters["package"] = filters.package
    if filters.user:
        clauses.append("brought.1 = {user:String} OR user = {user:String} OR login_user = {user:String}")
        condition.parameters["user"] = filters.user
    if filters.process:
        either = (
            f"{column} = {{process:String}} OR endsWith({column}, concat('/', {{process:String}}))" for column in _PROCESSES
        )
        clauses.append(" OR ".join(either))
        condition.parameters["process"] = filters.process
    for number, word in enumerate(words(filters.text)):
        name = f"text_{number}"
        clauses.append(
            f"search_text LIKE {{{name}:String}} OR sha256 LIKE {{{name}:String}} OR lower(package_name) LIKE {{{name}:String}}"
            f" OR lower(brought.2) LIKE {{{name}:String}} OR lower(brought.1) LIKE {{{name}:String}}"
        )
        condition.parameters[name] = like_pattern(word)
    return " AND ".join(f"({clause})" for clause in clauses)


_PROCESSES = ("brought.2", "process")


def _like(text: str) -> str:
    """Return a LIKE pattern for a name in which `*` stands for anything; without one, the whole name."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")


def _group(row: _Row) -> ChangeGroup:
    return ChangeGroup(
        tenant_id=row.tenant_id,
        key=row.key,
        standing=_STANDINGS[row.standing],
        sha256=row.sha256,
        size=row.size,
        file_type=row.file_type,
        first_at=row.first_us / 1e6,
        last_at=row.last_us / 1e6,
        event_count=row.event_count,
        execution_count=row.execution_count,
        blocked_count=row.blocked_count,
        computer_ids=tuple(row.computer_ids),
        computer_count=row.computer_count,
        paths=tuple(row.paths),
        path_count=row.path_count,
        hash_count=row.hash_count,
        package=PackageName(*row.package) if row.package and row.package[0] else None,
        bringers=tuple(Bringer(*one) for one in row.bringers),
        kinds=tuple(row.kinds),
        reason_codes=tuple(code for code in row.reason_codes if code),
        threats=tuple(row.threats),
        last_event_id=row.last_event_id,
    )


def _position(cursor: str) -> tuple[int, str, str]:
    at_us, tenant_id, digest = decode_cursor(cursor, 3)
    if not isinstance(at_us, int) or not isinstance(tenant_id, str) or not isinstance(digest, str) or not 0 <= at_us < 2**62:
        raise not_a_cursor(cursor)
    return at_us, tenant_id, digest
