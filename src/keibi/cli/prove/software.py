"""Application control proved with a program that does nothing: known, unknown, changed, a script, blocked by a decision."""

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from keibi.agent.gate.private import PrivateGate
from keibi.cli.prove.holding import Holding
from keibi.cli.prove.rows import Manager, Prover, Row, Trigger
from keibi.contract.names import ModuleId
from keibi.errors import InputError, KeibiError
from keibi.protection.application_control.settings import ApplicationControlSettings, Unrecognised

_BLOCKED = "software.blocked"
_NOT_ALLOWED = 126
"""The exit code for a program that may not be executed, as shells give it."""
_AGAIN_SECONDS, _SELDOM_SECONDS = 0.05, 0.5
_PATIENCE = 6
"""How many times longer it is waited where the inventory is still being built."""
_RULESET = "ac-own-proof"
_RULESET_TEXT = f"""\
id: {_RULESET}
version: 1
title: {{en: "Proof", ja: "動作確認"}}
description:
  en: "Made by keibi prove and deleted by it again. Nothing on a computer is held because of it."
  ja: "keibi proveが作成し、終了時に削除します。コンピュータ上のプログラムには影響しません。"
severity: low
action: block
is_for_proofs: true
entries: []
"""
_KNOWN, _UNKNOWN, _CHANGED = "ran a known program", "ran an unknown program", "ran a known program after a change"
_SCRIPT, _DECIDED = "ran an unknown script", "blocked a known program everywhere"


def prove_software(manager: Manager, holding: Holding) -> Iterator[Row]:
    """Yield the rows, each as soon as it is known. All of it happens in the private gate."""
    prover, in_force = Prover(ModuleId.APPLICATION_CONTROL, manager), manager.in_force(ModuleId.APPLICATION_CONTROL)
    rows = {_KNOWN: "it runs", _UNKNOWN: _BLOCKED, _CHANGED: _BLOCKED, _SCRIPT: _BLOCKED, _DECIDED: _BLOCKED}
    if in_force.is_off:
        yield from (prover.off(done, expected) for done, expected in rows.items())
        return
    gate, reason = holding.gate_for(ModuleId.APPLICATION_CONTROL)
    program = shutil.which("true", path="/usr/bin:/bin")
    if gate is None or program is None:
        why = reason or "this computer has no program 'true' to try it with"
        yield from (prover.not_enforced(done, expected, why, prevents=in_force.prevents) for done, expected in rows.items())
        return
    with open(program, "rb") as file:
        content = file.read()
    yield _known_runs(prover, gate, gate.write("known/true", content, mode=0o755))
    is_allowed = in_force.settings_as(ApplicationControlSettings).unrecognised is Unrecognised.ALLOW
    for trigger in _triggers(gate, content):
        if is_allowed:
            yield prover.off(trigger.done, _BLOCKED, "the policy allows it until somebody blocks it")
        else:
            yield prover.run(trigger)
    yield _blocked_by_decision(prover, gate, content)


def _known_runs(prover: Prover, gate: PrivateGate, path: str) -> Row:
    started = time.monotonic()
    seconds = prover.manager.seconds

    def runs() -> bool:
        return _run(gate, path) == 0

    # An agent that has just started takes its inventory first, and may not have come to this program yet.
    if _comes(runs, seconds) or (_builds(prover.manager) and _comes(runs, seconds * _PATIENCE, _SELDOM_SECONDS)):
        return prover.seen(_KNOWN, "it runs", "it ran", started)
    return prover.missed(_KNOWN, "it runs", f"it was blocked{_what_is_with(prover.manager)}")


