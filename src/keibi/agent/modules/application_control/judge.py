"""Answers what gates ask: looks at the file and at whoever asks, has the engine judge, tells of what is blocked.

Theory of operation. `consider` is called by the lanes, for one file always by the same one and in the order of the gate's
events: so what a trusted updater wrote is trusted before the question comes whether it may run. A verdict against a program is
written down before the kernel gets it; one in its favour goes out at once.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from keibi.agent.gate.judging import CODE_APPROVED, CODE_FREE, CODE_REFUSED, EXEC, OPEN, WRITTEN, FileKey, Question
from keibi.agent.judge_server import Asked
from keibi.agent.modules.application_control import asking
from keibi.agent.modules.application_control.contents import TooSlowError, Writers, settled_content, writers_of
from keibi.agent.modules.application_control.interpreters import Interpreters
from keibi.agent.modules.application_control.inventory import Inventory, Software
from keibi.agent.modules.application_control.lasting import Lasting
from keibi.agent.modules.application_control.packages import Packages
from keibi.agent.modules.application_control.policies import Policy
from keibi.agent.modules.application_control.reporting import Reporter
from keibi.agent.modules.application_control.telling import Teller
from keibi.agent.modules.application_control.updaters import Updater, Updaters
from keibi.agent.process_book import ProcessBook
from keibi.contract.policy import ModuleState
from keibi.protection.application_control.command_lines import Source, read_command_line
from keibi.protection.application_control.engine import Facts, Standing, Verdict, judge, reports_inline
from keibi.protection.application_control.events import FileKind, PackageRecord, ReasonCode
from keibi.protection.application_control.file_kinds import HEAD_BYTES, final_path, has_suffix, kind_of
from keibi.protection.application_control.floor import Floor
from keibi.protection.application_control.rules import InlineKind

SETTLED_NS = 100_000_000
"""A file that changed less long ago may change again without another time: what it held is not kept under its key."""
DEADLINE_SHARE = 0.8
MAX_FINE = 20_000


@dataclass(frozen=True)
class InForce:
    """What is judged by; replaced whole."""

    policy: Policy
    updaters: Updaters
    is_inventory_there: bool
    interpreters: Interpreters


@dataclass(frozen=True, slots=True)
class Looked:
    """A file as it was read."""

    key: FileKey
    sha256: str
    writers: Writers
    kind: FileKind
    is_root_writable_only: bool
    package: PackageRecord | None
    standing: Standing
    known: Software | None


class Judge:
    """Judges files. Several threads may use it, each for files of its own."""

    def __init__(
        self,
        inventory: Inventory,
        packages: Packages,
        book: ProcessBook,
        reporter: Reporter,
        floor: Floor,
        *,
        maintenance: Lasting,
        unlocked: Lasting,
        own_directory: bytes,
    ) -> None:
        self._in_force: InForce | None = None
        self._fine: dict[FileKey, None] = {}
        self.forget_verdicts: Callable[[], None] = lambda: None
        self.proof_devices: frozenset[int] = frozenset()
        """File systems of private gates: what the computer's own gate meets there is not the computer's."""
        self.trouble = ""
        self.judged_count = 0
        self.denied_count = 0
        self._inventory = inventory
        self._packages = packages
        self._book = book
        self._floor = floor
        self._maintenance = maintenance
        self._unlocked = unlocked
        self._own = own_directory.rstrip(b"/") + b"/"
        self._teller = Teller(book, reporter)

    @property
    def in_force(self) -> InForce | None:
        """What is judged by."""
        return self._in_force

    @in_force.setter
    def in_force(self, in_force: InForce) -> None:
        self._in_force = in_force
        self._fine = {}

    def forget(self) -> None:
        """Look at everything anew from now on, here and in the gates. Any thread may call."""
        self._fine = {}
        self.forget_verdicts()

    def is_fine(self, question: Question) -> bool:
        """Whether a question that holds nobody needs no look: the same file was found fine. Any thread may ask."""
        return not question.is_held and question.event == EXEC and question.key in self._fine

    def consider(self, asked: Asked) -> None:
        """Answer one question, take note of one written file; closes the descriptor."""
        in_force, question = self.in_force, asked.question
        try:
            is_anothers = not question.is_proof and question.key.device in self.proof_devices
            if in_force is None or in_force.policy.state is ModuleState.OFF or is_anothers:
                asked.answer(is_allowed=True, remember=False)
            elif question.event == WRITTEN:
                self._take_written(asked, in_force)
            else:
                self.judged_count += 1
                self._judge(asked, in_force)
            self.trouble = ""
        except TooSlowError:
            # No answer: the gate's deadline passes, the terms answer, and the gate tells of it.
            return
        except (OSError, sqlite3.Error) as error:
            self.trouble = f"{type(error).__name__}: {error}"
            asked.give_up()  # the gate knows what the policy wants without a verdict, and for how long
        finally:
            asked.close()

    # --- execute and open

    def _judge(self, asked: Asked, in_force: InForce) -> None:
        started = time.monotonic()
        question, policy = asked.question, in_force.policy
        if policy.is_excluded(question.path):
            asked.answer(is_allowed=True, remember=False)
            return
        status = os.fstat(asked.descriptor)
        head = os.pread(asked.descriptor, HEAD_BYTES, 0)
        kind = kind_of(question.path, status.st_mode, head, policy.settings.script_suffixes)
        if question.event == OPEN and kind is None:
            # Another content, name or mode would give the file another key.
            asked.answer(is_allowed=True, remember=writers_of(asked.descriptor) is Writers.NONE)
            return
        if question.event == OPEN and kind is not None and self._lets_open(question, kind, in_force):
            asked.answer(is_allowed=True, remember=False)
            return
        until = None
        if question.is_held:
            until = started + policy.settings.deadline_milliseconds * DEADLINE_SHARE / 1000
        looked = self._look(asked, kind or FileKind.PROGRAM, status, until)
        if question.event == OPEN and looked.writers is Writers.SOME and _is_for_writing(question.pid):
            # The writer is whoever asks: it may change the file, and its closing will tell.
            looked = replace(looked, writers=Writers.UNKNOWN)
        facts = self._facts(question, looked, policy)
        verdict = self._verdict(facts, in_force, question)
        code = _as_code(looked, facts, verdict, policy)
        inline = None
        if verdict.is_allowed and question.event == EXEC and policy.looks_at_inline:
            inline = self._inline(question, looked, facts, in_force)
        if inline is not None:
            facts, verdict = inline
        if verdict.would_block or (inline is not None and reports_inline(facts, policy.settings)):
            self._teller.judged(question, looked.key, facts, verdict, started)
            self.denied_count += not verdict.is_allowed
        remember = self._may_be_remembered(question, looked, verdict, in_force)
        asked.answer(is_allowed=verdict.is_allowed, remember=remember, code=code)
        if facts.inline is None:
            self._note(question, looked, verdict)
            self._keep_if_fine(question, looked, verdict, in_force)

    def _verdict(self, facts: Facts, in_force: InForce, question: Question) -> Verdict:
        policy = in_force.policy
        # A proof holds up nobody else, so it need not wait until everything is in the inventory.
        rules = policy.proof if question.is_proof else policy.known if in_force.is_inventory_there else policy.learning
        is_suspended = self._unlocked.is_on and not question.is_proof
        verdict = judge(facts, rules, prevents=(policy.prevents or question.is_proof) and not is_suspended)
        if not verdict.is_allowed and (is_suspended or not question.is_held):
            # Unlocked by hand, or the gate only watches: it has run, whatever the rules say.
            return Verdict(True, True, verdict.reason_code, verdict.reason, verdict.rule)
        return verdict

    def _lets_open(self, question: Question, kind: FileKind, in_force: InForce) -> bool:
        """Whether whoever opens the file may do so whatever it holds, since it does not run it."""
        policy = in_force.policy
        flags = asking.open_flags_of(question.pid)
        if flags is not None and (flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_TRUNC):
            return True  # what is only written cannot be run, and what is cut to nothing holds nothing
        program, identity = asking.executable_of(question.pid)
        if kind is FileKind.SCRIPT:
            return not policy.settings.control_scripts or not in_force.interpreters.is_run_by(question.pid, program)
        if not policy.settings.control_libraries:
            return True
        # Whoever is told to load libraries runs what it opens, whatever its own name is. And a name can be given to any program
        # by a mount in a namespace of its own: it must be the file that lies there for everybody.
        is_reader = policy.readers.match(program) and asking.identity_of(program) == identity
        if is_reader and not asking.is_loader_directed(question.pid):
            return True
        return in_force.updaters.of(question.pid, question.path) is not None

    def _look(self, asked: Asked, kind: FileKind, status: os.stat_result, until: float | None) -> Looked:
        question = asked.question
        key, writers = FileKey.of(status), writers_of(asked.descriptor)
        content = self._inventory.content_of(key) if writers is not Writers.SOME else ""
        if not content:
            key, content, writers = settled_content(asked.descriptor, until=until)
        is_roots = asking.is_root_writable_only(question.pid, question.path, status)
        standing, known = self._inventory.standing(question.path, content, is_proof=question.is_proof)
        package = known.package if known is not None and known.sha256 == content else None
        if package is None and content:
            package = self._packages.verified(question.path, content, asked.descriptor, key.size)
        return Looked(key, content, writers, kind, is_roots, package, standing, known)

    def _facts(self, question: Question, looked: Looked, policy: Policy) -> Facts:
        trusted_by = looked.known.trusted_by if looked.known is not None else ReasonCode.INVENTORY
        standing = looked.standing
        trusts_packages = policy.settings.trust_package_manager and looked.is_root_writable_only
        if standing not in (Standing.TRUSTED, Standing.MALICIOUS) and looked.package is not None and trusts_packages:
            # Installed while nobody watched: the package database knows it, and only root could have put it there.
            standing, trusted_by = Standing.TRUSTED, ReasonCode.TRUSTED_UPDATER
        uid, user = 0, ""
        if policy.known.depends_on_user or policy.looks_at_inline:
            actor = self._book.actor(question.pid)
            uid, user = actor.uid or 0, actor.user
        return Facts(
            path=question.path,
            sha256=looked.sha256,
            size=looked.key.size,
            kind=looked.kind,
            package=looked.package,
            is_root_writable_only=looked.is_root_writable_only,
            user=user,
            uid=uid,
            standing=standing,
            trusted_by=trusted_by,
            threat=self._inventory.threat_of(looked.sha256),
            floor=self._floor.reason(
                question.path,
                looked.sha256,
                is_packaged=looked.package is not None,
                is_root_writable_only=looked.is_root_writable_only,
            ),
            has_writer=looked.writers is Writers.SOME,
        )

    def _may_be_remembered(self, question: Question, looked: Looked, verdict: Verdict, in_force: InForce) -> bool:
        policy = in_force.policy
        if looked.writers is not Writers.NONE or not looked.sha256 or policy.known.depends_on_user:
            return False
        if not verdict.is_allowed:
            # Who opens matters, and a reader may open what others may not.
            return question.event == EXEC and verdict.reason_code is not ReasonCode.INLINE_CODE
        if verdict.would_block or not looked.is_root_writable_only:
            return False
        return not (policy.looks_at_inline and in_force.interpreters.name_of(question.path, looked.sha256))

    def _keep_if_fine(self, question: Question, looked: Looked, verdict: Verdict, in_force: InForce) -> None:
        """Spare further looks at what runs again and again while a gate only watches, and so remembers nothing."""
        policy = in_force.policy
        if question.is_held or verdict.would_block or looked.writers is not Writers.NONE or policy.known.depends_on_user:
            return
        if policy.looks_at_inline and in_force.interpreters.name_of(question.path, looked.sha256):
            return
        if kept_key(looked.key, looked.writers) == looked.key:
            if len(self._fine) >= MAX_FINE:
                self._fine = {}
            self._fine[looked.key] = None

    # --- inline code

    def _inline(self, question: Question, looked: Looked, facts: Facts, in_force: InForce) -> tuple[Facts, Verdict] | None:
        """Return facts and verdict on an interpreter's inline code; None when it has none, or is no interpreter."""
        policy = in_force.policy
        program = in_force.interpreters.name_of(question.path, looked.sha256)
        if not program:
            return None
        kind = self._inline_kind(question, looked, policy, program)
        if kind is None:
            return None
        told = Facts(
            path=program,
            sha256=facts.sha256,
            size=facts.size,
            kind=FileKind.INTERPRETER,
            package=facts.package,
            user=facts.user,
            uid=facts.uid,
            inline=kind,
        )
        return told, self._verdict(told, in_force, question)

    def _inline_kind(self, question: Question, looked: Looked, policy: Policy, program: bytes) -> InlineKind | None:
        if question.is_held:
            call = asking.exec_call_of(question.pid)
            if call is None or self._is_for_script(question.pid, call.path, looked.key):
                return None
            arguments = call.arguments
        else:
            # It has begun to run; what is gone already cannot be asked.
            arguments = asking.command_line_of(question.pid)
        if not arguments:
            return None
        told = read_command_line(arguments, program)
        match told.source:
            case Source.COMMAND:
                return InlineKind.COMMAND
            case Source.STDIN:
                return None if asking.descriptor_kind(question.pid, 0) in ("terminal", "null", "") else InlineKind.STDIN
            case Source.SCRIPT:
                return InlineKind.ODD_NAME if self._is_odd(question.pid, told.script, policy) else None
            case _:
                return None

    def _is_for_script(self, pid: int, path: bytes, interpreter: FileKey) -> bool:
        """Whether the kernel opens the interpreter because of a script's first line: then execve named another file."""
        descriptor = asking.open_of(pid, path)
        if descriptor is None:
            return False
        try:
            found = os.fstat(descriptor)
            return (found.st_dev, found.st_ino) != (interpreter.device, interpreter.inode)
        finally:
            os.close(descriptor)

    def _is_odd(self, pid: int, script: bytes, policy: Policy) -> bool:
        """Whether a script argument names a file whose opening no gate would ask about."""
        descriptor = asking.open_of(pid, script)
        if descriptor is None:
            return False
        try:
            status = os.fstat(descriptor)
            head = os.pread(descriptor, HEAD_BYTES, 0)
            return kind_of(script, status.st_mode, head, policy.settings.script_suffixes) is None and not has_suffix(
                script, policy.settings.script_suffixes
            )
        finally:
            os.close(descriptor)

    # --- written

    def _take_written(self, asked: Asked, in_force: InForce) -> None:
        question, policy = asked.question, in_force.policy
        path = final_path(question.path)
        if policy.is_excluded(path) or path.startswith(self._own):
            return
        status = os.fstat(asked.descriptor)
        kind = kind_of(path, status.st_mode, os.pread(asked.descriptor, HEAD_BYTES, 0), policy.settings.script_suffixes)
        before = self._inventory.at(path, is_proof=question.is_proof)
        if kind is None:
            if before is not None and before.is_proof == question.is_proof:
                self._inventory.remove(path, is_proof=question.is_proof)
            return
        key, content, writers = settled_content(asked.descriptor)
        if not content or (before is not None and before.sha256 == content and before.is_trusted):
            return
        updater = in_force.updaters.of(question.pid, path)
        threat = self._inventory.threat_of(content)
        known = self._inventory.trusted(content, is_proof=question.is_proof)
        trusted_by = _trusted_by(updater, self._maintenance.is_on, known)
        actor = self._book.actor(question.pid)
        former = "" if before is None or not before.is_trusted else before.sha256
        if before is not None and not before.is_trusted:
            former = before.previous_sha256
        software = Software(
            path=path,
            key=kept_key(key, writers),
            sha256=content,
            kind=kind,
            is_trusted=trusted_by is not None and not threat,
            trusted_by=trusted_by or ReasonCode.UNRECOGNISED,
            package=known.package if known is not None else None,
            first_seen_at=time.time(),
            user=actor.user,
            process=updater.process if updater is not None and not actor.process else actor.process,
            previous_sha256="" if trusted_by is not None else former,
            is_proof=question.is_proof,
            threat=threat,
        )
        is_new_trust = software.is_trusted and known is None and self._inventory.has_unrecognised(content)
        with self._inventory.transaction():
            self._inventory.put([software])
            is_told = policy.settings.report_drift and known is None
            is_told = is_told and (not software.is_trusted or policy.settings.report_package_changes)
            is_agents = policy.settings.protect_agent and self._floor.is_agents(path)
            if is_told or is_agents:
                self._teller.drift(software, former, actor, question.pid, source="real-time", is_agents=is_agents)
        if is_new_trust:
            self.forget_verdicts()

    def _note(self, question: Question, looked: Looked, verdict: Verdict) -> None:
        """Take software into the inventory that nobody was seen writing: from a mount, or moved here."""
        if not looked.sha256:
            return
        known = looked.known
        if known is not None and known.path == question.path and known.sha256 == looked.sha256:
            return
        before = self._inventory.at(question.path, is_proof=question.is_proof)
        if before is not None and before.sha256 == looked.sha256:
            return
        former = before.sha256 if before is not None and before.is_trusted else ""
        is_trusted = looked.standing is Standing.TRUSTED or verdict.reason_code is ReasonCode.TRUSTED_UPDATER
        in_force = self.in_force
        is_awaited = in_force is not None and not in_force.is_inventory_there and not question.is_proof
        if is_awaited and not is_trusted:
            return  # it lay there when the first inventory was begun, which has only not come to it yet
        software = Software(
            path=question.path,
            key=kept_key(looked.key, looked.writers),
            sha256=looked.sha256,
            kind=looked.kind,
            is_trusted=is_trusted,
            trusted_by=_noted_by(verdict, is_trusted=is_trusted),
            package=looked.package,
            first_seen_at=time.time(),
            previous_sha256="" if is_trusted else former,
            is_proof=question.is_proof,
            threat=self._inventory.threat_of(looked.sha256),
        )
        with self._inventory.transaction():
            self._inventory.put([software])
            if not is_trusted and in_force is not None and in_force.policy.settings.report_drift:
                self._teller.drift(software, former, None, question.pid, source="real-time")


