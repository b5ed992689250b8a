"""Measures a manager with thousands of agents: heartbeats, long-polls, and all of them coming back at once.

    python benchmarks/heartbeats.py --agents 5000 --seconds 6

The manager is the real program with its event store, in a temporary directory; the agents are connections of this program,
each with a computer of its own, its Ed25519 key and its own kept TLS 1.3 connection. Some of them are enrolled through the
protocol and tell everything the first time; the others are copied from these in the manager's database, as they would stand
there. To the first storm the manager comes as after a restart, with nothing in memory; to the second, after the network was
away, it remembers who said what. In a storm agents that are told to come later wait as real ones do, and the clocks of all
start at once. *CPU* is of the manager's process and its event store, in parts of one core, so it depends little on how busy
the computer is with other things; the latencies depend on that much.
"""

import argparse
import asyncio
import collections
import contextlib
import os
import pathlib
import random
import resource
import secrets
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert

from keibi.agent.identity import public_bytes
from keibi.agent.status import digest, status_digest
from keibi.cli.client import ApiClient, Profile
from keibi.contract.codec import CONTENT_TYPE, decode, encode
from keibi.contract.enrolment import (
    ChallengeRequest,
    ChallengeResponse,
    ComputerFacts,
    EnrolRequest,
    EnrolResponse,
    TokenRequest,
    TokenResponse,
    challenge_message,
    enrol_message,
)
from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse
from keibi.contract.names import ModuleId, new_id
from keibi.contract.status import AgentStatus, Capability, Health, ModuleStatus
from keibi.manager.agents.reports import storable_json
from keibi.manager.computers.tables import ComputerRecord, ReportRecord
from keibi.manager.config import load_config
from keibi.manager.database import Database, Scope, Table
from keibi.manager.local import grant_local_access
from keibi.manager.policies.tables import GenerationRecord

HEARTBEAT_SECONDS = 60.0
WAKE_SECONDS = 25
POLLS_BEGIN_SECONDS = 5.0
START_SECONDS = 60.0
NEW_AGENTS = 300
IN_FLIGHT_AT_FULL_SPEED = 48
STORM_SECONDS = 40.0
POLICY_VERSIONS = {"integrity_monitoring": 1}


# --- processes, also for agent_idle.py


def cpu_of(pid: int) -> float:
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> tuple[float, float]:
    """Return resident and proportional megabytes."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        told = {parts[0]: int(parts[1]) / 1024 for line in file if len(parts := line.split()) == 3}
    return told["Rss:"], told["Pss:"]


def children_of(pid: int) -> list[int]:
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a program that was started here, in order where it can, and whatever it leaves behind."""
    children = children_of(process.pid) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


@dataclass(frozen=True)
class RunningManager:
    """A manager of its own, and the ways to it."""

    state: pathlib.Path
    port: int
    pid: int
    ca_pem: str
    api: ApiClient

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def event_store_pid(self) -> int:
        return children_of(self.pid)[0]

    def make_token(self, uses: int) -> str:
        token: str = self.api.post("/enrolment-tokens", {"name": "benchmark", "max_uses": uses})["secret"]
        return token


@contextlib.contextmanager
def running_manager(directory: pathlib.Path, command: list[str]) -> Iterator[RunningManager]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    state = directory / "manager"
    state.mkdir(mode=0o700)
    with open(directory / "manager.log", "wb") as log:
        process = subprocess.Popen([*command, "--state", str(state), "--port", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the manager did not start:\n{(directory / 'manager.log').read_text()[-3000:]}")
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    break
            except OSError:
                time.sleep(0.1)
        config = load_config(state_directory=str(state), port=port)
        key = grant_local_access(config, with_key=True, with_token=False).api_key
        ca_file = state / "tls" / "ca.pem"
        api = ApiClient(Profile(f"https://localhost:{port}", key, str(ca_file)))
        yield RunningManager(state, port, process.pid, ca_file.read_text(), api)
    finally:
        end(process)


# --- agents


@dataclass
class Wire:
    """One kept HTTP/1.1 connection."""

    port: int
    context: ssl.SSLContext
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def exchange(self, method: str, path: str, body: bytes = b"", token: str = "") -> tuple[int, float, bytes]:
        """Return status, Retry-After and body; a connection on which an answer may still come is never used again."""
        try:
            return await self._exchange(method, path, body, token)
        except BaseException:
            self.close()
            raise

    async def _exchange(self, method: str, path: str, body: bytes, token: str) -> tuple[int, float, bytes]:
        if self.writer is None or self.reader is None:
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.context, server_hostname="localhost", ssl_handshake_timeout=60
            )
        signed = f"Authorization: Bearer {token}\r\n" if token else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{signed}"
        if body:
            head += f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"\r\n" + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        content = await self.reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), float(headers.get("retry-after", 0)), content

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None


