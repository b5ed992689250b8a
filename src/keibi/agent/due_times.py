"""When something that a policy schedules is due next."""

from datetime import datetime

import cronsim

from keibi.errors import InputError


def next_time(schedule: str) -> float:
    """Return when the schedule is due next, by this computer's clock and time zone.

    Raises:
        InputError: `schedule_invalid`: these are no five cron fields, or they name a date that never comes.
    """
    try:
        return next(cronsim.CronSim(schedule.strip(), datetime.now().astimezone().replace(tzinfo=None))).timestamp()
    except (cronsim.CronSimError, StopIteration) as error:
        raise InputError(
            "schedule_invalid", f"{schedule!r} is no schedule: {error}", hint="five fields, such as 17 3 * * *"
        ) from error
