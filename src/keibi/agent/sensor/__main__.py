"""The sensor's program: `python -m keibi.agent.sensor --exclude DIRECTORY`, with the core's socket as standard input."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence

from keibi.agent.linux.bpf.build import OBJECT
from keibi.agent.log import Log
from keibi.agent.sensor.channel import MAX_BACKLOG_BYTES, Channel
from keibi.agent.sensor.loop import Sensor
from keibi.errors import KeibiError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until the core says stop or is gone; returns the exit code: 0, or 1 when the core spoke something else."""
    parser = argparse.ArgumentParser(prog="keibi-sensor", description="Tells what happens to files, programs and ports.")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="DIRECTORY", help="never told of: the agent's own state; repeatable"
    )
    parser.add_argument(
        "--max-backlog",
        type=int,
        default=MAX_BACKLOG_BYTES,
        metavar="BYTES",
        help="compressed, kept while the core does not read",
    )
    parser.add_argument("--bpf-object", default=OBJECT, help="kernel programs that know who runs; without them /proc must do")
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
        Sensor(
            Channel(connection, max_backlog_bytes=options.max_backlog),
            Log(),
            excluded=excluded,
            bpf_object=options.bpf_object,
        ).run()
    except KeibiError as error:
        Log().error("sensor ends", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
