"""The tables of the event store, in ClickHouse SQL; embedded store and cluster differ only in the engine and ON CLUSTER.

Measured on chDB 26.9 with integrity events of 700 bytes: `details` as String costs 6 microseconds of CPU an event to insert,
as JSON type 14; the index of three-letter groups is free beside the rest, so text search does not read what cannot match.
"""

from dataclasses import dataclass

SCHEMA_VERSION = 1

DEDUPLICATION_WINDOW = 10_000
"""How many insert tokens a table remembers: a flush repeated within the last so many inserts is stored once."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Where the tables live: on the embedded store, or on a named ClickHouse cluster with replicas."""

    database: str = "keibi"
    cluster: str = ""

    def on_cluster(self) -> str:
        """Return the clause that runs a DDL statement everywhere."""
        return f" ON CLUSTER '{self.cluster}'" if self.cluster else ""

    def engine(self, family: str, table: str, version_column: str = "") -> str:
        """Return the engine of a MergeTree family table."""
        arguments = [version_column] if version_column else []
        if self.cluster:
            arguments = [f"'/clickhouse/tables/{{shard}}/{self.database}/{table}'", "'{replica}'", *arguments]
        return f"{'Replicated' if self.cluster else ''}{family}({', '.join(arguments)})"

    def table_settings(self, *, is_repeatable: bool = False) -> str:
        """Return the table settings that make inserts durable and, if asked for, repeatable by token."""
        settings = ["fsync_after_insert = 1", "fsync_part_directory = 1"]
        # A flush is one file to sync instead of one for each column; merges turn it into columns soon.
        settings.append(f"min_bytes_for_wide_part = {64 * 1024 * 1024}")
        if is_repeatable:
            kind = "replicated" if self.cluster else "non_replicated"
            settings.append(f"{kind}_deduplication_window = {DEDUPLICATION_WINDOW}")
        if not self.cluster:
            # The embedded store has two merge threads, not a server's sixteen: with the default reserves it would hold back
            # deletions for minutes and never make a large part.
            settings.append("number_of_free_entries_in_pool_to_execute_mutation = 1")
            settings.append("number_of_free_entries_in_pool_to_lower_max_size_of_merge = 1")
            settings.append("number_of_free_entries_in_pool_to_execute_optimize_entire_partition = 1")
            settings.append("merge_selecting_sleep_ms = 200")
            settings.append("max_merge_selecting_sleep_ms = 2000")
        return ", ".join(settings)


SEARCH_EXPRESSION = (
    "lowerUTF8(normalizeUTF8NFKC(concatWithSeparator('\\n',"
    " subject, message, reason, process, parent, user, login_user, container, rule_id)))"
)
"""What text search looks at; the reader's words get the same treatment, so that full-width letters find ASCII."""

EVENT_COLUMNS = """
    tenant_id LowCardinality(String),
    event_id FixedString(16),
    computer_id LowCardinality(String),
    module LowCardinality(String),
    kind LowCardinality(String),
    severity UInt8,
    action LowCardinality(String),
    detected_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    changed_at Nullable(DateTime64(6, 'UTC')) CODEC(ZSTD(1)),
    received_at DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    rule_id LowCardinality(String),
    rule_version UInt32 CODEC(ZSTD(1)),
    subject String CODEC(ZSTD(1)),
    entity_type LowCardinality(String),
    reason String CODEC(ZSTD(1)),
    message String CODEC(ZSTD(1)),
    process String CODEC(ZSTD(1)),
    pid UInt32 CODEC(ZSTD(1)),
    parent String CODEC(ZSTD(1)),
    user LowCardinality(String),
    uid Nullable(UInt32) CODEC(ZSTD(1)),
    login_user LowCardinality(String),
    container String CODEC(ZSTD(1)),
    actor_source LowCardinality(String),
    policy_generation UInt64 CODEC(ZSTD(1)),
    details String CODEC(ZSTD(1)),
    note String CODEC(ZSTD(1))"""


def statements(deployment: Deployment) -> list[str]:
    """Return the statements that create what is missing; running them again changes nothing."""
    database, on_cluster = deployment.database, deployment.on_cluster()
    create = "CREATE TABLE IF NOT EXISTS"
    return [
        f"CREATE DATABASE IF NOT EXISTS {database}{on_cluster}",
        # Events with one id are stored once by the check before each insert. Where two managers of a cluster race, the
        # replacing engine folds them when parts merge, because tenant, time and id are the same.
        f"""{create} {database}.events{on_cluster} ({EVENT_COLUMNS},
    search_text String MATERIALIZED {SEARCH_EXPRESSION} CODEC(ZSTD(1)),
    INDEX computer_index computer_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX event_index event_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX received_index received_at TYPE minmax GRANULARITY 1,
    INDEX search_index search_text TYPE ngrambf_v1(3, 32768, 2, 0) GRANULARITY 1
) ENGINE = {deployment.engine("ReplacingMergeTree", "events")}
PARTITION BY toDate(detected_at) ORDER BY (tenant_id, detected_at, event_id)
SETTINGS {deployment.table_settings(is_repeatable=True)}""",
        f"""{create} {database}.events_hourly{on_cluster} (
    tenant_id LowCardinality(String),
    hour DateTime('UTC'),
    computer_id LowCardinality(String),
    module LowCardinality(String),
    kind LowCardinality(String),
    severity UInt8,
    action LowCardinality(String),
    count UInt64
) ENGINE = {deployment.engine("SummingMergeTree", "events_hourly")}
PARTITION BY toDate(hour) ORDER BY (tenant_id, hour, module, severity, kind, action, computer_id)
SETTINGS {deployment.table_settings()}""",
        f"""CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.events_hourly_view{on_cluster} TO {database}.events_hourly AS
{rollup_query(deployment)}""",
        # The newest row of (tenant, event, tag) says whether the tag is set.
        f"""{create} {database}.event_tags{on_cluster} (
    tenant_id LowCardinality(String),
    event_id FixedString(16),
    tag LowCardinality(String),
    is_set UInt8,
    detected_at DateTime64(6, 'UTC'),
    set_by String,
    set_at DateTime64(6, 'UTC')
) ENGINE = {deployment.engine("ReplacingMergeTree", "event_tags", "set_at")}
PARTITION BY toYYYYMM(detected_at) ORDER BY (tenant_id, event_id, tag)
SETTINGS {deployment.table_settings()}""",
        f"""{create} {database}.events_quarantine{on_cluster} (
    tenant_id LowCardinality(String),
    computer_id LowCardinality(String),
    received_at DateTime64(6, 'UTC'),
    event_id String,
    reason String,
    event String CODEC(ZSTD(3))
) ENGINE = {deployment.engine("MergeTree", "events_quarantine")}
PARTITION BY toYYYYMM(received_at) ORDER BY (tenant_id, received_at) SETTINGS {deployment.table_settings(is_repeatable=True)}""",
        f"""{create} {database}.schema_version{on_cluster} (version UInt32, applied_at DateTime64(6, 'UTC'))
ENGINE = {deployment.engine("MergeTree", "schema_version")} ORDER BY version""",
    ]


def rollup_query(deployment: Deployment, *, where: str = "") -> str:
    """Return the SELECT that counts events by hour: the view's, and the repair's for the days in `where`."""
    keys = "tenant_id, hour, computer_id, module, kind, severity, action"
    condition = f" WHERE {where}" if where else ""
    return (
        "SELECT tenant_id, toDateTime(toStartOfHour(detected_at), 'UTC') AS hour, computer_id, module, kind, severity, action,"
        f" count() AS count FROM {deployment.database}.events{condition} GROUP BY {keys}"
    )
