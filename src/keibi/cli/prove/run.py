"""Goes through the modules, shows each row as it comes, and sums up."""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from keibi.cli.output import show_json, show_table
from keibi.cli.prove.holding import holding
from keibi.cli.prove.integrity import prove_integrity
from keibi.cli.prove.malware import prove_malware
from keibi.cli.prove.rows import Manager, Outcome, Row
from keibi.cli.prove.software import prove_software
from keibi.cli.up import BASE, Layout, api_of
from keibi.contract.names import ModuleId
from keibi.errors import InputError, TryLaterError

FOLDER = f"{BASE}/prove"
_HELD = (ModuleId.ANTI_MALWARE, ModuleId.APPLICATION_CONTROL)


def prove(layout: Layout, seconds: float, *, as_json: bool) -> int:
    """Do everything; returns 0 when all arrived, 1 when something was missed.

    Raises:
        KeibiError: no manager or agent to prove it with.
    """
    if os.geteuid() != 0:
        raise InputError("needs_root", "'keibi prove' needs root: it changes a folder that root watches")
    manager = _manager_of(layout, seconds)
    rows = []
    with _folder() as folder:
        for row in _rows(layout, manager, folder):
            rows.append(row)
            if not as_json:
                _say(row)
    if as_json:
        show_json([row.__dict__ for row in rows])
    else:
        _show(rows)
    return int(any(row.outcome is Outcome.MISSED for row in rows))


def _rows(layout: Layout, manager: Manager, folder: str) -> Iterator[Row]:
    yield from prove_integrity(manager, folder)
    is_wanted = not all(manager.in_force(module).is_off for module in _HELD)
    with holding(f"{folder}/private", f"{layout.agent_state}/judges", is_wanted=is_wanted) as held:
        yield from prove_malware(manager, folder, held)
        yield from prove_software(manager, held)


def _show(rows: Sequence[Row]) -> None:
    print()
    show_table(
        ("module", "what was done", "expected", "seen at the manager", "ms"),
        [(row.module, row.done, row.expected, row.seen, row.mark) for row in rows],
        empty="No module is installed.",
    )
    counts = {outcome: sum(row.outcome is outcome for row in rows) for outcome in Outcome}
    total = len(rows) - counts[Outcome.OFF] - counts[Outcome.NOT_ENFORCED]
    said = f"\n{counts[Outcome.SEEN]} of {total} seen."
    if counts[Outcome.OFF]:
        said += f" {counts[Outcome.OFF]} are off by policy."
    if counts[Outcome.NOT_ENFORCED]:
        said += f" {counts[Outcome.NOT_ENFORCED]} cannot be had on this computer, and no policy asks for them."
    print(said + (" 'keibi agent doctor' helps to find out why." if counts[Outcome.MISSED] else ""))


def _say(row: Row) -> None:
    outcome = f"{row.milliseconds} ms" if row.outcome is Outcome.SEEN else f"{row.mark}: {row.seen}"
    print(f"  {row.done} … {outcome}", flush=True)


@contextmanager
def _folder() -> Iterator[str]:
    """Give a folder of this run, and take it away afterwards."""
    folder = f"{FOLDER}/{secrets.token_hex(4)}"
    os.makedirs(folder, mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _manager_of(layout: Layout, seconds: float) -> Manager:
    from keibi.agent.facts import read_machine_id
    from keibi.agent.identity import IdentityStore

    identity = IdentityStore(layout.agent_state).load(read_machine_id())
    if identity is None:
        raise InputError("not_enrolled", "this computer is not enrolled", where=layout.agent_state, hint="'keibi up' does it")
    if layout.agent().running_pid() is None:
        raise TryLaterError("agent_not_running", "the agent does not run on this computer", hint="'keibi up' starts it")
    return Manager(api_of(layout), identity.computer_id, seconds)
