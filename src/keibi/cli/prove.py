"""`keibi prove`: does something harmless for each installed module and shows what arrived at the manager, and how fast.

Each trigger acts in a folder that is watched for this purpose, and cleans up. The time is from the act to the moment when the
manager's API answers with the event, so it includes the kernel, the agent, the network and the event store.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from keibi.cli.client import ApiClient
from keibi.cli.output import show_json, show_table
from keibi.cli.up import BASE, Layout, api_of
from keibi.errors import InputError, TryLaterError

FOLDER = f"{BASE}/prove"
_ASK_SECONDS = 0.02


@dataclass(frozen=True)
class Row:
    """One trigger and what came of it."""

    module: str
    done: str
    expected: str
    seen: str
    milliseconds: int | None

    @property
    def is_seen(self) -> bool:
        """Whether what was expected arrived."""
        return self.milliseconds is not None


@dataclass(frozen=True)
class Trigger:
    """Something harmless to do, and the event that it must give."""

    done: str
    kind: str
    subject: str
    act: Callable[[], None]
    check: Callable[[dict[str, Any]], str] = lambda _: ""  # what is wrong with the event, "" when nothing is


def prove(layout: Layout, seconds: float, *, as_json: bool) -> int:
    """Run every trigger; returns 0 when all arrived, 1 when one was missed.

    Raises:
        KeibiError: no manager or agent to prove it with.
    """
    if os.geteuid() != 0:
        raise InputError("needs_root", "'keibi prove' needs root: it changes a folder that root watches")
    api, computer_id = _this_computer(layout)
    rows = []
    with _folder() as folder:
        _warm_up(api, computer_id, folder, seconds)
        for trigger in _integrity_triggers(folder):
            row = _run(api, computer_id, trigger, seconds)
            rows.append(row)
            if not as_json:
                _say(row)
        rows.append(_prove_restore(api, computer_id, folder, seconds))
        if not as_json:
            _say(rows[-1])
    if as_json:
        show_json([row.__dict__ for row in rows])
    else:
        print()
        show_table(
            ("module", "what was done", "expected", "seen at the manager", "ms"),
            [(row.module, row.done, row.expected, row.seen, row.milliseconds if row.is_seen else "MISSED") for row in rows],
            empty="No module is installed.",
        )
        missed = sum(not row.is_seen for row in rows)
        print(f"\n{len(rows) - missed} of {len(rows)} seen." + (" 'keibi agent doctor' helps to find out why." if missed else ""))
    return int(any(not row.is_seen for row in rows))


def _integrity_triggers(folder: str) -> Iterator[Trigger]:
    path, moved = f"{folder}/document.txt", f"{folder}/renamed.txt"

    def write(content: str) -> Callable[[], None]:
        def act() -> None:
            with open(path, "w") as file:
                file.write(content)

        return act

    def difference_of(event: dict[str, Any]) -> str:
        text = event.get("details", {}).get("difference", "")
        return "" if "-1+1=2" in text and "+1*1=1" in text else "without the difference of the content"

    def writer_of(event: dict[str, Any]) -> str:
        return "" if (event.get("actor") or {}).get("process") else "without who did it"

    yield Trigger("created a file", "file.created", path, write("1+1=2\n"), writer_of)
    yield Trigger("changed its content", "file.updated", path, write("1*1=1\n"), difference_of)
    yield Trigger("made it private", "file.updated", path, lambda: os.chmod(path, 0o600), _names("permissions"))
    yield Trigger("renamed it", "file.renamed", moved, lambda: os.rename(path, moved))
    yield Trigger("deleted it", "file.deleted", moved, lambda: os.unlink(moved))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        key = f"tcp/127.0.0.1/{listener.getsockname()[1]}"
        yield Trigger("opened a port on loopback", "port.created", key, listener.listen)


def _warm_up(api: ApiClient, computer_id: str, folder: str, seconds: float) -> None:
    """Wait until real time works: an agent that has just started looks at everything first, and then cannot say who did it."""
    deadline = time.monotonic() + seconds
    number = 0
    while time.monotonic() < deadline:
        number += 1
        path, began = f"{folder}/warm-up-{number}", time.time()
        with open(path, "w") as file:
            file.write("1")
        event = _find(api, computer_id, "file.created", path, began, min(2.0, seconds))
        if event is not None and (event["actor"] or {}).get("process"):
            return


def _prove_restore(api: ApiClient, computer_id: str, folder: str, seconds: float) -> Row:
    path = f"{folder}/restored.txt"
    done, expected = "changed a file and had it restored", "the former content is back"
    began = time.time()
    with open(path, "w") as file:
        file.write("as it was\n")
    if _find(api, computer_id, "file.created", path, began, seconds) is None:
        return Row("integrity monitoring", done, expected, "the file was not seen at all", None)
    began = time.time()
    with open(path, "w") as file:
        file.write("spoilt\n")
    event = _find(api, computer_id, "file.updated", path, began, seconds)
    if event is None:
        return Row("integrity monitoring", done, expected, "the change was not seen", None)
    arguments = {"key": path, "version": api.get(f"/events/{event['event_id']}")["details"].get("baseline_version", 0)}
    started = time.monotonic()
    body = {"kind": "restore", "module": "integrity_monitoring", "arguments": arguments}
    command = api.post(f"/computers/{computer_id}/commands", body)
    while command["state"] in ("pending", "sent", "running") and time.monotonic() - started < seconds:
        time.sleep(_ASK_SECONDS)
        command = api.get(f"/commands/{command['command_id']}")
    with open(path) as file:
        is_back = file.read() == "as it was\n"
    spent = round((time.monotonic() - started) * 1000)
    if not is_back:
        return Row("integrity monitoring", done, expected, f"{command['state']}: {command['message']}", None)
    return Row("integrity monitoring", done, expected, "restored from the baseline's copy", spent)


def _run(api: ApiClient, computer_id: str, trigger: Trigger, seconds: float) -> Row:
    began, started = time.time(), time.monotonic()
    trigger.act()
    event = _find(api, computer_id, trigger.kind, trigger.subject, began, seconds)
    spent = round((time.monotonic() - started) * 1000)
    if event is None:
        return Row("integrity monitoring", trigger.done, trigger.kind, "nothing", None)
    wrong = trigger.check(api.get(f"/events/{event['event_id']}"))
    seen = f"{event['kind']} {event['subject'].rpartition('/')[2]}"
    if wrong:
        return Row("integrity monitoring", trigger.done, trigger.kind, f"{seen}, but {wrong}", None)
    return Row("integrity monitoring", trigger.done, trigger.kind, seen, spent)


def _find(api: ApiClient, computer_id: str, kind: str, subject: str, since: float, seconds: float) -> dict[str, Any] | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        page = api.get("/events", computer=computer_id, kind=kind, subject=subject, since=since - 0.001, limit=5)
        if page["items"]:
            found: dict[str, Any] = page["items"][0]
            return found
        time.sleep(_ASK_SECONDS)
    return None


def _names(attribute: str) -> Callable[[dict[str, Any]], str]:
    def check(event: dict[str, Any]) -> str:
        changed = event.get("details", {}).get("changed_attributes", [])
        return "" if attribute in changed else f"it says that {', '.join(changed) or 'nothing'} changed"

    return check


@contextmanager
def _folder() -> Iterator[str]:
    """Give a folder of this run, and take it away afterwards."""
    folder = f"{FOLDER}/{secrets.token_hex(4)}"
    os.makedirs(folder, mode=0o755)
    try:
        yield folder
    finally:
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)


def _this_computer(layout: Layout) -> tuple[ApiClient, str]:
    from keibi.agent.facts import read_machine_id
    from keibi.agent.identity import IdentityStore

    identity = IdentityStore(layout.agent_state).load(read_machine_id())
    if identity is None:
        raise InputError("not_enrolled", "this computer is not enrolled", where=layout.agent_state, hint="'keibi up' does it")
    if layout.agent().running_pid() is None:
        raise TryLaterError("agent_not_running", "the agent does not run on this computer", hint="'keibi up' starts it")
    return api_of(layout), identity.computer_id


def _say(row: Row) -> None:
    outcome = f"{row.milliseconds} ms" if row.is_seen else f"MISSED: {row.seen}"
    print(f"  {row.done} … {outcome}", flush=True)
