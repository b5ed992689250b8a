"""Why a computer is not protected, in the reader's words, and what to do about it."""

from collections.abc import Mapping
from types import MappingProxyType

from keibi.manager.computers.model import Problem
from keibi.manager.console.agent_words import said
from keibi.manager.console.labels import module_title
from keibi.manager.console.language import N_, Catalogue

WORDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "agent_never": (N_("It has enrolled, but never reported."), N_("Start the agent there, and look into its log.")),
        "agent_offline": (N_("Its agent does not report any more."), N_("Is the computer on, and can it reach the manager?")),
        "safe_mode": (
            N_("Its agent runs in safe mode after repeated crashes."),
            N_("Run a diagnosis, then start the agent again."),
        ),
        "policy_refused": (
            N_("It refused the newest policy; the former one stays in force."),
            N_("Mend the setting that it names in the policy."),
        ),
        "policy_pending": (
            N_("It has not taken over the newest policy yet."),
            N_("Wait for its next report, or run a diagnosis."),
        ),
        "module_off": (N_("%(module)s is switched off by its policy."), N_("Switch the module on in the policy.")),
        "module_missing": (N_("Its agent does not have %(module)s."), N_("Update the agent.")),
        "module_error": (N_("%(module)s has failed."), N_("Run a diagnosis.")),
        "module_warning": (N_("%(module)s works, but not fully."), N_("Look at the reason on the computer's page.")),
        "module_not_supported": (N_("%(module)s cannot run on this computer."), N_("Look at the reason on the computer's page.")),
        "not_enforced": (
            N_("Something in its policy is not enforced here."),
            N_("Look at what is not enforced, and why, on the computer's page."),
        ),
        "events_dropped": (
            N_("Events were lost, because its spool was full."),
            N_("Find out why it could not send for so long."),
        ),
        "identity_alarm": (
            N_("Its identity was seen twice: a copied disk, or a stolen key."),
            N_("Find the other computer, then enrol both anew."),
        ),
    }
)
GRAVE = frozenset(
    {"agent_never", "agent_offline", "safe_mode", "module_error", "module_missing", "events_dropped", "identity_alarm"}
)

_WITH_REASON = frozenset({"safe_mode", "policy_refused", "module_error", "module_warning", "module_not_supported"})


def told(catalogue: Catalogue, problem: Problem) -> str:
    """Return a problem as a sentence. One without words of ours is told in the manager's English."""
    if problem.code not in WORDS:
        return problem.message
    return catalogue.gettext(WORDS[problem.code][0]) % {"module": module_title(catalogue, problem.module)}


def advice(catalogue: Catalogue, problem: Problem) -> str:
    """Return the next step for a problem."""
    return catalogue.gettext(WORDS[problem.code][1]) if problem.code in WORDS else ""


def detail(catalogue: Catalogue, problem: Problem) -> str:
    """Return what the agent adds to the sentence of `told`: the thing that is meant and the reason; "" when nothing."""
    if problem.code == "not_enforced":
        what, _, reason = problem.message.partition(": ")
        return f"{said(catalogue, what)}: {said(catalogue, reason)}"
    if problem.code in _WITH_REASON:
        reason = problem.message.partition(": ")[2]
        return "" if reason == "no reason given" else said(catalogue, reason)
    return problem.message if problem.code not in WORDS else ""
