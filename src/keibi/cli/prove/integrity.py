"""Integrity monitoring proved: a file and a port that come and change, and a file that is restored."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from keibi.cli.prove.rows import Manager, Prover, Row, Trigger
from keibi.contract.names import ModuleId

_WARM_UP_SECONDS = 2.0


def prove_integrity(manager: Manager, folder: str) -> Iterator[Row]:
    """Yield the rows, each as soon as it is known."""
    prover = Prover(ModuleId.INTEGRITY_MONITORING, manager)
    if manager.in_force(ModuleId.INTEGRITY_MONITORING).is_off:
        yield prover.off("changed a file", "file.updated")
        return
    _warm_up(manager, folder)
    for trigger in _triggers(folder):
        yield prover.run(trigger)
    yield _restored(prover, folder)


def _triggers(folder: str) -> Iterator[Trigger]:
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


def _warm_up(manager: Manager, folder: str) -> None:
    """Wait until real time works: an agent that has just started looks at everything first, and then cannot say who did it."""
    deadline = time.monotonic() + manager.seconds
    number = 0
    while time.monotonic() < deadline:
        number += 1
        path, began = f"{folder}/warm-up-{number}", time.time()
        with open(path, "w") as file:
            file.write("1")
        event = manager.find("file.created", path, began, min(_WARM_UP_SECONDS, manager.seconds))
        if event is not None and (event["actor"] or {}).get("process"):
            return


def _restored(prover: Prover, folder: str) -> Row:
    manager, path = prover.manager, f"{folder}/restored.txt"
    done, expected = "changed a file and had it restored", "the former content is back"
    began = time.time()
    with open(path, "w") as file:
        file.write("as it was\n")
    if manager.find("file.created", path, began) is None:
        return prover.missed(done, expected, "the file was not seen at all")
    began = time.time()
    with open(path, "w") as file:
        file.write("spoilt\n")
    event = manager.find("file.updated", path, began)
    if event is None:
        return prover.missed(done, expected, "the change was not seen")
    arguments = {"key": path, "version": event["details"].get("baseline_version", 0)}
    started = time.monotonic()
    body = {"kind": "restore", "module": "integrity_monitoring", "arguments": arguments}
    command = manager.finished(manager.api.post(f"/computers/{manager.computer_id}/commands", body))
    with open(path) as file:
        is_back = file.read() == "as it was\n"
    if not is_back:
        return prover.missed(done, expected, f"{command['state']}: {command['message']}")
    return prover.seen(done, expected, "restored from the baseline's copy", started)


def _names(attribute: str) -> Callable[[dict[str, Any]], str]:
    def check(event: dict[str, Any]) -> str:
        changed = event.get("details", {}).get("changed_attributes", [])
        return "" if attribute in changed else f"it says that {', '.join(changed) or 'nothing'} changed"

    return check