_TRUSTING = (ReasonCode.INVENTORY, ReasonCode.TRUSTED_UPDATER, ReasonCode.MAINTENANCE)


def _noted_by(verdict: Verdict, *, is_trusted: bool) -> ReasonCode:
    if not is_trusted:
        return ReasonCode.UNRECOGNISED
    return verdict.reason_code if verdict.reason_code in _TRUSTING else ReasonCode.INVENTORY


def _as_code(looked: Looked, facts: Facts, verdict: Verdict, policy: Policy) -> str:
    """Return what the verdict on a file means for it as code, whoever asks; "" for nothing."""
    is_known = looked.writers is Writers.NONE and bool(looked.sha256) and not policy.known.depends_on_user
    if not verdict.is_allowed:
        return CODE_REFUSED if is_known else ""
    # What everybody needs to sign in or to repair may have a writer: nothing of that may stop.
    return CODE_APPROVED if is_known and not facts.floor and not verdict.would_block else CODE_FREE


def _is_for_writing(pid: int) -> bool:
    flags = asking.open_flags_of(pid)
    return flags is not None and flags & os.O_ACCMODE == os.O_RDWR


def _trusted_by(updater: Updater | None, is_maintained: bool, known: Software | None) -> ReasonCode | None:
    if known is not None:
        return known.trusted_by
    if updater is not None:
        return ReasonCode.TRUSTED_UPDATER
    return ReasonCode.MAINTENANCE if is_maintained else None


def kept_key(key: FileKey, writers: Writers) -> FileKey:
    """Return the key under which content is found again without reading: none when it could change without another key."""
    if writers is Writers.NONE and time.time_ns() - key.changed_ns > SETTLED_NS:
        return key
    return FileKey(key.device, key.inode, key.size, 0, 0)