@dataclass
class Agent:
    """One simulated agent, at the point where its policy is in force and nothing is new unless it is `fresh`."""

    wire: Wire
    poll: Wire
    computer_id: str
    key: Ed25519PrivateKey
    facts: ComputerFacts
    token: str = ""
    generation: int = 0
    unchanged: bytes = b""

    async def sign_in(self, counts: "Counts") -> None:
        body = await self._ask("/challenge", encode(ChallengeRequest(self.computer_id)), "", counts)
        nonce = decode(body, ChallengeResponse).nonce
        signature = self.key.sign(challenge_message(self.computer_id, nonce))
        body = await self._ask("/token", encode(TokenRequest(self.computer_id, nonce, signature)), "", counts)
        self.token = decode(body, TokenResponse).access_token

    async def tell_all(self, counts: "Counts") -> int:
        """Send everything until the manager wants nothing more; return how many bytes the policy took."""
        policy_bytes = 0
        for _ in range(4):
            status = self._status()
            request = HeartbeatRequest(
                self.generation,
                status_digest(status),
                digest(self.facts),
                POLICY_VERSIONS,
                status,
                self.facts,
                clock_at=time.time(),
            )
            body = await self._ask("/heartbeat", encode(request), self.token, counts)
            answer = decode(body, HeartbeatResponse)
            if answer.policy is None:
                self.nothing_is_new()
                return policy_bytes
            self.generation, policy_bytes = answer.policy.generation, len(body)
        raise AssertionError("the manager sends another policy each time")

    def nothing_is_new(self) -> None:
        self.unchanged = encode(
            HeartbeatRequest(
                self.generation, status_digest(self._status()), digest(self.facts), POLICY_VERSIONS, clock_at=time.time()
            )
        )

    async def beat(self, counts: "Counts") -> None:
        answer = decode(await self._ask("/heartbeat", self.unchanged, self.token, counts), HeartbeatResponse)
        assert (answer.policy, answer.want_status, answer.want_facts) == (None, False, False), answer

    async def poll_for_ever(self) -> None:
        await asyncio.sleep(random.uniform(0, POLLS_BEGIN_SECONDS))
        while True:
            status, _, _ = await self.poll.exchange("GET", f"/agent/v1/wake?seconds={WAKE_SECONDS}", token=self.token)
            assert status == 200, status

    async def _ask(self, path: str, body: bytes, token: str, counts: "Counts") -> bytes:
        failures = 0
        while True:
            started = time.perf_counter()
            try:
                status, wait, content = await self.wire.exchange("POST", f"/agent/v1{path}", body, token)
            except (OSError, EOFError, TimeoutError) as error:
                counts.broken[type(error).__name__] += 1
                status, wait, content = 0, 0.0, b""
            if status == 200:
                counts.milliseconds.append((time.perf_counter() - started) * 1000)
                return content
            if status not in (0, 503):
                raise AssertionError(f"{path}: {status} {content[:300]!r}")
            # As the agent does: what the manager asks for, and full jitter.
            counts.told_later += status == 503
            await asyncio.sleep(wait + random.uniform(0, min(60.0, 2.0**failures)))
            failures += 1

    def _status(self) -> AgentStatus:
        names = ("fanotify_filesystem_marks", "fanotify_pidfd", "bpf_exec_map", "bpf_ring", "port_events", "seccomp")
        module = ModuleStatus(
            ModuleId.INTEGRITY_MONITORING,
            Health.ACTIVE,
            policy_generation=self.generation,
            rule_count=60,
            metrics={"entities_count": 5694.0, "last_scan_seconds": 11.4, "last_scan_at": 1.7e9, "drifts_waiting_count": 0.0},
        )
        return AgentStatus(
            "0.1.0",
            1.7e9,
            "b" * 32,
            self.generation,
            clock_at=time.time(),
            capabilities=[Capability(name, True) for name in names],
            modules=[module],
            memory_bytes=140 << 20,
            cpu_seconds=12.5,
        )


@dataclass
class Counts:
    milliseconds: list[float] = field(default_factory=list)
    told_later: int = 0
    broken: collections.Counter[str] = field(default_factory=collections.Counter)


