"""Measures the intake of events into the manager, durable, beside PostgreSQL and SQLite in one run; then the console's queries.

    python benchmarks/ingest.py --events 200000 --stored 1000000

The way that is measured is the whole way of a batch of 500 events, as an agent sends it: decompress and decode, check, convert,
insert, acknowledge when it is on disk. "per core" is events divided by all CPU seconds that the manager and its store's
processes used together, so that it does not depend on how busy the machine is with other things. The peers get the same
bodies, decode them in the same way, and insert the same fields as they are best at it: COPY into a table of a day, and
executemany, 30,000 events a transaction, with full synchronisation and the indexes that the console's lists need. Keibi's
store also has an index for text search and the hourly counts; the peers are measured without and with a trigram index.
"""

import argparse
import asyncio
import gc
import os
import pwd
import random
import resource
import secrets
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psycopg

from keibi.contract import codec
from keibi.contract.events import Actor, Event, EventBatch
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.manager.access.model import system_principal
from keibi.manager.audit.service import AuditService
from keibi.manager.database import Database
from keibi.manager.events.client import ClickHouse
from keibi.manager.events.columns import Arrived, convert
from keibi.manager.events.daemon import EventDaemon, resident_bytes
from keibi.manager.events.feed import EventFeed
from keibi.manager.events.ingest import EventIngest
from keibi.manager.events.model import EventQuery
from keibi.manager.events.service import EventService
from keibi.manager.events.store import EventStore

GOAL_PER_CORE = 50_000
BATCH_EVENTS = 500
TENANTS = [new_id() for _ in range(20)]
COMPUTERS = [new_id() for _ in range(500)]
ROUNDS = 3
PEER_COLUMNS = (
    "event_id, tenant_id, computer_id, module, kind, severity, action, detected_at, changed_at, received_at, rule_id,"
    " rule_version, subject, entity_type, reason, message, process, pid, parent, user_name, uid, login_user, container,"
    " actor_source, policy_generation, details"
)
PEER_TYPES = {
    **dict.fromkeys(("event_id", "tenant_id", "computer_id"), "uuid"),
    **dict.fromkeys(("detected_at", "changed_at", "received_at"), "float8"),
    **dict.fromkeys(("severity", "rule_version", "pid", "uid", "policy_generation"), "bigint"),
}


@dataclass(frozen=True)
class Figure:
    name: str
    event_count: int
    wall_seconds: float
    manager_cpu_seconds: float
    store_cpu_seconds: float
    memory_megabytes: float

    @property
    def per_core(self) -> float:
        return self.event_count / (self.manager_cpu_seconds + self.store_cpu_seconds)


def make_events(count: int, at: float | None = None, spread_seconds: float = 0.0) -> list[Event]:
    made = []
    for _ in range(count):
        name = f"/{random.choice(('etc', 'usr/bin', 'usr/lib/systemd', 'srv/www'))}/{secrets.token_hex(4)}.conf"
        now = time.time() if at is None else at - random.random() * spread_seconds
        before, after = ({"sha256": secrets.token_hex(32), "size": random.randrange(10**5), "mtime": now} for _ in range(2))
        made.append(
            Event(
                event_id=new_id(),
                module=ModuleId.INTEGRITY_MONITORING if random.random() < 0.8 else ModuleId.LOG_INSPECTION,
                kind=random.choice(("file.updated", "file.updated", "file.created", "file.deleted")),
                severity=random.choice(list(Severity)),
                detected_at=now,
                changed_at=now - 0.01,
                rule_id=f"keibi.linux.rule{random.randrange(40)}",
                rule_version=3,
                subject=name,
                entity_type="file",
                message=f"{name} was changed by root with /usr/bin/vim",
                actor=Actor(
                    process="/usr/bin/vim", pid=random.randrange(30000), parent="/bin/bash", user="root", uid=0, source="bpf"
                ),
                policy_generation=7,
                details={
                    "change": "updated",
                    "before": before,
                    "after": after,
                    "changed_attributes": ["sha256", "size", "mtime"],
                },
            )
        )
    return made


