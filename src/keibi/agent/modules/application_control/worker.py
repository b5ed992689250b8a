"""The application control worker: `python -m keibi.agent.modules.application_control.worker --state DIR --judges DIR`.

Theory of operation. *Main* reads the core's frames and hands them on. The *director* (director.py) owns the policy, answers
commands, sends events and status. The *gates* thread (judge_server.py) takes questions and hands them to the *lanes* (lanes.py),
which judge. The *builder* (builder.py) walks the file systems. The inventory is one SQLite connection behind one lock, held for
microseconds; an event is written in the transaction of what it tells of.
"""

import argparse
import contextlib
import os
import queue
import resource
import signal
import socket
import sys
import threading

from keibi.agent import precedence
from keibi.agent.core_socket import CoreSocket
from keibi.agent.judge_server import JudgeServer
from keibi.agent.linux.accounts import AccountNames
from keibi.agent.modules.application_control.building import BUILT_SETTING
from keibi.agent.modules.application_control.director import Director
from keibi.agent.modules.application_control.floor_at_start import find_floor
from keibi.agent.modules.application_control.inventory import Inventory
from keibi.agent.modules.application_control.judge import Judge
from keibi.agent.modules.application_control.lanes import Lanes
from keibi.agent.modules.application_control.lasting import Lasting
from keibi.agent.modules.application_control.packages import Packages
from keibi.agent.modules.application_control.reporting import Reporter
from keibi.agent.ports import Hello, Stop, ToWorker
from keibi.agent.process_book import ProcessBook
from keibi.agent.walls import forbid_system_calls, live_without_root
from keibi.contract.names import ModuleId
from keibi.contract.status import Capability

CAPABILITIES = ("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_LEASE")
"""To read what it judges, to look at who asks, and to be told by the kernel whether a file has writers."""
INBOX_FRAMES = 200
DESCRIPTORS = 8192
SWITCH_SECONDS = 0.0005


def give_up_power(state_directory: str) -> list[Capability]:
    """Become an ordinary user that may read; return which walls stand, with the reason where one does not."""
    return [
        *live_without_root("application_control_worker_without_root", state_directory, CAPABILITIES),
        forbid_system_calls(),
    ]


def _allow_descriptors() -> None:
    """Let many questions wait, each with its descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """Run the worker until the core says stop or is gone."""
    parser = argparse.ArgumentParser(prog="keibi-application-control-worker")
    parser.add_argument("--state", required=True, help="directory of the inventory; it belongs to this worker alone")
    parser.add_argument("--judges", required=True, help="directory in which gates find it")
    parser.add_argument("--root", action="append", default=[], help="what the inventory covers (default: /)")
    options = parser.parse_args()
    state_directory = os.path.abspath(options.state)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A lease that is broken while it is tested is told by this signal, whose default is to end the process.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    os.makedirs(state_directory, mode=0o700, exist_ok=True)
    _allow_descriptors()
    # A lane must not wait the usual 5 ms for another thread of this worker while the kernel holds a process for it.
    sys.setswitchinterval(SWITCH_SECONDS)
    precedence.allow()
    lanes: Lanes | None = None
    director: Director | None = None
    server = JudgeServer(
        options.judges,
        str(ModuleId.APPLICATION_CONTROL),
        on_question=lambda asked: lanes.put(asked) if lanes is not None else asked.close(),
        on_told=lambda told: director.gate_told(told) if director is not None else None,
        on_state=lambda states: director.gates_are(states) if director is not None else None,
    )
    walls = give_up_power(state_directory)
    core = CoreSocket(socket.socket(fileno=os.dup(0)))
    inventory, damage = Inventory.open(os.path.join(state_directory, "inventory.db"))
    packages = Packages(os.path.join(state_directory, "packages.db"))
    names = AccountNames()
    book = ProcessBook(names)
    reporter = Reporter(inventory, lambda: director.generation if director is not None else 0)
    maintenance, unlocked = Lasting(inventory, "maintenance"), Lasting(inventory, "unlocked")
    floor = find_floor(inventory, is_inventory_there=inventory.setting(BUILT_SETTING) is not None)
    # Everything of the agent's, not only of this worker: what it writes about software must not become software.
    own_directory = os.fsencode(os.path.dirname(state_directory))
    judge = Judge(
        inventory, packages, book, reporter, floor, maintenance=maintenance, unlocked=unlocked, own_directory=own_directory
    )
    inbox: queue.Queue[ToWorker | None] = queue.Queue(INBOX_FRAMES)
    director = Director(
        inventory,
        packages,
        book,
        reporter,
        judge,
        server,
        core.send,
        inbox,
        maintenance=maintenance,
        unlocked=unlocked,
        roots=[os.fsencode(os.path.abspath(root)) for root in options.root or ["/"]],
        own_directory=own_directory,
        damage=damage,
    )
    lanes = Lanes(judge.consider, director.lanes_overflowed, remember=book.remember, is_fine=judge.is_fine)
    lanes.start()
    core.send(Hello("application_control", os.getpid(), walls))
    thread = threading.Thread(target=director.run, name="director", daemon=True)
    thread.start()
    with precedence.starting_first():
        server.start()
    while thread.is_alive():
        message = core.receive()
        inbox.put(message)
        if message is None or isinstance(message, Stop):
            break
    thread.join()
    server.close()
    lanes.close()
    packages.close()
    inventory.close()
    return director.exit_code


if __name__ == "__main__":
    sys.exit(main())
