"""Sending commands to agents and keeping what came of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import and_, case, false, func, not_, or_, select, update
from sqlalchemy.orm import Session

from keibi.contract.commands import Command, CommandKind, CommandResult, CommandState
from keibi.contract.names import ModuleId, new_id
from keibi.errors import InputError, KeibiError, TryLaterError
from keibi.manager.access.model import Principal
from keibi.manager.agents.model import FINISHED, WAITING, SentCommand
from keibi.manager.agents.reports import storable, storable_json
from keibi.manager.agents.signals import SignalKind, Signals
from keibi.manager.agents.tables import CommandRecord
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.reach import find_computer
from keibi.manager.computers.tables import ComputerRecord
from keibi.manager.database import Database, Scope
from keibi.manager.paging import DEFAULT_LIMIT, Page, SortKey, page_of

DEFAULT_SECONDS = 3600.0
MAX_SECONDS = 30 * 86400.0
MAX_WAITING = 100
MAX_ARGUMENT_BYTES = 256 * 1024
MAX_RESULT_BYTES = 4 * 1024 * 1024
MAX_MESSAGE_CHARACTERS = 4000
_AT_ONCE = 1000
"""Computers in one statement."""

PERMISSIONS: Mapping[CommandKind, str] = {
    CommandKind.SCAN: "commands.run",
    CommandKind.REBUILD_BASELINE: "commands.run",
    CommandKind.LIST_BASELINE: "commands.run",
    CommandKind.COMPARE_BASELINE: "commands.run",
    CommandKind.DIAGNOSE: "commands.run",
    CommandKind.PREVIEW_RESTORE: "restore.run",
    CommandKind.RESTORE: "restore.run",
    CommandKind.DECIDE_DRIFT: "drift.decide",
    CommandKind.PAUSE_SCAN: "commands.run",
    CommandKind.RESUME_SCAN: "commands.run",
    CommandKind.CANCEL_SCAN: "commands.run",
    CommandKind.LIST_QUARANTINE: "commands.run",
    CommandKind.RESTORE_QUARANTINED: "quarantine.manage",
    CommandKind.DELETE_QUARANTINED: "quarantine.manage",
    CommandKind.FETCH_QUARANTINED: "quarantine.download",
    CommandKind.BUILD_INVENTORY: "software.decide",  # what is there now becomes trusted
    CommandKind.LIST_SOFTWARE: "commands.run",
    CommandKind.SET_MAINTENANCE: "software.decide",
}
"""What somebody needs to send each kind of command."""

PERMISSIONS_FOR_ARGUMENTS: Mapping[str, str] = {"allow_until": "policies.edit"}
"""What somebody needs beside that, where a command has such an argument: to allow a file is the policy's."""

SECRET_ARGUMENTS = frozenset({"password"})
"""Arguments that only the agent gets: neither lists nor the audit trail show them, and they are forgotten at the end."""


