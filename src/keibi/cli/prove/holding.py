"""The private gate in which programs and readers are held: a mount that nobody else sees, asking the running agent's judges."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from keibi.agent.gate.private import PrivateGate
from keibi.contract.names import ModuleId


@dataclass(frozen=True)
class Holding:
    """A private gate, or why there is none."""

    gate: PrivateGate | None
    reason: str = ""

    def gate_for(self, module: ModuleId) -> tuple[PrivateGate | None, str]:
        """Return a gate that asks this module; without one, why."""
        if self.gate is None:
            return None, self.reason
        if self.gate.state["judges"].get(module.value, -1) < 0:
            return None, "its process on this computer answers no questions"
        return self.gate, ""


@contextmanager
def holding(folder: str, judges_directory: str, *, is_wanted: bool) -> Iterator[Holding]:
    """Have a private gate at a folder, which is made and taken away again; `is_wanted` says whether any module needs it."""
    if not is_wanted:
        yield Holding(None, "no module needs it")
        return
    if not os.path.isdir(judges_directory):
        yield Holding(None, "the agent on this computer has nobody who answers questions")
        return
    os.mkdir(folder, 0o755)
    try:
        with contextlib.ExitStack() as stack:
            try:
                gate = stack.enter_context(PrivateGate(folder, judges_directory))
            except OSError as error:
                yield Holding(None, str(error))
            else:
                is_enforcing = bool(gate.state["is_enforcing"])
                why = str(gate.state["reason"]) or "this kernel does not let files be held"
                yield Holding(gate) if is_enforcing else Holding(None, why)
    finally:
        os.rmdir(folder)
