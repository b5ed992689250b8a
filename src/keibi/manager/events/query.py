"""Turns what is asked into ClickHouse conditions. Every condition begins with what the asker may see; there is no way around.

Values only ever travel as parameters; what is put together here are clauses of ours.
"""

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field

from keibi.contract.names import Severity
from keibi.errors import InputError
from keibi.manager.events.client import Value
from keibi.manager.events.model import EventQuery
from keibi.manager.events.reach import Reach

_WORDS = re.compile(r'"([^"]+)"|(\S+)')
OLDEST_SECONDS, NEWEST_SECONDS = -2_000_000_000.0, 10_000_000_000.0
"""What the store can hold as a time, with some room: from 1906 to 2286."""
MAX_CHUNK_CHARACTERS = 100_000
"""Of values in one parameter: ClickHouse takes 128 KiB in a field of a form."""
_LIKE_ESCAPES = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


@dataclass
class Condition:
    """A WHERE clause that grows, with its parameters."""

    clauses: list[str] = field(default_factory=list)
    parameters: dict[str, Value] = field(default_factory=dict)

    def add(self, clause: str, **parameters: Value) -> "Condition":
        """Add a clause that must hold too; `{name:Type}` in it stands for the parameter `name`."""
        self.clauses.append(clause)
        self.parameters |= parameters
        return self

    def add_one_of(self, column: str, name: str, values: Collection[str]) -> "Condition":
        """Add the clause that a column has one of these values, however many; `name` begins the names of its parameters."""
        clause, parameters = one_of(column, name, values)
        return self.add(clause, **parameters)

    @property
    def sql(self) -> str:
        """The whole condition."""
        return " AND ".join(f"({clause})" for clause in self.clauses)


def visible(reach: Reach) -> Condition:
    """Return the condition that an event may be seen at all: the beginning of every condition."""
    condition = Condition()
    parts: list[str] = []
    if len(reach.tenant_ids) == 1:
        # Equality, so that ClickHouse reads one tenant's rows in the order of time and stops at the limit.
        parts.append("tenant_id = {reach_tenant:String}")
        condition.parameters["reach_tenant"] = next(iter(reach.tenant_ids))
    elif reach.tenant_ids:
        parts.append("tenant_id IN {reach_tenants:Array(String)}")
        condition.parameters["reach_tenants"] = sorted(reach.tenant_ids)
    for number, (tenant_id, computer_ids) in enumerate(sorted(reach.computer_ids.items())):
        if computer_ids:
            clause, parameters = one_of("computer_id", f"reach_computers_{number}", computer_ids)
            parts.append(f"tenant_id = {{reach_tenant_{number}:String}} AND {clause}")
            condition.parameters |= {f"reach_tenant_{number}": tenant_id, **parameters}
    if not parts:
        return condition.add("0")
    return condition.add(" OR ".join(f"({part})" for part in parts))


def matching(query: EventQuery, reach: Reach, *, database: str) -> Condition:
    """Return the condition that an event may be seen and is meant by the query."""
    condition = visible(reach)
    add_coarse(condition, query)
    add_period(condition, query.since, query.until)
    if query.rule_id:
        condition.add("rule_id = {rule_id:String}", rule_id=query.rule_id)
    if query.subject:
        condition.add("subject = {subject:String}", subject=query.subject)
    if query.user:
        condition.add("user = {user:String} OR login_user = {user:String}", user=query.user)
    if query.process:
        condition.add(
            "process = {process:String} OR endsWith(process, concat('/', {process:String}))",
            process=query.process,
        )
    for number, word in enumerate(words(query.text)):
        condition.add(f"search_text LIKE {{word_{number}:String}}", **{f"word_{number}": like_pattern(word)})
    if query.tag:
        condition.add(
            f"(tenant_id, event_id) IN (SELECT tenant_id, event_id FROM {database}.event_tags FINAL"
            " WHERE tag = {tag:String} AND is_set = 1)",
            tag=query.tag,
        )
    return condition


def add_coarse(condition: Condition, query: EventQuery) -> None:
    """Add those filters that the hourly counts have columns for."""
    if query.module:
        condition.add("module = {module:String}", module=query.module.value)
    if query.kinds:
        condition.add("kind IN {kinds:Array(String)}", kinds=list(query.kinds))
    if query.severity_at_least and query.severity_at_least is not Severity.LOW:
        condition.add("severity >= {severity:UInt8}", severity=query.severity_at_least.rank)
    if query.action:
        condition.add("action = {action:String}", action=query.action.value)
    if query.computer_ids:
        condition.add_one_of("computer_id", "computers", query.computer_ids)


def add_period(condition: Condition, since: float | None, until: float | None) -> None:
    """Add the period in which events were detected."""
    if since is not None:
        condition.add(f"detected_at >= {moment('since')}", since=microseconds(since))
    if until is not None:
        condition.add(f"detected_at < {moment('until')}", until=microseconds(until))


def is_coarse(query: EventQuery) -> bool:
    """Whether the hourly counts can answer: no filter but those of `add_coarse`, and whole hours."""
    has_fine = query.text or query.rule_id or query.subject or query.tag or query.user or query.process
    return not has_fine and all(at is None or at % 3600 == 0 for at in (query.since, query.until))


def words(text: str) -> list[str]:
    """Return the words and "quoted phrases" of a search text, folded like the text that is searched."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return [phrase or word for phrase, word in _WORDS.findall(folded)][:20]


def like_pattern(word: str) -> str:
    """Return the LIKE pattern for "contains this word"."""
    return f"%{word.translate(_LIKE_ESCAPES)}%"


def moment(parameter: str) -> str:
    """Return the clause for the time in a parameter, which is microseconds since the epoch."""
    return f"fromUnixTimestamp64Micro({{{parameter}:Int64}}, 'UTC')"


def microseconds(at: float) -> int:
    """Return a time as the store has it.

    Raises:
        InputError: it is no time, or none that the store can hold.
    """
    if not OLDEST_SECONDS <= at <= NEWEST_SECONDS:
        raise InputError("time_invalid", f"{at} is no time", hint="give seconds since 1970 in UTC")
    return int(at * 1e6 + 0.5)


def one_of(column: str, name: str, values: Collection[str]) -> tuple[str, dict[str, Value]]:
    """Return the clause that a column has one of these values, in brackets, and its parameters `{name}_0`, `{name}_1`, …."""
    parameters: dict[str, Value] = {}
    chunk: list[str] = []
    size = 0
    for value in sorted(set(values)):
        size += len(value) + 3
        if chunk and size > MAX_CHUNK_CHARACTERS:
            parameters[f"{name}_{len(parameters)}"] = chunk
            chunk, size = [], len(value) + 3
        chunk.append(value)
    parameters[f"{name}_{len(parameters)}"] = chunk
    return "(" + " OR ".join(f"{column} IN {{{part}:Array(String)}}" for part in parameters) + ")", parameters
