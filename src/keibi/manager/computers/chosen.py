"""Computers that somebody names, alone and by their groups, for doing something on all of them."""

from collections.abc import Collection

from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.computers.model import ComputerFilter, ComputerSummary
from keibi.manager.computers.service import ComputerService

MAX_COMPUTERS = 10_000
_AT_ONCE = 500


def chosen_computers(
    computers: ComputerService, principal: Principal, computer_ids: Collection[str], group_ids: Collection[str]
) -> list[ComputerSummary]:
    """Return these computers and all that are in and below these groups, each once, by name.

    Raises:
        InputError: nobody is meant, more than MAX_COMPUTERS are, or there is no such one.
    """
    wanted = tuple(dict.fromkeys(computer_ids))
    found: dict[str, ComputerSummary] = {}

    def collect(filters: ComputerFilter) -> None:
        cursor: str | None = None
        while True:
            page = computers.list(principal, filters, cursor, 1000)
            found.update({computer.computer_id: computer for computer in page.items})
            if len(found) > MAX_COMPUTERS:
                raise InputError("too_many_computers", f"more than {MAX_COMPUTERS} computers are meant")
            cursor = page.next_cursor
            if cursor is None:
                return

    if len(wanted) > MAX_COMPUTERS:
        raise InputError("too_many_computers", f"{len(wanted)} computers are named, more than {MAX_COMPUTERS}")
    for start in range(0, len(wanted), _AT_ONCE):
        collect(ComputerFilter(computer_ids=wanted[start : start + _AT_ONCE]))
    for computer_id in wanted:
        if computer_id not in found:
            raise InputError("computer_not_found", f"there is no computer {computer_id!r}")
    for group_id in dict.fromkeys(group_ids):
        collect(ComputerFilter(group_id=group_id))
    if not found:
        raise InputError(
            "nothing_chosen", "no computer is meant", where="computer_ids", hint="name computers, or groups that have some"
        )
    return sorted(found.values(), key=lambda computer: computer.display_name.casefold())
