"""How far application control can be enforced on a computer: levels A to D, each with its known holes."""

from collections.abc import Mapping
from types import MappingProxyType

from keibi.contract.status import AgentStatus
from keibi.manager.console.language import N_

# What the agent tried at its start, from the best level down; the first that is available says the level.
_CAPABILITIES: tuple[tuple[str, str], ...] = (
    ("kernel_guard_level_a", "A"),
    ("kernel_guard_level_b", "B"),
    ("fanotify_permission_events", "C"),
)
LEVELS: Mapping[str, str] = MappingProxyType(
    {
        "A": N_("The kernel itself enforces (BPF LSM), and fanotify reads what is unknown."),
        "B": N_("fanotify holds programs back, and the kernel ends what got past it."),
        "C": N_("fanotify holds programs back, and nothing else does."),
        "D": N_("Nothing can be held back here: it is only reported."),
    }
)
_INLINE = N_("Code that an interpreter takes from its command line is judged by the policy for interpreters only.")
_NO_FILE = N_("Code that a running program makes in its own memory is in no file, and is not seen.")
HOLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "A": (N_("Libraries that exist in memory only (memfd) are not seen."), _NO_FILE, _INLINE),
        "B": (
            N_("Libraries in memory only (memfd), or on a file system that was made a moment ago, are not seen; programs are."),
            _NO_FILE,
            _INLINE,
        ),
        "C": (
            N_("Programs and libraries in memory only (memfd), or on a file system that was made a moment ago, are not seen."),
            _NO_FILE,
            _INLINE,
        ),
        "D": (N_("Everything runs; what a policy would block is an event."),),
    }
)


def level_of(status: AgentStatus | None) -> str:
    """Return "A" to "D" as the agent says, or "" while it has said nothing."""
    if status is None:
        return ""
    available = {capability.name for capability in status.capabilities if capability.is_available}
    known = {capability.name for capability in status.capabilities}
    for name, level in _CAPABILITIES:
        if name in available:
            return level
    is_told = any(name in known for name, _ in _CAPABILITIES)
    return "D" if is_told else ""
