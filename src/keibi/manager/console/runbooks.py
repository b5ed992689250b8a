"""What an event of anti-malware, application control or the gate means, how urgent it is, and what to do.

The guide has the same table (`docs/guide`, "At night"). Each kind of event of these modules has an entry, which
`tests/unit/manager/console/test_runbooks.py` holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from keibi.manager.console.language import N_


class Urgency(StrEnum):
    """When somebody should see to it."""

    NOW = "now"
    TODAY = "today"
    NONE = "none"


@dataclass(frozen=True)
class Runbook:
    """What to know and to do about one kind of event; texts are English and marked for translation."""

    urgency: Urgency
    meaning: str
    steps: tuple[str, ...] = ()


_HOW_DID_IT_COME = N_("See who wrote it, and the chain of processes: how did it come here? Close that way.")
_ELSEWHERE = N_("Look for the same content on other computers: Malware, Threats, by file.")
_IF_PLANNED = N_(
    "If it was a planned change, allow it. For the next one, use maintenance mode or name the deployment program as trusted."
)
_IF_UNKNOWN = N_("If nobody knows it, above all from a temporary folder or a web server's user, treat it as a break-in.")
_DEALT_WITH = Runbook(Urgency.TODAY, N_("It was dealt with: it can do no more harm from here."), (_HOW_DID_IT_COME, _ELSEWHERE))
_AN_ACTION_OF_OURS = Runbook(Urgency.NONE, N_("Somebody asked for it here. The audit trail says who."))

# By kind; behind a colon, what was done, where that makes a difference.
RUNBOOKS: Mapping[str, Runbook] = MappingProxyType(
    {
        "malware.found": _DEALT_WITH,
        "malware.found:passed": Runbook(
            Urgency.NOW,
            N_("It is still there: the policy only reports this class, or the action failed. The reason stands with the action."),
            (
                N_("Real? Change the action for its class in the policy, then scan the computer."),
                N_("Harmless? Allow it by its hash, for a time."),
                _HOW_DID_IT_COME,
            ),
        ),
        "malware.found:detected": Runbook(
            Urgency.NOW,
            N_("Malware was found, and nothing was done about it yet."),
            (N_("Scan the computer, and see whether it is still there."), _HOW_DID_IT_COME),
        ),
        "malware.found:stopped": Runbook(
            Urgency.NOW,
            N_("It was running, and was ended. What it did before is not undone."),
            (
                N_("Keep the computer off the network by your own means until you know what it did."),
                _HOW_DID_IT_COME,
                N_("Change the passwords and keys that were within its reach."),
            ),
        ),
        "malware.not_scanned": Runbook(
            Urgency.TODAY,
            N_("Nobody knows whether it is harmless: it is too large, too deep, encrypted, damaged, or changes all the time."),
            (
                N_("See who brought it. A backup or an encrypted archive of your own is no reason to worry."),
                N_("Does it come often? Raise the limit in the policy, or leave its folder out."),
            ),
        ),
        "malware.behaviour": Runbook(
            Urgency.NOW,
            N_("Files are being made unreadable at this moment."),
            (
                N_("End the program now, and keep the computer off the network by your own means."),
                N_("Restore the files listed from your backup."),
                N_("If it is a program of yours, such as a backup that encrypts, name it in the policy as not watched."),
            ),
        ),
        "malware.behaviour:stopped": Runbook(
            Urgency.NOW,
            N_("It was ended. What it had made unreadable is listed, and what came back from copies."),
            (
                N_("Keep the computer off the network by your own means until you know how it came."),
                N_("Restore the rest from your backup."),
                _HOW_DID_IT_COME,
            ),
        ),
        "malware.overdue": Runbook(
            Urgency.TODAY,
            N_("A verdict took too long, and the answer was given that the policy has for that."),
            (
                N_("Once, or on a busy computer: nothing to do. The file is scanned all the same."),
                N_("Often: look at processor and disk, leave busy folders out, or allow more time in the policy."),
            ),
        ),
        "scan.started": Runbook(Urgency.NONE, N_("A scan began, by schedule or because somebody asked for it.")),
        "scan.finished": Runbook(
            Urgency.NONE, N_("It went through. What it found has events of its own; what it could not read is listed here.")
        ),
        "scan.cancelled": Runbook(
            Urgency.TODAY,
            N_("It did not reach its end, so files are left that it did not look at."),
            (N_("Nobody cancelled it? The message names the reason. Start it again."),),
        ),
        "quarantine.restored": _AN_ACTION_OF_OURS,
        "quarantine.deleted": _AN_ACTION_OF_OURS,
        "quarantine.expired": Runbook(
            Urgency.NONE,
            N_("Quarantine has a limit of space and of days. What is oldest goes first, for good."),
            (N_("If you needed it, give quarantine more space or time in the policy."),),
        ),
        "gate.closed": Runbook(
            Urgency.NOW,
            N_("For a time nothing was checked before it was opened or executed, and nothing was held up."),
            (
                N_("Is there an event that it works again, within some seconds? Then scan what was written meanwhile."),
                N_("None, or again and again: on the computer, keibi agent doctor, and the agent's log."),
                N_("Does it harm the service? Set both modules to watch only until the cause is known."),
            ),
        ),
        "gate.restarted": Runbook(Urgency.NONE, N_("Files are checked again. The event before it says why it was away.")),
        "gate.suspended": Runbook(
            Urgency.NOW,
            N_("A module's process gives no verdicts. So that nobody is locked out, unknown files are let pass and reported."),
            (
                N_("The computer's page shows which module, and why. Run a diagnosis."),
                N_("Once it is resumed, look through what was let pass."),
            ),
        ),
        "gate.resumed": Runbook(
            Urgency.TODAY, N_("Verdicts are kept to again."), (N_("Look through what was let pass meanwhile."),)
        ),
        "gate.tampering": Runbook(
            Urgency.NOW,
            N_("Somebody tried to end, change or look into the agent, or asked it to stop. The details name the program."),
            (
                N_("Was it you, an update, or keibi down? Then there is nothing to do."),
                N_("Otherwise treat it as a break-in by root: keep the computer off the network by your own means."),
            ),
        ),
        "gate.overflowed": Runbook(
            Urgency.TODAY,
            N_("So much happened at once that the kernel could not tell of everything. Nothing was held up by it."),
            (
                N_("What was missed is looked at afterwards. To be sure, scan the folders that were written to."),
                N_("Again and again: leave folders out that programs write to all the time."),
            ),
        ),
        "software.blocked": Runbook(Urgency.TODAY, N_("Something wanted to run, and was not let."), (_IF_PLANNED, _IF_UNKNOWN)),
        "software.would_block": Runbook(
            Urgency.TODAY, N_("It ran. In prevent mode it would have been blocked."), (_IF_PLANNED, _IF_UNKNOWN)
        ),
        "software.appeared": Runbook(
            Urgency.TODAY, N_("A program, library or script came that nobody has allowed yet."), (_IF_PLANNED, _IF_UNKNOWN)
        ),
        "software.changed": Runbook(
            Urgency.TODAY,
            N_("Known software has another content now. Until it is allowed, prevent mode blocks it."),
            (N_("Is it a file of the agent, and you upgraded nothing? Treat it as a break-in."), _IF_PLANNED, _IF_UNKNOWN),
        ),
        "software.distrusted": Runbook(
            Urgency.NOW,
            N_("It was trusted, or about to be, and anti-malware found a threat in it. It is not trusted any more."),
            (_HOW_DID_IT_COME, N_("A false alarm? Allow the file by its hash, for a time; then it is trusted again.")),
        ),
        "software.trusted_again": Runbook(
            Urgency.NONE, N_("Somebody allowed the threat that was found in it, or it is not found any more.")
        ),
        "software.overdue": Runbook(
            Urgency.TODAY,
            N_("A verdict took too long, and the answer was given that the policy has for that."),
            (
                N_("Once, or on a busy computer: nothing to do."),
                N_("Often: look at processor and disk, leave busy folders out, or allow more time in the policy."),
            ),
        ),
        "software.inline_code": Runbook(
            Urgency.TODAY,
            N_("An interpreter ran code that is in no file, so that nobody could judge it. The command line is shown."),
            (
                N_("Many honest programs do this. A web server's user, a download or a socket in it speaks for a break-in."),
                N_("To block it for people and services, set Inline code in the policy."),
            ),
        ),
        "inventory.finished": Runbook(Urgency.NONE, N_("What is on the computer now counts as known.")),
        "maintenance.started": Runbook(
            Urgency.NONE,
            N_("What is written until it ends is trusted. The audit trail says who began it."),
            (N_("Nobody planned it? End it on the computer's page, and look through what was written."),),
        ),
        "maintenance.ended": Runbook(Urgency.NONE, N_("What is written from now on is judged again.")),
        "control.unlocked": Runbook(
            Urgency.NOW,
            N_("Somebody at the computer used a code: for that time application control blocks nothing, and reports."),
            (N_("Ask who made the code: it is in the audit trail. Nobody? Treat it as a break-in with the rights of root."),),
        ),
    }
)


def runbook_of(kind: str, action: str) -> Runbook | None:
    """Return what to do about an event of that kind after that action, or None where the event itself says enough."""
    return RUNBOOKS.get(f"{kind}:{action}") or RUNBOOKS.get(kind)
