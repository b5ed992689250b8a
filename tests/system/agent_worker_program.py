"""A tiny real worker for tests of the agent core: frames on standard input, an outbox in SQLite, and faults on request.

agent_worker_program.py DIRECTORY [--name N] [--events N] [--watch ROOT] [--observe N] [--exit CODE] [--junk] [--mute] [--deaf]
"""

import argparse
import os
import pathlib
import select
import socket
import sqlite3
import sys
import time

import msgspec

from keibi.agent.ports import (
    Answer,
    Applied,
    Configure,
    Emit,
    Happening,
    Hello,
    Observation,
    Observed,
    Overflowed,
    Report,
    Run,
    Stop,
    Stored,
    ToWorker,
    Watch,
    WatchRoots,
)
from keibi.contract.codec import frame, frame_length
from keibi.contract.commands import CommandResult, CommandState
from keibi.contract.events import Event
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.contract.policy import ModuleState
from keibi.contract.status import Capability, Health, ModuleStatus


class Worker:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.directory = pathlib.Path(options.directory)
        self.directory.mkdir(exist_ok=True)
        self.channel = socket.socket(fileno=0)
        self.outbox = sqlite3.connect(self.directory / "outbox.db", isolation_level=None)
        self.outbox.execute("PRAGMA journal_mode=WAL")
        self.outbox.execute("PRAGMA synchronous=FULL")
        self.outbox.execute("CREATE TABLE IF NOT EXISTS waiting (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB)")
        self.outbox.execute("CREATE TABLE IF NOT EXISTS born (event_id TEXT PRIMARY KEY)")
        self.produced = self.outbox.execute("SELECT count(*) FROM born").fetchone()[0]
        self.sent = 0
        self.generation = 0

    def note(self, line: str) -> None:
        with open(self.directory / "notes", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write(self, value) -> None:
        self.channel.sendall(frame(value))

    def run(self) -> int:
        options = self.options
        self.note(f"started {os.getpid()}")
        if options.mute:
            time.sleep(3600)
        if options.exit is not None:
            return options.exit
        self.write(Hello(options.name, os.getpid(), [Capability("test_capability", is_available=False, reason="it is a test")]))
        if options.junk:
            self.channel.sendall(b"\0\0\0\3abc")
        if options.watch:
            self.write(Watch([os.fsencode(options.watch)]))
        self.write(Report(ModuleStatus(ModuleId.INTEGRITY_MONITORING, Health.ACTIVE, "ready")))
        observed = 0
        while True:
            self.resend()
            busy = self.produced < options.events or observed < options.observe
            readable = select.select([self.channel], [], [], 0 if busy else 0.5)[0]
            if readable and not (options.deaf and (self.directory / "deaf").exists()):
                payload = self.read()
                if payload is None:
                    self.note("end of file")
                    return 0
                if self.heed(msgspec.msgpack.decode(payload, type=ToWorker)):
                    return 0
            if self.produced < options.events:
                self.produce(min(100, options.events - self.produced))
            if observed < options.observe and (self.directory / "observe").exists():
                self.write(Observed([Observation(Happening.MODIFIED, b"/x/%d" % observed, time.time())] * options.observe_each))
                observed += 1

    def read(self) -> bytes | None:
        header = self.exactly(4)
        return self.exactly(frame_length(header)) if header else None

    def exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = self.channel.recv(count - len(data))
            if not part:
                return None
            data += part
        return data

    def produce(self, count: int) -> None:
        self.outbox.execute("BEGIN")
        for index in range(count):
            event = Event(
                new_id(),
                ModuleId.INTEGRITY_MONITORING,
                "file.updated",
                Severity.LOW,
                time.time(),
                subject=f"/e/{self.produced + index}",
            )
            self.outbox.execute("INSERT INTO waiting (body) VALUES (?)", (msgspec.msgpack.encode(event),))
            self.outbox.execute("INSERT INTO born VALUES (?)", (event.event_id,))
        self.outbox.execute("COMMIT")
        self.produced += count

    def resend(self) -> None:
        rows = self.outbox.execute("SELECT seq, body FROM waiting WHERE seq > ? ORDER BY seq LIMIT 200", (self.sent,)).fetchall()
        if rows:
            self.sent = rows[-1][0]
            self.write(Emit(self.sent, [msgspec.msgpack.decode(body, type=Event) for _, body in rows]))

    def heed(self, message) -> bool:
        match message:
            case Configure():
                self.configure(message)
            case Stored():
                self.outbox.execute("DELETE FROM waiting WHERE seq <= ?", (message.through,))
            case Run():
                self.command(message.command)
            case WatchRoots():
                self.note(f"roots {b','.join(message.roots).decode()}")
            case Observed():
                self.note(f"observed {len(message.observations)}")
            case Overflowed():
                self.note(f"overflowed {message.reason}")
            case Stop():
                self.note("stopped")
                return True
        return False

    def configure(self, message: Configure) -> None:
        settings = msgspec.json.decode(message.policy.settings)
        if settings.get("crash"):
            self.note(f"crash {message.generation}")
            os._exit(3)
        if settings.get("silent"):
            return
        error = settings.get("refuse", "")
        if not error:
            self.note(f"configured {message.generation} {message.policy.state}")
            health = Health.INACTIVE if message.policy.state is ModuleState.OFF else Health.ACTIVE
            self.write(Report(ModuleStatus(ModuleId.INTEGRITY_MONITORING, health, "", message.generation)))
        self.write(Applied(message.generation, error))

    def command(self, command) -> None:
        self.note(f"ran {command.command_id} {command.kind}")
        if command.arguments.get("exit"):
            os._exit(4)
        if restore := command.arguments.get("restore"):
            wanted = {**restore, "path": restore["path"].encode(), "content": restore["content"].encode()}
            self.write(Answer(CommandResult(command.command_id, CommandState.DONE, result=wanted)))
            return
        if command.arguments.get("hang"):
            return
        self.options.events += command.arguments.get("emit", 0)
        self.write(Answer(CommandResult(command.command_id, CommandState.RUNNING, "half", 0.5)))
        self.write(Answer(CommandResult(command.command_id, CommandState.DONE, "done", 1.0, {"path": "/etc/x"})))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--name", default="integrity_monitoring")
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--watch", default="")
    parser.add_argument("--observe", type=int, default=0)
    parser.add_argument("--observe-each", type=int, default=1)
    parser.add_argument("--exit", type=int)
    parser.add_argument("--junk", action="store_true")
    parser.add_argument("--mute", action="store_true")
    parser.add_argument("--deaf", action="store_true")
    return Worker(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
