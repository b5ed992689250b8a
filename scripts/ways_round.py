"""Writes docs/reference/ways-round.md: the known ways round application control, and what the tests hold to become of each.

`--check` writes nothing; its status is 1 when the page is out of date.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.system.application_control_bypasses import BYPASSES  # noqa: E402  the tests are no package that is installed

PAGE = ROOT / "docs/reference/ways-round.md"
HEAD = """\
<!-- Made by `python scripts/ways_round.py` from tests/system/application_control_bypasses.py: change that, not this page. -->
# Known ways round application control

Each line is an attack that the tests carry out on a real kernel, in *prevent* mode with the default settings and a policy that
blocks inline code. *Level C* is fanotify alone; *level B* has the kernel guard beside it, which ends a program that no mark of
fanotify saw before its first instruction. At *level A* (BPF LSM) the guard refuses such programs before they begin:
`make test-vm` tests that on Debian's stock kernels 6.1 and 6.12. At level D nothing is held: what would be blocked is an event.

| # | way round | level C | level B | remark |
|---|---|---|---|---|
"""
WORDS = {"allowed": "runs, as it should", "not covered": "**not covered**"}


def page() -> str:
    """Return the page as it should be."""
    lines = []
    for one in BYPASSES:
        at_c, at_b = (WORDS.get(word, word) for word in (one.expected, one.with_guard or one.expected))
        lines.append(f"| {one.identity} | {one.what.replace('|', chr(92) + '|')} | {at_c} | {at_b} | {one.note} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or say whether it is out of date."""
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), "utf-8")
    sys.stdout.write(f"written: {PAGE.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
