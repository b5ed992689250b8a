"""Maintenance of many computers at once: what changes meanwhile is recognised; it ends by itself."""

from collections.abc import Callable, Sequence

from keibi.contract.commands import CommandKind
from keibi.contract.names import ModuleId
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.agents.commands import CommandService
from keibi.manager.agents.model import SentCommand
from keibi.manager.computers.chosen import chosen_computers
from keibi.manager.computers.model import ComputerState, ComputerSummary
from keibi.manager.computers.service import ComputerService
from keibi.manager.software.model import MaintenancePreview

MODULE = ModuleId.APPLICATION_CONTROL
MAX_MINUTES = 7 * 24 * 60
MAX_NAMES = 50
EXPIRES_SECONDS = 3600.0
"""A computer that is away for so long begins no maintenance when it comes back: nobody would expect it by then."""


class MaintenanceService:
    """Sends the command to each computer."""

    def __init__(self, computers: ComputerService, commands: CommandService) -> None:
        self._computers = computers
        self._commands = commands

    def preview(
        self, principal: Principal, computer_ids: Sequence[str], group_ids: Sequence[str], minutes: int
    ) -> MaintenancePreview:
        """Say which computers a maintenance (0 minutes: its end) would reach.

        Raises:
            AccessError: the principal may not for one of them. InputError: no such computer or group, or a bad length.
        """
        found = self._chosen(principal, computer_ids, group_ids, minutes)
        return MaintenancePreview(
            minutes=minutes,
            computer_count=len(found),
            computer_names=_names(found, lambda one: bool(one.display_name)),
            offline_names=_names(found, lambda one: one.state is not ComputerState.ONLINE),
            without_names=_names(found, lambda one: one.modules.get(MODULE, "inactive") in ("inactive", "not_supported")),
        )

    def start(
        self, principal: Principal, computer_ids: Sequence[str], group_ids: Sequence[str], minutes: int
    ) -> Sequence[SentCommand]:
        """Begin, lengthen or (0 minutes) end maintenance on computers; an agent that is away for an hour does not begin it later.

        Raises:
            AccessError, InputError: as `preview`; nothing is sent then. TryLaterError: too many commands wait for a computer.
        """
        found = self._chosen(principal, computer_ids, group_ids, minutes)
        return self._commands.send_all(
            principal,
            [one.computer_id for one in found],
            CommandKind.SET_MAINTENANCE,
            MODULE,
            {"minutes": minutes},
            expires_in_seconds=EXPIRES_SECONDS,
        )

    def _chosen(
        self, principal: Principal, computer_ids: Sequence[str], group_ids: Sequence[str], minutes: int
    ) -> list[ComputerSummary]:
        if not 0 <= minutes <= MAX_MINUTES:
            raise InputError(
                "minutes_invalid", f"a maintenance lasts from 1 to {MAX_MINUTES} minutes, not {minutes}", where="minutes"
            )
        found = chosen_computers(self._computers, principal, computer_ids, group_ids)
        for one in found:
            principal.require("software.decide", tenant_id=one.tenant_id, group_id=one.group_id)
        return found


def _names(found: Sequence[ComputerSummary], fits: Callable[[ComputerSummary], bool]) -> tuple[str, ...]:
    return tuple(one.display_name for one in found if fits(one))[:MAX_NAMES]
