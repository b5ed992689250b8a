"""The integrity monitoring worker: `python -m keibi.agent.modules.integrity_monitoring.worker --state DIR`.

Theory of operation. Three threads. *Main* reads the core's frames and hands them on. The *director* (director.py) owns the
policy, looks at what the sensor tells, keeps the schedule, sends events and status. The *scans* thread (scans.py) walks the file
system. The baseline is written by whoever holds the examiner's lock, and an event is written in the same transaction.
"""

import argparse
import os
import queue
import signal
import socket
import sys
import threading

from keibi.agent.core_socket import CoreSocket
from keibi.agent.linux.accounts import AccountNames
from keibi.agent.modules.integrity_monitoring.baseline import Baseline
from keibi.agent.modules.integrity_monitoring.contents import PackageKnowledge
from keibi.agent.modules.integrity_monitoring.director import Director
from keibi.agent.modules.integrity_monitoring.entities import EntityCollectors
from keibi.agent.modules.integrity_monitoring.examiner import Examiner
from keibi.agent.ports import Hello, Stop, ToWorker
from keibi.agent.walls import forbid_system_calls, live_without_root
from keibi.contract.status import Capability
from keibi.errors import RefusedError

CAPABILITIES = ("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE")
INBOX_FRAMES = 200
"""Frames that may wait; then the core waits, and tells what was missed meanwhile."""


def give_up_power(state_directory: str) -> list[Capability]:
    """Become an ordinary user that may read; return which walls stand, with the reason where one does not."""
    walls = live_without_root("integrity_worker_without_root", state_directory, CAPABILITIES, for_children=True)
    # Not Landlock: who is in a Landlock domain may not look at processes outside it, and so cannot say whose port it is.
    return [*walls, forbid_system_calls()]


def fingerprint_key(state_directory: str) -> bytes:
    """Return this computer's secret for password fingerprints, made at the first call."""
    path = os.path.join(state_directory, "fingerprint.key")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        with open(path, "rb") as file:
            return file.read()
    with open(descriptor, "wb") as file:
        key = os.urandom(32)
        file.write(key)
        os.fsync(file.fileno())
    return key


def open_baseline(state_directory: str) -> tuple[Baseline, str]:
    """Return the baseline, and what was wrong with the former one when it had to be moved aside."""
    path = os.path.join(state_directory, "baseline.db")
    try:
        return Baseline.open(path), ""
    except RefusedError as error:
        return Baseline.open(path), str(error)


def main() -> int:
    """Run the worker until the core says stop or is gone."""
    parser = argparse.ArgumentParser(prog="keibi-integrity-worker")
    parser.add_argument("--state", required=True, help="directory of the baseline; it belongs to this worker alone")
    state_directory = os.path.abspath(parser.parse_args().state)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.makedirs(state_directory, mode=0o700, exist_ok=True)
    walls = give_up_power(state_directory)
    core = CoreSocket(socket.socket(fileno=os.dup(0)))
    baseline, damage = open_baseline(state_directory)
    names = AccountNames()
    packages = PackageKnowledge()
    examiner = Examiner(baseline, names, packages)
    inbox: queue.Queue[ToWorker | None] = queue.Queue(INBOX_FRAMES)
    director = Director(
        examiner,
        EntityCollectors(names, fingerprint_key(state_directory)),
        packages,
        core.send,
        inbox,
        state_directory=state_directory,
        damage=damage,
    )
    core.send(Hello("integrity_monitoring", os.getpid(), walls))
    thread = threading.Thread(target=director.run, name="director", daemon=True)
    thread.start()
    while thread.is_alive():
        message = core.receive()
        inbox.put(message)
        if message is None or isinstance(message, Stop):
            break
    thread.join()
    baseline.close()
    return director.exit_code


if __name__ == "__main__":
    sys.exit(main())