def _triggers(gate: PrivateGate, content: bytes) -> Iterator[Trigger]:
    """Yield the acts; each writes something that no computer has."""

    def run(name: str, *contents: bytes) -> Callable[[], None]:
        def act() -> None:
            for content in contents:
                _run(gate, gate.write(name, content, mode=0o755))

        return act

    def because_of(reason: str) -> Callable[[dict[str, Any]], str]:
        def check(event: dict[str, Any]) -> str:
            if event["action"] != "blocked":
                return f"it was only {event['action']}"
            code = event["details"].get("reason_code")
            return "" if code == reason else f"because of {code} instead of {reason}"

        return check

    # Bytes after the end of a program change nothing of what it does.
    unknown, changed = (content + b"proof " + secrets.token_hex(8).encode() for _ in range(2))
    script = f"#!/bin/sh\n# proof {secrets.token_hex(8)}\nexit 0\n".encode()
    for done, name, written, reason in (
        (_UNKNOWN, "unknown/true", (unknown,), "unrecognised"),
        (_CHANGED, "changed/true", (content, changed), "changed"),
        (_SCRIPT, "script.sh", (script,), "unrecognised"),
    ):
        yield Trigger(done, _BLOCKED, os.path.join(gate.directory, name), run(name, *written), because_of(reason))


def _blocked_by_decision(prover: Prover, gate: PrivateGate, content: bytes) -> Row:
    """Block a known program by its hash, by a decision at the computer's policy; it must run before and afterwards."""
    path, manager = gate.write("decided/true", content, mode=0o755), prover.manager
    if _run(gate, path) != 0:
        return prover.missed(_DECIDED, _BLOCKED, "it did not run before")
    try:
        with _decision(manager, hashlib.sha256(content).hexdigest()):
            began, started = time.time(), time.monotonic()
            if not _comes(lambda: _run(gate, path) == _NOT_ALLOWED, manager.seconds):
                return prover.missed(_DECIDED, _BLOCKED, f"it ran all the same{_what_is_with(manager)}")
            event = manager.find(_BLOCKED, path, began)
            if event is None:
                return prover.missed(_DECIDED, _BLOCKED, "it was blocked, and no event tells of it")
            if (event["details"].get("reason_code"), event["rule_id"]) != ("block_rule", _RULESET):
                return prover.missed(_DECIDED, _BLOCKED, f"blocked by {event['rule_id'] or event['details'].get('reason_code')}")
            row = prover.seen(_DECIDED, _BLOCKED, f"{_BLOCKED} true, by the decision", started)
    except KeibiError as error:
        return prover.missed(_DECIDED, _BLOCKED, f"it could not be decided: {error}")
    if not _comes(lambda: _run(gate, path) == 0, manager.seconds):
        return prover.missed(_DECIDED, _BLOCKED, f"it stays blocked after the decision was undone{_what_is_with(manager)}")
    return row


@contextmanager
def _decision(manager: Manager, sha256: str) -> Iterator[None]:
    """Decide that a content is blocked where this computer's policy holds; undone on leaving.

    The entry goes into a ruleset of its own that only private gates heed: with any other, a computer whose policy only watches
    would have to hold every program as long as the block stands.
    """
    api = manager.api
    with_policy = api.get(f"/policies/computers/{manager.computer_id}")
    try:
        api.post("/rules", {"module": "application_control", "text": _RULESET_TEXT})
    except InputError:
        # What a proof that was cut short has left behind.
        api.call("DELETE", f"/rules/{_RULESET}", query={"also_unassign": "true"})
        api.post("/rules", {"module": "application_control", "text": _RULESET_TEXT})
    try:
        decision = api.post(
            "/software/decisions",
            {
                "action": "block",
                "sha256": [sha256],
                "rule_id": _RULESET,
                "policy_ids": [with_policy["used_policy_id"]],
                "note": "keibi prove",
            },
        )
        yield
        api.post(f"/software/decisions/{decision['decision_id']}/undo", {})
    finally:
        api.call("DELETE", f"/rules/{_RULESET}", query={"also_unassign": "true"})


def _run(gate: PrivateGate, path: str) -> int:
    return gate.run([path]).returncode


def _comes(condition: Callable[[], bool], seconds: float, again_seconds: float = _AGAIN_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(again_seconds)
    return True


def _builds(manager: Manager) -> bool:
    """Whether the inventory is still being built."""
    return _status(manager).get("health") == "starting"


def _what_is_with(manager: Manager) -> str:
    """Return what the module says of itself, as the end of a sentence."""
    said = _status(manager).get("message", "")
    return f" ({said})" if said else ""


def _status(manager: Manager) -> dict[str, Any]:
    status = manager.api.get(f"/computers/{manager.computer_id}").get("status") or {}
    return next((one for one in status.get("modules", []) if one["module"] == ModuleId.APPLICATION_CONTROL.value), {})
