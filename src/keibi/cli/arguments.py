"""Numbers on the command line, with their limits: what is wrong is said before anything is asked or done."""

import argparse
import math
from collections.abc import Callable


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a type for `argparse`: a whole number from `least` to `most`."""

    def parsed(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} to {most}")
        return number

    return parsed


def hours(text: str) -> float:
    """Return a number of hours, as a type for `argparse`: above 0, and not longer ago than there are events."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= 10 * 366 * 24:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of hours above 0")
    return number
