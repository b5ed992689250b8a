"""Writes docs/reference/ways-round.md: the known ways round application control, and what the tests hold to become of each.

`--check` writes nothing; its status is 1 when the page is out of date.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.system.application_control_bypasses import BYPASSES  # noqa: E402  the tests are no package that is installed
from tests.vm.attempts import ATTEMPTS  # noqa: E402

PAGE = ROOT / "docs/reference/ways-round.md"
HEAD = """\
<!-- Made by `python scripts/ways_round.py` from tests/system/application_control_bypasses.py and tests/vm/attempts.py. -->
# Known ways round application control

Each line is an attack that the tests carry out on a real kernel, in *prevent* mode with the default settings and a policy that
blocks inline code. *Level C* is fanotify alone; *level B* has the kernel guard beside it, which ends a program that no mark of
fanotify saw before its first instruction. At *level A* (BPF LSM) the guard refuses such programs and libraries before they begin,
and approved files while somebody may store into them: all lines of that column are carried out on Debian's stock kernels 6.1 and
6.12 in QEMU (`make test-vm`, part of `make test`). At level D nothing is held: what would be blocked is an event.

| # | way round | level C | level B | level A | remark |
|---|---|---|---|---|---|
"""
AGENT = """
# Known ways against the agent itself, by root

In *prevent* mode with *Protect the agent*, at level A, tried in the same machines. The agent is tamper-evident and delays whoever
is root; it is not tamper-proof. Each attempt is an event (`gate.tampering`). Root can still move its processes into another
control group and end that, mount something over its directory, write to the raw disk, load a kernel module, or start the computer
from elsewhere. PID 1 may do everything, so `systemctl stop` works, as do updates and `keibi down`: a SIGTERM to the core is let
through and told, and if the agent still runs ten seconds later anybody who may signal it may end it. Its programs are left to the
package manager; a change of them is an event at every level. At the levels B, C and D root's signals reach the agent: whatever
started it starts it again, and the manager sees that it was away. In a container the processes are not protected.

| # | attempt | level A |
|---|---|---|
"""
WORDS = {"allowed": "runs, as it should", "not covered": "**not covered**"}


def page() -> str:
    """Return the page as it should be."""
    lines = []
    for one in BYPASSES:
        at_each = " | ".join(WORDS.get(word, word) for word in map(one.expected_at, "CBA"))
        lines.append(f"| {one.identity} | {one.what.replace('|', chr(92) + '|')} | {at_each} | {one.note} |")
    attempts = [f"| {one.identity} | {one.what} | {'possible' if one.is_possible else 'refused'} |" for one in ATTEMPTS]
    return HEAD + "\n".join(lines) + "\n" + AGENT + "\n".join(attempts) + "\n"


def main() -> int:
    """Write the page, or say whether it is out of date."""
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), "utf-8")
    sys.stdout.write(f"written: {PAGE.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
