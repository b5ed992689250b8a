"""The words and records of events about a single file."""

import time
from typing import Any

from keibi.agent.gate.judging import EXEC, FileKey, Question, Told
from keibi.agent.modules.application_control.asking import command_line_of, exec_call_of
from keibi.agent.modules.application_control.inventory import Software
from keibi.agent.modules.application_control.reporting import Reporter
from keibi.agent.process_book import ProcessBook
from keibi.contract.events import Actor, EventAction
from keibi.contract.names import Severity
from keibi.protection.application_control.engine import Facts, Verdict
from keibi.protection.application_control.events import ApplicationRecord, BroughtBy, FileKind, Kind, ReasonCode
from keibi.protection.base import escape_name

MAX_COMMAND_LINE = 500


class Teller:
    """Makes events out of verdicts and drift."""

    def __init__(self, book: ProcessBook, reporter: Reporter) -> None:
        self._book = book
        self._reporter = reporter

    def judged(self, question: Question, key: FileKey, facts: Facts, verdict: Verdict, started: float) -> None:
        """Tell of what was blocked, would be blocked, or is only reported."""
        subject = escape_name(facts.path)
        actor, chain = self._book.actor(question.pid), self._book.chain(question.pid)
        if not verdict.would_block:
            kind, action, words = Kind.INLINE_CODE, EventAction.DETECTED, "Inline code"
        elif verdict.is_allowed:
            kind, action, words = Kind.WOULD_BLOCK, EventAction.DETECTED, "Would be blocked"
        else:
            kind, action, words = Kind.BLOCKED, EventAction.BLOCKED, "Blocked"
        who = f", asked for by {actor.process}" if actor.process else ""
        who += f" of {actor.user}" if actor.user else ""
        record = ApplicationRecord(
            reason_code=verdict.reason_code,
            sha256=facts.sha256,
            size=facts.size,
            file_type=facts.kind,
            package=facts.package,
            rule_id=verdict.rule_id,
            threat=facts.threat if verdict.reason_code is ReasonCode.MALWARE else "",
            process_chain=chain,
            inline=str(facts.inline) if facts.inline is not None else "",
            command_line=self._command_line(question) if facts.inline is not None else "",
            milliseconds_to_verdict=round((time.monotonic() - started) * 1000, 3),
            is_proof=question.is_proof,
        )
        self._reporter.tell(
            kind,
            verdict.severity,
            f"{words}: {subject} {verdict.reason}{who}.",
            record,
            subject=subject,
            action=action,
            actor=actor,
            rule_version=verdict.rule.version if verdict.rule is not None else 0,
            reason=verdict.reason,
            same=(kind, key, question.event, facts.inline),
        )

    def drift(
        self, software: Software, former: str, actor: Actor | None, pid: int, *, source: str, is_agents: bool = False
    ) -> None:
        """Tell of software that appeared or changed, and of who brought it (`actor`; None when nobody was seen)."""
        subject = escape_name(software.path)
        kind = Kind.CHANGED if former else Kind.APPEARED
        what = f"The {software.kind} {subject}{' of the agent itself' if is_agents else ''} {'changed' if former else 'appeared'}"
        brought = BroughtBy(software.user, software.process, software.package.name if software.package else "") if actor else None
        by = f", brought by {actor.process}" if actor is not None and actor.process else ""
        by += f" of {actor.user}" if actor is not None and actor.user else ""
        chain: list[dict[str, Any]] = self._book.chain(pid) if actor is not None else []
        record = ApplicationRecord(
            reason_code=_drift_reason(software, former),
            sha256=software.sha256,
            size=software.key.size,
            file_type=software.kind,
            previous_sha256=former,
            package=software.package,
            brought_by=brought,
            state="trusted" if software.is_trusted else "unrecognised",
            source=source,
            threat=software.threat,
            process_chain=chain,
            is_proof=software.is_proof,
        )
        self._reporter.tell(
            kind,
            Severity.HIGH if is_agents or software.threat else Severity.LOW if software.is_trusted else Severity.MEDIUM,
            f"{what}{by}{f' and holds {software.threat}' if software.threat else ''}.",
            record,
            subject=subject,
            actor=actor or Actor(),
            same=("drift", software.path, software.sha256, software.is_proof),
        )

    def distrusted(self, software: Software, *, source: str) -> None:
        """Tell of software that is not trusted, since anti-malware found a threat in it."""
        words = f"is not trusted: anti-malware found {software.threat} in it"
        self._tell_trust(software, Kind.DISTRUSTED, Severity.HIGH, words, ReasonCode.MALWARE, source)

    def trusted_again(self, software: Software, *, source: str) -> None:
        """Tell of software whose threat somebody has allowed, or in which it is not found any more."""
        words = "is trusted again: what anti-malware found in it was allowed, or is not found any more"
        self._tell_trust(software, Kind.TRUSTED_AGAIN, Severity.LOW, words, software.trusted_by, source)

    def _tell_trust(
        self, software: Software, kind: Kind, severity: Severity, words: str, reason_code: ReasonCode, source: str
    ) -> None:
        subject = escape_name(software.path)
        record = ApplicationRecord(
            reason_code=reason_code,
            sha256=software.sha256,
            size=software.key.size,
            file_type=software.kind,
            package=software.package,
            brought_by=BroughtBy(software.user, software.process) if software.user or software.process else None,
            state="trusted" if software.is_trusted else "unrecognised",
            source=source,
            threat=software.threat,
        )
        self._reporter.tell(kind, severity, f"The {software.kind} {subject} {words}.", record, subject=subject)

    def told(self, told: Told) -> None:
        """Take what a gate tells without a question: denied from memory, or answered because no verdict came in time."""
        if told.what == "repeated" and told.key is not None:
            self._reporter.count_again((Kind.BLOCKED, told.key, EXEC, None), told.count)
        elif told.what == "guarded":
            self._guarded(told)
        elif told.what == "overdue":
            subject = escape_name(told.path)
            # Of the last ones the gate kept no names, while nobody listened.
            what = f"{subject} came in time; it was" if subject else f"{told.count:,} more files came in time; they were"
            done = "let run" if told.was_allowed else "blocked"
            self._reporter.tell(
                Kind.OVERDUE,
                Severity.MEDIUM if told.was_allowed else Severity.HIGH,
                f"No verdict on {what} {done}.",
                ApplicationRecord(reason_code=ReasonCode.UNRECOGNISED, process_chain=self._book.chain(told.pid)),
                subject=subject,
                action=EventAction.DETECTED if told.was_allowed else EventAction.BLOCKED,
                actor=self._book.actor(told.pid),
                same=(Kind.OVERDUE, told.path, told.was_allowed),
            )

    def _guarded(self, told: Told) -> None:
        """Tell of a program that the kernel guard met where no gate looks: in memory, or on a file system of a namespace."""
        subject = escape_name(told.path)
        actor = self._book.actor(told.pid)
        words = "was let run" if told.was_allowed else "was stopped"
        reason = "it lies in memory or on a file system that was not there a moment ago, where no file can be looked at"
        self._reporter.tell(
            Kind.WOULD_BLOCK if told.was_allowed else Kind.BLOCKED,
            Severity.HIGH,
            f"The program {subject} {words}: {reason}.",
            ApplicationRecord(
                reason_code=ReasonCode.OUT_OF_SIGHT, file_type=FileKind.PROGRAM, process_chain=self._book.chain(told.pid)
            ),
            subject=subject,
            action=EventAction.DETECTED if told.was_allowed else EventAction.BLOCKED,
            actor=actor,
            reason=reason,
            same=("guarded", told.path, told.was_allowed),
        )

    def _command_line(self, question: Question) -> str:
        call = exec_call_of(question.pid) if question.is_held else None
        arguments = call.arguments if call is not None else command_line_of(question.pid)
        return escape_name(b" ".join(arguments)[:MAX_COMMAND_LINE])


def _drift_reason(software: Software, former: str) -> ReasonCode:
    if software.threat:
        return ReasonCode.MALWARE
    if software.is_trusted:
        return software.trusted_by
    return ReasonCode.CHANGED if former else ReasonCode.UNRECOGNISED
