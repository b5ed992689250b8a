"""`keibi agent unlock`: frees this computer from application control for a while, with a one-time code and without a network.

The core shows a challenge, a person with the right reads it to the console, and the console answers with a code that only this
computer's secret makes (`contract/unlock.py`). A challenge is forgotten when its code came, or after too many wrong ones.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from keibi.contract.commands import Command, CommandKind, CommandResult, CommandState
from keibi.contract.names import ModuleId, new_id
from keibi.contract.unlock import is_code, new_challenge
from keibi.errors import AccessError, InputError, TryLaterError

DEFAULT_MINUTES = 60
MAX_WRONG_CODES = 5
WORKER_SECONDS = 30.0

RunLocal = Callable[[Command, Callable[[CommandResult], None]], None]


class Unlocking:
    """One challenge at a time. `act` is an action of the control socket."""

    def __init__(self, secret: Callable[[], bytes], run_local: RunLocal, forget_local: Callable[[str], None]) -> None:
        self._secret = secret
        self._run_local = run_local
        self._forget_local = forget_local
        self._challenge = ""
        self._wrong_count = 0

    async def act(self, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Give a challenge, or with {"code", "minutes"} check the code and unlock.

        Raises:
            InputError: there is no secret yet, or no challenge.
            AccessError: the code is not the one for the challenge.
            TryLaterError: application control does not answer.
        """
        secret = self._secret()
        if not secret:
            raise InputError(
                "unlock_no_secret", "this computer has no policy of a manager, so there is no code for it", hint="enrol it first"
            )
        code = asked.get("code")
        if not code:
            self._challenge, self._wrong_count = new_challenge(), 0
            yield {"challenge": self._challenge}
            return
        self._check(secret, str(code))
        minutes = asked.get("minutes", DEFAULT_MINUTES)
        result = await self._unlock(minutes)
        if result.state is not CommandState.DONE:
            raise TryLaterError("unlock_failed", f"the code is right, but it was not unlocked: {result.message}")
        yield {"minutes": minutes, "until": result.result.get("until", 0.0)}

    def _check(self, secret: bytes, code: str) -> None:
        if not self._challenge:
            raise InputError("unlock_no_challenge", "no challenge was asked for", hint="run `keibi agent unlock` without a code")
        challenge = self._challenge
        if is_code(secret, challenge, code):
            self._challenge = ""
            return
        self._wrong_count += 1
        if self._wrong_count >= MAX_WRONG_CODES:
            self._challenge = ""
            raise AccessError("unlock_wrong_code", "too many wrong codes", hint="ask for a new challenge")
        raise AccessError("unlock_wrong_code", f"this is not the code for the challenge {challenge}")

    async def _unlock(self, minutes: object) -> CommandResult:
        results: asyncio.Queue[CommandResult] = asyncio.Queue()
        command = Command(
            f"local-{new_id()}",
            CommandKind.SET_MAINTENANCE,
            ModuleId.APPLICATION_CONTROL,
            {"unlock": True, "minutes": minutes},
        )
        self._run_local(command, results.put_nowait)
        try:
            async with asyncio.timeout(WORKER_SECONDS):
                while (result := await results.get()).state is CommandState.RUNNING:
                    pass
                return result
        except TimeoutError:
            raise TryLaterError("unlock_failed", "application control does not answer", hint="see `keibi agent status`") from None
        finally:
            self._forget_local(command.command_id)