class CommandService:
    """Commands to computers that the principal may reach. An agent gets its commands with a heartbeat, and runs each once."""

    def __init__(self, database: Database, audit: AuditService, signals: Signals, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._audit = audit
        self._signals = signals
        self._clock = clock

    def send(
        self,
        principal: Principal,
        computer_id: str,
        kind: CommandKind,
        module: ModuleId | None = None,
        arguments: Mapping[str, Any] | None = None,
        *,
        expires_in_seconds: float = DEFAULT_SECONDS,
    ) -> SentCommand:
        """Give a computer something to do, and wake its agent.

        Raises:
            AccessError: the principal may not run that kind of command there.
            InputError: no such computer, it is disabled, or a bad expiry. TryLaterError: too many commands wait for it.
        """
        return self.send_all(principal, [computer_id], kind, module, arguments, expires_in_seconds=expires_in_seconds)[0]

    def send_all(
        self,
        principal: Principal,
        computer_ids: Sequence[str],
        kind: CommandKind,
        module: ModuleId | None = None,
        arguments: Mapping[str, Any] | None = None,
        *,
        expires_in_seconds: float = DEFAULT_SECONDS,
    ) -> Sequence[SentCommand]:
        """Give several computers the same to do, all of them or none, and wake their agents.

        Raises:
            As `send`, for the first computer that it holds for.
        """
        asked = [(computer_id, arguments or {}) for computer_id in computer_ids]
        with self._database.session(principal.scope()) as session:
            sent = self._store_each(session, principal, asked, kind, module, expires_in_seconds, is_strict=True)
        self._signals.publish(SignalKind.DUE, list(computer_ids))
        return [one for one in sent if isinstance(one, SentCommand)]

    def send_each(
        self,
        principal: Principal,
        asked: Sequence[tuple[str, Mapping[str, Any]]],
        kind: CommandKind,
        module: ModuleId | None = None,
        *,
        expires_in_seconds: float = DEFAULT_SECONDS,
    ) -> Sequence[SentCommand | KeibiError]:
        """Give several computers something to do, each with its own arguments, and return what came of asking each.

        What is wrong with one keeps no other from it: its error stands in its place.

        Raises:
            InputError: a bad expiry, or arguments that are too large.
        """
        with self._database.session(principal.scope()) as session:
            answers = self._store_each(session, principal, asked, kind, module, expires_in_seconds, is_strict=False)
        self._signals.publish(SignalKind.DUE, [one.computer_id for one in answers if isinstance(one, SentCommand)])
        return answers

    def _store_each(
        self,
        session: Session,
        principal: Principal,
        asked: Sequence[tuple[str, Mapping[str, Any]]],
        kind: CommandKind,
        module: ModuleId | None,
        expires_in_seconds: float,
        *,
        is_strict: bool,
    ) -> Sequence[SentCommand | KeibiError]:
        if not 1 <= expires_in_seconds <= MAX_SECONDS:
            raise InputError("expiry_invalid", f"a command lasts from 1 to {MAX_SECONDS:.0f} seconds, not {expires_in_seconds}")
        now = self._clock()
        computer_ids = [computer_id for computer_id, _ in asked]
        computers = _computers(session, computer_ids)
        waiting = _waiting(session, computer_ids, now)
        answers: dict[int, SentCommand | KeibiError] = {}
        # Tenant by tenant: the audit trail of each is locked, and two who send at once must not wait for each other.
        for number in sorted(range(len(asked)), key=lambda one: getattr(computers.get(asked[one][0]), "tenant_id", "")):
            computer_id, arguments = asked[number]
            encoded = storable_json(dict(arguments))
            if len(encoded) > MAX_ARGUMENT_BYTES:
                raise InputError(
                    "arguments_too_large", f"the arguments have {len(encoded)} bytes, more than {MAX_ARGUMENT_BYTES}"
                )
            try:
                computer = self._reachable(session, principal, computer_id, kind, arguments, waiting.get(computer_id, 0))
            except KeibiError as error:
                if is_strict:
                    raise
                answers[number] = error
                continue
            answers[number] = self._store(session, principal, computer, kind, module, encoded, now, now + expires_in_seconds)
            waiting[computer_id] = waiting.get(computer_id, 0) + 1
        return [answers[number] for number in range(len(asked))]

    def _reachable(
        self,
        session: Session,
        principal: Principal,
        computer_id: str,
        kind: CommandKind,
        arguments: Mapping[str, Any],
        waiting_count: int,
    ) -> ComputerRecord:
        computer = find_computer(session, principal, computer_id, PERMISSIONS[kind])
        for name in PERMISSIONS_FOR_ARGUMENTS.keys() & arguments.keys():
            principal.require(PERMISSIONS_FOR_ARGUMENTS[name], tenant_id=computer.tenant_id, group_id=computer.group_id)
        if not computer.is_enabled:
            raise InputError("computer_disabled", f"{computer.display_name} is disabled", hint="enable it first")
        if waiting_count >= MAX_WAITING:
            raise TryLaterError(
                "commands_full", f"{waiting_count} commands wait for {computer.display_name}", hint="is its agent running?"
            )
        return computer

    def _store(
        self,
        session: Session,
        principal: Principal,
        computer: ComputerRecord,
        kind: CommandKind,
        module: ModuleId | None,
        encoded: str,
        now: float,
        expires_at: float,
    ) -> SentCommand:
        record = CommandRecord(
            id=new_id(),
            tenant_id=computer.tenant_id,
            computer_id=computer.id,
            computer_name=computer.display_name,
            group_id=computer.group_id,
            kind=kind.value,
            module=module.value if module else "",
            arguments=encoded,
            state=CommandState.PENDING.value,
            created_at=now,
            created_by=principal.actor,
            expires_at=expires_at,
            updated_at=now,
            message="",
            result="{}",
        )
        session.add(record)
        self._audit.record(
            session,
            principal,
            f"command.{kind.value}",
            "computer",
            computer.id,
            f"Sent {kind.value} to {computer.display_name}.",
            {"command_id": record.id, "arguments": _shown(encoded)},
            tenant_id=computer.tenant_id,
        )
        return _sent(record, now)

    def list(
        self,
        principal: Principal,
        *,
        computer_id: str | None = None,
        kinds: Sequence[CommandKind] = (),
        module: ModuleId | None = None,
        is_open: bool | None = None,
        cursor: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[SentCommand]:
        """Return commands, the newest first; `is_open` only those that have not ended (or only those that have).

        Raises:
            AccessError: the principal may see no computers. InputError: no such computer; a bad cursor or limit.
        """
        principal.require("computers.view")
        now = self._clock()
        with self._database.session(principal.scope(), writes=False) as session:
            statement = select(CommandRecord).where(_visible(principal))
            if computer_id is not None:
                find_computer(session, principal, computer_id)
                statement = statement.where(CommandRecord.computer_id == computer_id)
            if kinds:
                statement = statement.where(CommandRecord.kind.in_([kind.value for kind in kinds]))
            if module is not None:
                statement = statement.where(CommandRecord.module == module.value)
            if is_open is not None:
                waits = and_(CommandRecord.state.in_(WAITING), CommandRecord.expires_at > now)
                statement = statement.where(waits if is_open else not_(waits))
            order = [SortKey(CommandRecord.created_at, is_descending=True), SortKey(CommandRecord.id, is_descending=True)]
            return page_of(session, statement, order, cursor, limit).map(lambda record: _sent(record, now))

    def get(self, principal: Principal, command_id: str) -> SentCommand:
        """Return one command with its result so far.

        Raises:
            InputError: there is none that the principal may see.
        """
        with self._database.session(principal.scope(), writes=False) as session:
            record = session.scalar(select(CommandRecord).where(CommandRecord.id == command_id, _visible(principal)))
            if record is None:
                raise InputError("command_not_found", f"there is no command {command_id!r}")
            return _sent(record, self._clock())

    def deliver(self, session: Session, computer_id: str) -> Sequence[Command]:
        """Return what waits for a computer, for the answer to its heartbeat.

        Also what was sent before and has no result yet: an answer may have been lost, and the agent runs each id once.
        """
        now = self._clock()
        records = session.scalars(
            select(CommandRecord)
            .where(
                CommandRecord.computer_id == computer_id,
                CommandRecord.state.in_((CommandState.PENDING.value, CommandState.SENT.value)),
                CommandRecord.expires_at > now,
            )
            .order_by(CommandRecord.created_at)
            .limit(MAX_WAITING)
        ).all()
        for record in records:
            if record.state == CommandState.PENDING.value:
                record.state, record.sent_at, record.updated_at = CommandState.SENT.value, now, now
        return [
            Command(
                command_id=record.id,
                kind=CommandKind(record.kind),
                module=ModuleId(record.module) if record.module else None,
                arguments=msgspec.json.decode(record.arguments, type=dict[str, Any]),
                expires_at=record.expires_at,
            )
            for record in records
        ]

    def take_results(self, session: Session, computer_id: str, results: Sequence[CommandResult]) -> None:
        """Keep what an agent says of its commands. Results of other computers' commands, and after the last one, are ignored."""
        now = self._clock()
        for result in results:
            record = session.get(CommandRecord, result.command_id)
            if record is None or record.computer_id != computer_id or CommandState(record.state) in FINISHED:
                continue
            if result.state in (CommandState.PENDING, CommandState.SENT):
                continue
            record.state = result.state.value
            record.message = storable(result.message, MAX_MESSAGE_CHARACTERS)
            record.progress = result.progress
            record.updated_at = now
            encoded = storable_json(result.result)
            if len(encoded) > MAX_RESULT_BYTES:
                encoded = msgspec.json.encode({"is_too_large": True, "bytes": len(encoded)}).decode()
            record.result = encoded
            if result.state in FINISHED:
                record.finished_at = now
                record.arguments = storable_json(_shown(record.arguments))
        session.flush()

    def expire(self) -> None:
        """Mark commands whose time is over, and forget their secrets; for a background task."""
        now = self._clock()
        with self._database.session(Scope.system("commands")) as session:
            late = CommandRecord.state.in_(WAITING) & (CommandRecord.expires_at <= now)
            for record in session.scalars(
                select(CommandRecord).where(late, CommandRecord.kind == CommandKind.FETCH_QUARANTINED.value)
            ):
                record.arguments = storable_json(_shown(record.arguments))
            session.flush()
            session.execute(
                update(CommandRecord)
                .where(CommandRecord.state.in_(WAITING), CommandRecord.expires_at <= now)
                .values(
                    state=CommandState.EXPIRED.value,
                    finished_at=now,
                    updated_at=now,
                    message=case(
                        (CommandRecord.state == CommandState.PENDING.value, "The agent did not fetch it in time."),
                        else_="The agent did not finish it in time.",
                    ),
                )
                .execution_options(synchronize_session=False)
            )


def _computers(session: Session, computer_ids: Sequence[str]) -> dict[str, ComputerRecord]:
    """Return computers by their ids, those that there are; the session then has them, and asks for none of them again."""
    found: dict[str, ComputerRecord] = {}
    for start in range(0, len(computer_ids), _AT_ONCE):
        part = computer_ids[start : start + _AT_ONCE]
        found.update({one.id: one for one in session.scalars(select(ComputerRecord).where(ComputerRecord.id.in_(part)))})
    return found


def _waiting(session: Session, computer_ids: Sequence[str], now: float) -> dict[str, int]:
    """Return how many commands wait for each computer, where any do."""
    counts: dict[str, int] = {}
    for start in range(0, len(computer_ids), _AT_ONCE):
        statement = select(CommandRecord.computer_id, func.count()).where(
            CommandRecord.computer_id.in_(computer_ids[start : start + _AT_ONCE]),
            CommandRecord.state.in_(WAITING),
            CommandRecord.expires_at > now,
        )
        counts.update({row[0]: row[1] for row in session.execute(statement.group_by(CommandRecord.computer_id))})
    return counts


def _shown(arguments: str) -> dict[str, Any]:
    """Return stored arguments without the secret ones."""
    decoded = msgspec.json.decode(arguments, type=dict[str, Any])
    return {name: "" if name in SECRET_ARGUMENTS else value for name, value in decoded.items()}


def _visible(principal: Principal) -> Any:
    """Commands of computers that may be seen; by the group that the computer was in when it was sent."""
    conditions = []
    for tenant_id in sorted(principal.tenants_where("computers.view")):
        groups = principal.groups_where("computers.view", tenant_id)
        own = CommandRecord.tenant_id == tenant_id
        conditions.append(own if groups is None else and_(own, CommandRecord.group_id.in_(sorted(groups))))
    return or_(false(), *conditions)


def _sent(record: CommandRecord, now: float) -> SentCommand:
    state = CommandState(record.state)
    if state not in FINISHED and record.expires_at <= now:
        state = CommandState.EXPIRED
    return SentCommand(
        command_id=record.id,
        tenant_id=record.tenant_id,
        computer_id=record.computer_id,
        computer_name=record.computer_name,
        kind=CommandKind(record.kind),
        module=ModuleId(record.module) if record.module else None,
        arguments=_shown(record.arguments),
        state=state,
        created_at=record.created_at,
        created_by=record.created_by,
        expires_at=record.expires_at,
        sent_at=record.sent_at,
        updated_at=record.updated_at,
        finished_at=record.finished_at,
        message=record.message,
        progress=record.progress,
        result=msgspec.json.decode(record.result, type=dict[str, Any]),
    )