def make_bodies(count: int) -> list[tuple[str, str, bytes]]:
    return [
        (
            random.choice(TENANTS),
            random.choice(COMPUTERS),
            codec.encode(EventBatch(batch_id=new_id(), events=make_events(BATCH_EVENTS))),
        )
        for _ in range(count // BATCH_EVENTS)
    ]


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def own_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def take_in(store: EventStore, pid: int, bodies: list[tuple[str, str, bytes]]) -> Figure:
    ingest = EventIngest(store, EventFeed())
    await ingest.start()
    limit = asyncio.Semaphore(64)

    async def deliver(tenant_id: str, computer_id: str, body: bytes) -> None:
        async with limit:
            batch = codec.decode(body, EventBatch)
            await ingest.submit(tenant_id, computer_id, batch, size_bytes=len(body) * 6)

    started, own, other = time.monotonic(), own_cpu_seconds(), cpu_seconds(pid)
    await asyncio.gather(*(deliver(*each) for each in bodies))
    wall = time.monotonic() - started
    manager, daemon = own_cpu_seconds() - own, cpu_seconds(pid) - other
    stored = ingest.status().stored_count
    assert stored == len(bodies) * BATCH_EVENTS, stored
    await ingest.stop()
    return Figure("Keibi (chDB)", stored, wall, manager, daemon, resident_bytes(pid) / 2**20)


def rows_of(tenant_id: str, computer_id: str, batch: EventBatch) -> list[tuple[object, ...]]:
    encode, now = msgspec.json.encode, time.time()
    return [
        (
            event.event_id,
            tenant_id,
            computer_id,
            event.module.value,
            event.kind,
            event.severity.rank,
            event.action.value,
            event.detected_at,
            event.changed_at,
            now,
            event.rule_id,
            event.rule_version,
            event.subject,
            event.entity_type,
            event.reason,
            event.message,
            event.actor.process,
            event.actor.pid,
            event.actor.parent,
            event.actor.user,
            event.actor.uid,
            event.actor.login_user,
            event.actor.container,
            event.actor.source,
            event.policy_generation,
            encode(event.details).decode(),
        )
        for event in batch.events
    ]


def sqlite_peer(directory: Path, bodies: list[tuple[str, str, bytes]], *, with_text: bool) -> Figure:
    connection = sqlite3.connect(directory / f"events-{with_text}.sqlite3", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"CREATE TABLE events ({PEER_COLUMNS}, PRIMARY KEY (event_id)) WITHOUT ROWID")
    connection.execute("CREATE INDEX by_tenant ON events (tenant_id, detected_at)")
    connection.execute("CREATE INDEX by_computer ON events (computer_id, detected_at)")
    if with_text:
        connection.execute("CREATE VIRTUAL TABLE texts USING fts5 (subject, message, content='', tokenize='trigram')")
    started, own = time.monotonic(), own_cpu_seconds()
    statement = f"INSERT OR IGNORE INTO events VALUES ({', '.join('?' * len(PEER_COLUMNS.split(',')))})"
    for first in range(0, len(bodies), 60):
        connection.execute("BEGIN IMMEDIATE")
        for tenant_id, computer_id, body in bodies[first : first + 60]:
            rows = rows_of(tenant_id, computer_id, codec.decode(body, EventBatch))
            connection.executemany(statement, rows)
            if with_text:
                connection.executemany("INSERT INTO texts (subject, message) VALUES (?, ?)", [(row[12], row[15]) for row in rows])
        connection.execute("COMMIT")
    wall, cpu = time.monotonic() - started, own_cpu_seconds() - own
    connection.close()
    name = f"SQLite (WAL, FULL, 3 indexes{', trigram' if with_text else ''})"
    return Figure(name, len(bodies) * BATCH_EVENTS, wall, cpu, 0.0, 0.0)


class Postgresql:
    """A PostgreSQL of its own on a Unix socket, as the user postgres where we are root."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        account = pwd.getpwnam("postgres") if os.getuid() == 0 else None
        self.options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        if account:
            os.chown(directory, account.pw_uid, account.pw_gid)
        self.binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> psycopg.Connection:
        data = self.directory / "data"
        subprocess.run(
            [self.binaries / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8"],
            check=True,
            capture_output=True,
            cwd="/",
            **self.options,
        )
        self.process = subprocess.Popen(
            [
                self.binaries / "postgres",
                "-D",
                data,
                "-k",
                self.directory,
                "-c",
                "listen_addresses=",
                "-c",
                "shared_buffers=512MB",
                "-c",
                "max_wal_size=4GB",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **self.options,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                return psycopg.connect(host=str(self.directory), user="postgres", dbname="postgres", autocommit=True)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def cpu_seconds(self) -> float:
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sum(cpu_seconds(int(pid)) for pid in [self.process.pid, *children])

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)


def postgresql_peer(directory: Path, bodies: list[tuple[str, str, bytes]], *, with_text: bool) -> Figure:
    directory.mkdir()
    server = Postgresql(directory)
    connection = server.start()
    try:
        columns = ", ".join(f"{name} {PEER_TYPES.get(name, 'text')}" for name in PEER_COLUMNS.split(", "))
        connection.execute(
            f"CREATE TABLE events ({columns}, PRIMARY KEY (event_id, detected_at)) PARTITION BY RANGE (detected_at)"  # type: ignore[arg-type]
        )
        if with_text:
            connection.execute("CREATE EXTENSION pg_trgm")
            connection.execute("CREATE INDEX ON events USING gin ((subject || ' ' || message) gin_trgm_ops)")
        connection.execute("CREATE INDEX ON events (tenant_id, detected_at)")
        connection.execute("CREATE INDEX ON events (computer_id, detected_at)")
        today = time.time() // 86400 * 86400
        for day in (today - 86400, today, today + 86400):
            connection.execute(
                f"CREATE TABLE events_{int(day)} PARTITION OF events FOR VALUES FROM ({day}) TO ({day + 86400})"  # type: ignore[arg-type]
            )
        started, own, other = time.monotonic(), own_cpu_seconds(), server.cpu_seconds()
        for first in range(0, len(bodies), 60):
            with connection.transaction(), connection.cursor().copy(f"COPY events ({PEER_COLUMNS}) FROM STDIN") as copy:
                for tenant_id, computer_id, body in bodies[first : first + 60]:
                    for row in rows_of(tenant_id, computer_id, codec.decode(body, EventBatch)):
                        copy.write_row(row)
        wall, manager, store = time.monotonic() - started, own_cpu_seconds() - own, server.cpu_seconds() - other
    finally:
        connection.close()
        server.stop()
    name = f"PostgreSQL (COPY, day partitions, 3 indexes{', trigram' if with_text else ''})"
    return Figure(name, len(bodies) * BATCH_EVENTS, wall, manager, store, 0.0)


def idle_latency(store: EventStore) -> list[float]:
    async def run() -> list[float]:
        ingest = EventIngest(store, EventFeed())
        await ingest.start()
        waits = []
        for _ in range(20):
            await asyncio.sleep(0.12)
            batch = EventBatch(batch_id=new_id(), events=make_events(1))
            started = time.monotonic()
            await ingest.submit(TENANTS[0], COMPUTERS[0], batch)
            waits.append(time.monotonic() - started)
        await ingest.stop()
        return sorted(waits)

    return asyncio.run(run())


def fill(store: EventStore, count: int) -> None:
    """Store events of the last 30 days."""
    now = time.time()
    have = store.size().event_count
    while have < count:
        arrived = [
            Arrived(random.choice(TENANTS), random.choice(COMPUTERS), make_events(200, now, 30 * 86400)) for _ in range(150)
        ]
        have += store.insert(convert(arrived, now))


def queries(store: EventStore, directory: Path) -> list[tuple[str, float, float]]:
    database = Database(f"sqlite:///{directory}/state.sqlite3")
    service = EventService(store, database, AuditService(database))
    all_of_them = system_principal("bench", TENANTS)
    one = all_of_them.in_tenant(TENANTS[3])
    now = time.time() // 3600 * 3600
    week, month = EventQuery(since=now - 7 * 86400), EventQuery(since=now - 30 * 86400, until=now)
    middle = service.search(all_of_them, EventQuery(until=now - 15 * 86400), None, 100)
    some = middle.items[0]
    asked = {
        "last 100, one tenant": lambda: service.search(one, EventQuery(), None, 100),
        "last 100, all tenants": lambda: service.search(all_of_them, EventQuery(), None, 100),
        "last 100, one computer": lambda: service.search(all_of_them, EventQuery(computer_ids=(COMPUTERS[7],)), None, 100),
        "last 100, high and graver, 7 days": lambda: service.search(
            one, EventQuery(severity_at_least=Severity.HIGH, since=now - 7 * 86400), None, 100
        ),
        "page in the middle of the month": lambda: service.search(all_of_them, EventQuery(), middle.next_cursor, 100),
        "one event by its id": lambda: service.get(all_of_them, some.event_id),
        "events around it": lambda: service.around(all_of_them, some.event_id),
        "count, 30 days, all tenants": lambda: service.count(all_of_them, month),
        "chart by module, 30 days, all tenants": lambda: service.series(all_of_them, month, 60),
        "chart by severity, 24 h in 30 min": lambda: service.series(all_of_them, EventQuery(), 48, "severity"),
        "top rules, 7 days": lambda: service.top(all_of_them, week, "rule_id"),
        "top computers, 30 days": lambda: service.top(all_of_them, month, "computer_id"),
        "rare substring, 30 days, count": lambda: service.count(
            all_of_them, EventQuery(text=some.subject[-13:], since=month.since, until=month.until)
        ),
        "common word, 30 days, count": lambda: service.count(all_of_them, EventQuery(text="systemd", since=month.since)),
        "live view, nothing new": lambda: service.tail(all_of_them, EventQuery(), service.tail(all_of_them, EventQuery()).cursor),
    }
    measured = []
    for name, ask in asked.items():
        times = []
        for _ in range(7):
            started = time.monotonic()
            ask()
            times.append((time.monotonic() - started) * 1000)
        measured.append((name, times[0], sorted(times[1:])[3]))
    database.dispose()
    return measured


def print_figures(figures: list[Figure]) -> None:
    print("| store | events/s (wall) | CPU us/event: manager | store | events/s per core | store's memory, MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for figure in figures:
        manager, store = (value / figure.event_count * 1e6 for value in (figure.manager_cpu_seconds, figure.store_cpu_seconds))
        memory = f"{figure.memory_megabytes:.0f}" if figure.memory_megabytes else "-"
        print(
            f"| {figure.name} | {figure.event_count / figure.wall_seconds:,.0f} | {manager:.1f} | {store:.1f}"
            f" | {figure.per_core:,.0f} | {memory} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000, help="events in each round")
    parser.add_argument("--stored", type=int, default=1_000_000, help="events in the store when the queries are measured")
    options = parser.parse_args()
    # As the manager's main program sets it: decoding makes many small dictionaries, which the collector would visit in vain.
    gc.set_threshold(200_000, 50, 100)
    gc.freeze()
    directory = Path(tempfile.mkdtemp(prefix="keibi-bench-"))
    directory.chmod(0o755)
    daemon = EventDaemon(directory / "store")
    daemon.start()
    client = ClickHouse(daemon.url, key=daemon.key)
    try:
        store = EventStore(client)
        store.prepare()
        pid = daemon.status().pid or 0
        at_rest = resident_bytes(pid) / 2**20
        rounds = []
        for _ in range(ROUNDS):
            bodies = make_bodies(options.events)
            rounds.append(asyncio.run(take_in(store, pid, bodies)))
        figures = [max(rounds, key=lambda figure: figure.per_core)]
        some = bodies[: len(bodies) // 5]
        for with_text in (False, True):
            figures.append(sqlite_peer(directory, some if with_text else bodies, with_text=with_text))
            figures.append(postgresql_peer(directory / f"pg-{with_text}", some if with_text else bodies, with_text=with_text))
        print_figures(figures)
        total = Figure(
            "all rounds",
            sum(each.event_count for each in rounds),
            sum(each.wall_seconds for each in rounds),
            sum(each.manager_cpu_seconds for each in rounds),
            sum(each.store_cpu_seconds for each in rounds),
            0.0,
        )
        told = ", ".join(f"{each.per_core:,.0f}" for each in rounds)
        print(f"\nKeibi, rounds of {options.events:,} events, per core: {told}; together, merges included: {total.per_core:,.0f}")
        print(f"Goal {GOAL_PER_CORE:,} a core: {'reached' if total.per_core >= GOAL_PER_CORE else 'missed'}")
        waits = idle_latency(store)
        median, longest = waits[10] * 1000, waits[-1] * 1000
        print(f"One event after a quiet moment, until it is on disk: median {median:.0f} ms, longest {longest:.0f} ms")
        fill(store, options.stored)
        size = store.size()
        print(
            f"\n{size.event_count:,} events in the store, {size.disk_bytes / size.event_count:.0f} bytes each on disk;", end=" "
        )
        print(f"the store's process: {at_rest:.0f} MB at rest, {resident_bytes(pid) / 2**20:.0f} MB now\n")
        print("| query | first, ms | median, ms |\n|---|---:|---:|")
        for name, first, median in queries(store, directory):
            print(f"| {name} | {first:.0f} | {median:.0f} |")
    finally:
        client.close()
        daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
