"""What agents and shipped policies say in English, in the reader's words.

An agent writes its reasons in English, because it does not know who will read them. Those that administrators meet are known
here; a sentence that is not stays as it is, which is better than none. `tests/unit/manager/console/test_agent_words.py` holds
that what is known here is still said.
"""

import functools
import re
from collections.abc import Mapping

from keibi.manager.console.language import N_, Catalogue

SHIPPED_POLICIES = (
    N_("The root of all policies. What is set here holds everywhere, unless a policy below says otherwise."),
    N_("Every Linux server. Computers whose system is none of those below use this one."),
    N_("Debian, Ubuntu and systems like them."),
    N_("Red Hat Enterprise Linux, Rocky Linux, AlmaLinux, CentOS, Oracle Linux, Amazon Linux, Fedora."),
)
AGENT_SENTENCES = (
    N_("no gate is connected: nothing tells of files that are written or opened"),
    N_("no gate is connected: nothing is seen or held"),
    N_("the gate does not hold programs yet"),
    N_("the gate does not hold files yet"),
    N_("no verdict came for so long that files are let pass and reported until one comes"),
    N_("no verdict came for so long that software is let run and reported until one comes"),
    N_("unlocked on the computer %(time)s; it is only reported"),
    N_("for another %(minutes)s minutes"),
    N_("%(path)s: open: %(reason)s"),
    N_("%(count)s rules or pattern sets are left out in all"),
    N_("the baseline uses %(present)s; %(wanted)s needs a rebuild"),
    N_("the gate was closed: %(reason)s"),
    N_("its warden ended by %(signal)s"),
    N_("it did not answer within %(seconds)s s"),
    N_("it said nothing for %(seconds)s s"),
    N_("it was ended by signal %(signal)s"),
    N_("it ended with exit code %(code)s"),
    N_("it closed its channel"),
    N_("the self-test did not end within %(seconds)s s"),
    N_("the self-test failed: %(reason)s"),
    N_("the kernel let a file be opened that was denied"),
    N_("the kernel refused to open a file that was allowed"),
    N_("the guard's loader ended without an answer"),
    N_("the guard's loader did not answer: %(reason)s"),
    N_("the guard cannot be used: %(reason)s"),
    N_("no clamd answers: %(reason)s"),
    N_("the policy's state does not hold files, so none is denied"),
    N_("the policy does not end processes"),
    N_("process %(process)s could not be ended"),
    N_("the worker was interrupted"),
    N_("it is no regular file"),
    N_("it is being taken at this moment"),
    N_("its content is not what was scanned"),
    N_("it was changed while it was copied"),
    N_("%(size)s bytes are more than quarantine may hold (%(limit)s)"),
    N_("the disk of the quarantine has no room for %(size)s bytes"),
)
NOT_ENFORCED = (
    N_("real time"),
    N_("blocking"),
    N_("holding files until the verdict"),
    N_("hash algorithm"),
    N_("rules"),
    N_("engine wall: %(name)s"),
    N_("software on %(place)s"),
    N_("real-time observation"),
)
SYSTEM_ERRORS = (
    N_("Operation not permitted"),
    N_("No such file or directory"),
    N_("Input/output error"),
    N_("Permission denied"),
    N_("Device or resource busy"),
    N_("File exists"),
    N_("No space left on device"),
    N_("Read-only file system"),
    N_("Text file busy"),
    N_("No such process"),
    N_("Connection refused"),
    N_("Stale file handle"),
)
KNOWN = (*SHIPPED_POLICIES, *AGENT_SENTENCES, *NOT_ENFORCED, *SYSTEM_ERRORS)
_PLACE = re.compile(r"%\((\w+)\)s")
_MAX_CHARACTERS = 1000


def said(catalogue: Catalogue, text: str) -> str:
    """Return a sentence of an agent or of a shipped policy in the reader's language; one that is not known, as it is."""
    if not text or not catalogue.messages or len(text) > _MAX_CHARACTERS:
        return text
    exact = catalogue.messages.get(text)
    if exact and "%(" not in text:
        return exact
    for pattern, message in _patterns():
        found = pattern.fullmatch(text)
        if found:
            values: Mapping[str, str] = {name: said(catalogue, value) for name, value in found.groupdict().items()}
            return catalogue.gettext(message) % values
    return text


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return the known sentences that have places for values, as what matches them."""
    return tuple((re.compile(_matching(message), re.DOTALL), message) for message in KNOWN if "%(" in message)


def _matching(message: str) -> str:
    parts = _PLACE.split(message)
    return "".join(f"(?P<{part}>.+?)" if number % 2 else re.escape(part) for number, part in enumerate(parts))