def facts_of(number: int) -> ComputerFacts:
    return ComputerFacts(
        hostname=f"server-{number:05}",
        machine_id=secrets.token_hex(16),
        os_name="debian",
        os_version="12",
        os_pretty_name="Debian GNU/Linux 12 (bookworm)",
        kernel="6.1.0-28-amd64",
        architecture="x86_64",
        cpu_count=4,
        memory_bytes=8 << 30,
        addresses=[f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"],
    )


async def enrol(manager: RunningManager, context: ssl.SSLContext, count: int) -> list[Agent]:
    token = manager.make_token(count)
    agents = []
    wire = Wire(manager.port, context)
    for number in range(count):
        key, facts = Ed25519PrivateKey.generate(), facts_of(number)
        public = public_bytes(key)
        request = EnrolRequest(token, public, "0.1.0", facts, key.sign(enrol_message(public, token)))
        status, _, body = await wire.exchange("POST", "/agent/v1/enrol", encode(request))
        assert status == 200, body
        computer_id = decode(body, EnrolResponse).computer_id
        agents.append(Agent(Wire(manager.port, context), Wire(manager.port, context), computer_id, key, facts))
    wire.close()
    return agents


def copy_to(manager: RunningManager, context: ssl.SSLContext, known: Agent, numbers: range) -> list[Agent]:
    """Write computers into the manager's database which stand there as `known` does."""
    agents = []
    database = Database(load_config(state_directory=str(manager.state), port=manager.port).url)
    try:
        with database.session(Scope.system("benchmark")) as session:
            rows: dict[type[Table], list[dict[str, object]]] = {}
            for table in (ComputerRecord, ReportRecord, GenerationRecord):
                row = session.get_one(table, known.computer_id)
                rows[table] = [{column.key: getattr(row, column.key) for column in row.__mapper__.column_attrs}] * len(numbers)
            for index, number in enumerate(numbers):
                key, facts, computer_id = Ed25519PrivateKey.generate(), facts_of(number), new_id()
                agent = Agent(Wire(manager.port, context), Wire(manager.port, context), computer_id, key, facts)
                agent.generation = known.generation
                agent.nothing_is_new()
                agents.append(agent)
                own = {"display_name": facts.hostname, "public_key": public_bytes(key), "machine_id": facts.machine_id}
                rows[ComputerRecord][index] = {**rows[ComputerRecord][index], "id": computer_id, **own}
                said = {"hostname": facts.hostname, "facts": storable_json(facts), "facts_digest": digest(facts)}
                rows[ReportRecord][index] = {**rows[ReportRecord][index], "id": computer_id, **said}
                rows[GenerationRecord][index] = {**rows[GenerationRecord][index], "id": computer_id}
            for table, values in rows.items():
                session.execute(insert(table), values)
    finally:
        database.dispose()
    return agents


# --- measuring


@dataclass(frozen=True)
class Row:
    name: str
    requests: int
    seconds: float
    manager_cpu: float
    store_cpu: float
    own_cpu: float
    counts: Counts
    resident: float
    proportional: float

    def show(self) -> None:
        waits = sorted(self.counts.milliseconds) or [0.0]
        p50, p99 = statistics.median(waits), waits[min(len(waits) - 1, int(len(waits) * 0.99))]
        print(
            f"| {self.name} | {self.requests:,} | {self.seconds:.1f} | {self.requests / self.seconds:,.0f}"
            f" | {self.manager_cpu / self.seconds:.1%} | {self.store_cpu / self.seconds:.1%}"
            f" | {self.manager_cpu / max(1, self.requests) * 1000:.2f} | {p50:.1f} / {p99:.1f} / {waits[-1]:,.0f}"
            f" | {self.counts.told_later:,} | {self.counts.broken.total():,} | {self.resident:.0f} / {self.proportional:.0f}"
            f" | {self.own_cpu / self.seconds:.0%} |",
            flush=True,
        )


async def measure(manager: RunningManager, name: str, work: Callable[[Counts], Awaitable[None]]) -> Row:
    counts, store = Counts(), manager.event_store_pid()
    before = cpu_of(manager.pid), cpu_of(store), time.process_time()
    started = time.monotonic()
    await work(counts)
    seconds = time.monotonic() - started
    after = cpu_of(manager.pid), cpu_of(store), time.process_time()
    spent = [end_ - start for start, end_ in zip(before, after, strict=True)]
    row = Row(name, len(counts.milliseconds), seconds, *spent, counts, *memory_of(manager.pid))
    row.show()
    return row


async def all_at_once(agents: list[Agent], each: Callable[[Agent], Awaitable[object]]) -> int:
    """Return how many were not answered within STORM_SECONDS."""
    tasks = [asyncio.ensure_future(each(agent)) for agent in agents]
    done, late = await asyncio.wait(tasks, timeout=STORM_SECONDS)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        task.result()
    return len(late)


async def spread(agents: list[Agent], seconds: float, counts: Counts) -> None:
    """Let every agent beat once in HEARTBEAT_SECONDS, at a moment of its own, for so many seconds."""

    async def later(agent: Agent, wait: float) -> None:
        await asyncio.sleep(wait)
        await agent.beat(counts)

    moments = [(agent, random.uniform(0, HEARTBEAT_SECONDS)) for agent in agents]
    await asyncio.gather(*(later(agent, wait) for agent, wait in moments if wait < seconds), asyncio.sleep(seconds))


async def full_speed(agents: list[Agent], seconds: float, counts: Counts) -> None:
    """Keep a few heartbeats on the way at any time."""
    until = time.monotonic() + seconds
    waiting = collections.deque(agents)

    async def go_on() -> None:
        while time.monotonic() < until:
            waiting.append(agent := waiting.popleft())
            await agent.beat(counts)

    await asyncio.gather(*(go_on() for _ in range(min(IN_FLIGHT_AT_FULL_SPEED, len(agents) // 2))))


async def run(manager: RunningManager, count: int, seconds: float) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=manager.ca_pem)
    new_count = min(NEW_AGENTS, count)
    started, cpu = time.monotonic(), cpu_of(manager.pid)
    agents = await enrol(manager, context, new_count)
    spent, cpu = time.monotonic() - started, cpu_of(manager.pid) - cpu
    enrolled = f"enrolment, one after the other: {spent / new_count * 1000:.1f} ms, {cpu / new_count * 1000:.1f} ms of CPU"
    print(
        "| what | requests | s | a second | manager's CPU | store's CPU | CPU ms a request | ms p50 / p99 / longest | 503"
        " | broken | manager MB resident / proportional | this program's CPU |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    policy_bytes: list[int] = []
    late: list[int] = []

    async def first(counts: Counts) -> None:
        async def each(agent: Agent) -> None:
            await agent.sign_in(counts)
            policy_bytes.append(await agent.tell_all(counts))

        late.append(await all_at_once(agents, each))

    async def again(counts: Counts) -> None:
        async def each(agent: Agent) -> None:
            await agent.sign_in(counts)
            await agent.beat(counts)

        for agent in agents:
            agent.wire.close()
        late.append(await all_at_once(agents, each))

    await measure(
        manager, f"{new_count:,} new agents at once: connect, sign in, all they have, take the policy, confirm it", first
    )
    agents = [agent for agent in agents if agent.unchanged]
    agents += copy_to(manager, context, agents[0], range(new_count, count))
    cold = await measure(manager, f"{len(agents):,} agents come back at once after a restart: connect, sign in, heartbeat", again)
    agents = [agent for agent in agents if agent.token]
    await measure(manager, "a heartbeat a minute each, unchanged", lambda counts: spread(agents, seconds, counts))
    fast = await measure(manager, "unchanged heartbeats as fast as it can", lambda counts: full_speed(agents, 5.0, counts))
    polls = [asyncio.ensure_future(agent.poll_for_ever()) for agent in agents]
    await asyncio.sleep(POLLS_BEGIN_SECONDS + 1)
    name = f"a heartbeat a minute each, and a long-poll of {WAKE_SECONDS} s"
    await measure(manager, name, lambda counts: spread(agents, seconds, counts))
    for poll in polls:
        poll.cancel()
    await asyncio.gather(*polls, return_exceptions=True)
    for agent in agents:
        agent.poll.close()
    warm = await measure(manager, f"{len(agents):,} agents come back at once after an outage of the network", again)
    rate, per_core = len(agents) / HEARTBEAT_SECONDS, fast.requests / fast.manager_cpu
    print(f"\n{len(agents):,} agents of a heartbeat a minute are {rate:.0f} a second; one core of the manager answers", end=" ")
    print(f"{per_core:,.0f} unchanged heartbeats a second, as many as {per_core * HEARTBEAT_SECONDS:,.0f} agents send.")
    print(f"A policy is {statistics.median(policy_bytes) / 1024:.1f} KiB on the wire; {enrolled}.")
    print(f"All agents were answered {cold.seconds:.1f} s after a restart, {warm.seconds:.1f} s after an outage;", end=" ")
    print(f"not answered within {STORM_SECONDS:.0f} s: {', '.join(map(str, late))}.")
    if broken := sum((row.counts.broken for row in (cold, fast, warm)), collections.Counter[str]()):
        print(f"Connections broke with {', '.join(f'{name} ({times})' for name, times in broken.items())}.")
    print(f"This computer was {os.getloadavg()[0]:.1f} busy (load average) on {os.cpu_count()} cores.")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure a manager with thousands of agents.")
    parser.add_argument("--agents", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each quiet phase")
    options = parser.parse_args()
    # Two connections for each agent, here and in the manager.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    agents = min(options.agents, (most - 500) // 2)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="keibi-heartbeats-"))
    try:
        with (
            running_manager(directory, [sys.executable, "-m", "keibi.manager.main"]) as manager,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(run(manager, agents, options.seconds))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
