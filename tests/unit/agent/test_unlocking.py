"""A computer is unlocked by the console's code for its challenge, once, and by nothing else."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from keibi.agent.unlocking import MAX_WRONG_CODES, Unlocking
from keibi.contract.commands import Command, CommandResult, CommandState
from keibi.contract.unlock import unlock_code
from keibi.errors import AccessError, InputError, TryLaterError

SECRET = b"s" * 32


class Worker:
    """Takes local commands as the command runner does, and answers."""

    def __init__(self, state: CommandState = CommandState.DONE) -> None:
        self.state = state
        self.commands: list[Command] = []
        self.forgotten: list[str] = []

    def run_local(self, command: Command, watcher: Callable[[CommandResult], None]) -> None:
        self.commands.append(command)
        watcher(CommandResult(command.command_id, CommandState.RUNNING))
        watcher(CommandResult(command.command_id, self.state, "why", result={"until": 5.0}))


def ask(unlocking: Unlocking, **asked: Any) -> dict[str, Any]:
    async def last() -> dict[str, Any]:
        return [step async for step in unlocking.act(asked)][-1]

    return asyncio.run(last())


def made(worker: Worker, secret: bytes = SECRET) -> Unlocking:
    return Unlocking(lambda: secret, worker.run_local, worker.forgotten.append)


def test_the_right_code_unlocks_once():
    worker = Worker()
    unlocking = made(worker)
    challenge = ask(unlocking)["challenge"]
    code = unlock_code(SECRET, challenge)
    assert ask(unlocking, code=code.lower().replace("-", " "), minutes=15) == {"minutes": 15, "until": 5.0}
    assert worker.commands[0].arguments == {"unlock": True, "minutes": 15}
    assert worker.commands[0].command_id.startswith("local-")
    assert worker.forgotten == [worker.commands[0].command_id]
    with pytest.raises(InputError, match="no challenge"):
        ask(unlocking, code=code)


def test_a_wrong_code_is_refused_and_too_many_end_the_challenge():
    worker = Worker()
    unlocking = made(worker)
    code = unlock_code(SECRET, ask(unlocking)["challenge"])
    for _ in range(MAX_WRONG_CODES - 1):
        with pytest.raises(AccessError, match="not the code"):
            ask(unlocking, code=unlock_code(SECRET, "OTHER"))
    with pytest.raises(AccessError, match="too many"):
        ask(unlocking, code="AAAA")
    with pytest.raises(InputError, match="no challenge"):
        ask(unlocking, code=code)
    assert worker.commands == []


def test_a_new_challenge_makes_the_former_code_worthless():
    unlocking = made(Worker())
    code = unlock_code(SECRET, ask(unlocking)["challenge"])
    ask(unlocking)
    with pytest.raises(AccessError):
        ask(unlocking, code=code)


def test_a_computer_without_a_policy_has_no_code():
    with pytest.raises(InputError, match="no policy"):
        ask(made(Worker(), b""))


def test_what_the_worker_could_not_do_is_told():
    unlocking = made(Worker(CommandState.FAILED))
    code = unlock_code(SECRET, ask(unlocking)["challenge"])
    with pytest.raises(TryLaterError, match="why"):
        ask(unlocking, code=code)
