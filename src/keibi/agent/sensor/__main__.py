"""The sensor's program: `python -m keibi.agent.sensor --exclude DIRECTORY`, with the core's socket as standard input."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence

from keibi.agent.log import Log
from keibi.agent.sensor.channel import Channel
from keibi.agent.sensor.gathering import MAX_WAITING
from keibi.agent.sensor.loop import Sensor
from keibi.errors import KeibiError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until the core says stop or is gone; returns the exit code: 0, or 1 when the core spoke something else."""
    parser = argparse.ArgumentParser(prog="keibi-sensor", description="Tells what happens to files, programs and ports.")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="DIRECTORY", help="never told of: the agent's own state; repeatable"
    )
    parser.add_argument("--max-waiting", type=int, default=MAX_WAITING, help="observations kept while the core does not read")
    options = parser.parse_args(arguments)
    # Ctrl-C in a terminal is for the core, which then tells its workers to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        connection = socket.socket(fileno=os.dup(0))
    except OSError:
        Log().error("standard input is not a socket; the agent core starts this program")
        return 1
    try:
        excluded = tuple(os.fsencode(path) for path in options.exclude)
        Sensor(Channel(connection), Log(), excluded=excluded, max_waiting=options.max_waiting).run()
    except KeibiError as error:
        Log().error("sensor ends", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
