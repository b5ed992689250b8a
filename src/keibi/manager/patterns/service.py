"""Importing, listing, returning and deleting pattern sets, and telling policies what is in them."""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.contract.policy import ContentReference
from keibi.errors import AccessError, InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.tables import ComputerRecord
from keibi.manager.database import Database, Scope
from keibi.manager.patterns.importers.importing import run_import
from keibi.manager.patterns.importers.model import ImportKind, Report, one_line
from keibi.manager.patterns.model import (
    MAX_VERSIONS,
    ImportOutcome,
    PatternSet,
    PatternSetDetail,
    PatternUse,
    StoredContent,
)
from keibi.manager.patterns.records import (
    check_room,
    contents_in,
    current_contents,
    set_of,
    shortened,
    version_of,
    versions_of,
    whole_set,
    with_current,
)
from keibi.manager.patterns.slots import ImportSlots
from keibi.manager.patterns.store import ContentStore
from keibi.manager.patterns.tables import SHARED, PatternSetRecord, PatternVersionRecord
from keibi.manager.policies import forest as forests
from keibi.manager.policies.effective import touch
from keibi.manager.policies.pattern_names import names_in
from keibi.manager.tenants.tables import TenantRecord

UPLOAD = "upload"
MANAGE, VIEW = "patterns.manage", "rules.view"
MAX_TEXT_CHARACTERS = 2000
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NO_NAME = re.compile(r"[^a-z0-9._-]+")
_SUFFIXES = re.compile(r"(\.(tar|gz|xz|bz2|tgz|zip|yara?|cvd|cld|cud|hdb|hsb|ndb|ldb|txt|csv|sha256))+$")

logger = logging.getLogger("keibi.patterns")


class PatternService:
    """Pattern sets of all tenants, and those that the provider shares. `store` holds the contents."""

    def __init__(self, database: Database, audit: AuditService, store: ContentStore) -> None:
        self._database = database
        self._audit = audit
        self.store = store
        self._slots = ImportSlots()

    # Seeing.

    def list(self, principal: Principal) -> Sequence[PatternSet]:
        """Return the sets that the principal may use: their own, then the shared ones, by name; of refusals the first few.

        Raises:
            AccessError: it may see none.
        """
        principal.require(VIEW)
        with self._database.session(_with_shared(principal), writes=False) as session:
            tenant_ids = {*principal.tenants_where(VIEW), SHARED}
            rows = session.execute(with_current().where(PatternSetRecord.tenant_id.in_(tenant_ids))).all()
            counted = session.execute(
                select(PatternVersionRecord.set_id, func.count())
                .where(PatternVersionRecord.tenant_id.in_(tenant_ids))
                .group_by(PatternVersionRecord.set_id)
            )
            counts = {row[0]: row[1] for row in counted}
            made = [set_of(record, shortened(version_of(row, record)), counts[record.id]) for record, row in rows]
        return sorted(made, key=lambda one: (one.is_shared, one.name))

    def get(self, principal: Principal, set_id: str) -> PatternSetDetail:
        """Return one set with its versions and where it is used.

        Raises:
            InputError: there is none that the principal may see.
        """
        with self._database.session(_with_shared(principal), writes=False) as session:
            record = _found(session, principal, set_id)
            versions = versions_of(session, record)
            tenants = principal.tenants_where("policies.view")
            uses = [
                use
                for tenant_id in sorted(tenants if record.tenant_id == SHARED else tenants & {record.tenant_id})
                for use in self._uses(session, tenant_id, record)
            ]
            return PatternSetDetail(**whole_set(record, versions).__dict__, versions=versions, uses=uses)

    # Changing.

    def import_file(
        self,
        principal: Principal,
        directory: str,
        file_name: str,
        *,
        name: str = "",
        kind: ImportKind = ImportKind.AUTO,
        licence: str = "",
        description: str = "",
        is_for_all: bool = False,
        is_trial: bool = False,
    ) -> ImportOutcome:
        """Import the file `UPLOAD` in a workspace of the store: as a new set, or as the next version of the set of that name.

        Without a name the file's own is taken. A trial only reports. The next version is in use at once where the set is named.

        Raises:
            AccessError: the principal may not. InputError: a bad name, or nothing in the file can be used.
            RefusedError: the file is altered, a bomb, or too much work. TryLaterError: the disk is full.
        """
        tenant_id = self._tenant_for(principal, is_for_all=is_for_all)
        file_name = one_line(os.path.basename(file_name), 200) or UPLOAD
        name = _checked_name(name or _name_from(file_name))
        for text in (licence, description):
            if len(text) > MAX_TEXT_CHARACTERS or "\0" in text:
                raise InputError("pattern_text", f"no text of up to {MAX_TEXT_CHARACTERS} characters: {text[:40]!r}")
        with self._slots.taken(tenant_id):
            outcome = run_import(os.path.join(directory, UPLOAD), file_name, kind, name, directory)
        if outcome.report is None:
            raise InputError("import_failed", "the importer left no report", where=file_name)
        paths = [os.path.join(directory, file.file) for file in outcome.files]
        if not is_trial:
            with self._database.session(_writing(principal, tenant_id), writes=False) as session:
                check_room(session, tenant_id, name, sum(os.path.getsize(path) for path in paths))
        stored = []
        for file, path in zip(outcome.files, paths, strict=True):
            sha256, size = ("", os.path.getsize(path)) if is_trial else self.store.take(path)
            stored.append(StoredContent(file.kind, file.name, sha256, size))
        if is_trial:
            return ImportOutcome(is_kept=False, report=outcome.report, contents=stored)
        with self._database.session(_writing(principal, tenant_id)) as session:
            made = self._keep(
                session, principal, tenant_id, name, file_name, licence.strip(), description.strip(), outcome.report, stored
            )
        self._sweep()
        return ImportOutcome(is_kept=True, report=outcome.report, contents=stored, pattern_set=made)

    def return_to(self, principal: Principal, set_id: str, number: int, expected_version: int | None = None) -> PatternSet:
        """Make another version current, on purpose: an older one, or the newest again.

        Raises:
            AccessError: the principal may not. InputError: no such set or version, or somebody else changed it meanwhile.
        """
        record_tenant = self._tenant_of(principal, set_id)
        with self._database.session(_writing(principal, record_tenant)) as session:
            record = _for_change(session, set_id, expected_version)
            versions = versions_of(session, record)
            if number not in [version.number for version in versions]:
                kept = ", ".join(str(version.number) for version in versions)
                raise InputError("pattern_version_not_found", f"{record.name} has no version {number}", hint=f"kept are: {kept}")
            before, record.current_number = record.current_number, number
            record.changed_at, record.changed_by = time.time(), principal.actor
            session.flush()
            summary = f"Returned the pattern set {record.name} from version {before} to {number}."
            self._note(session, principal, record, "pattern.return", summary, {"before": before, "after": number})
            self._touch(session, record.tenant_id)
            return whole_set(record, versions_of(session, record))

    def delete(self, principal: Principal, set_id: str) -> None:
        """Delete a set with all its versions.

        Raises:
            AccessError: the principal may not. InputError: there is no such set, or a policy names it.
        """
        record_tenant = self._tenant_of(principal, set_id)
        with self._database.session(_writing(principal, record_tenant)) as session:
            record = _for_change(session, set_id, None)
            tenants = _all_tenants(session) if record.tenant_id == SHARED else [record.tenant_id]
            uses = [use.name for tenant_id in tenants for use in self._uses(session, tenant_id, record)]
            if uses:
                more = f" and {len(uses) - 3} more" if len(uses) > 3 else ""
                raise InputError(
                    "pattern_set_in_use",
                    f"the set {record.name} is used by {', '.join(uses[:3])}{more}",
                    hint="take it out of those policies first",
                )
            for version in session.scalars(select(PatternVersionRecord).where(PatternVersionRecord.set_id == set_id)):
                session.delete(version)
            session.flush()
            self._note(session, principal, record, "pattern.delete", f"Deleted the pattern set {record.name}.", {})
            self._touch(session, record.tenant_id)
            session.delete(record)
        self._sweep()

    # For policies and agents.

    def contents(self, session: Session, tenant_id: str) -> Mapping[str, Sequence[ContentReference]]:
        """Return the contents of every set that a tenant may use; its own hides a shared one of the same name."""
        # A session of its own for the shared ones: the caller's sees its tenant alone.
        with self._database.session_of(SHARED, "system:patterns", writes=False) as shared:
            found = dict(current_contents(shared, SHARED))
        found.update(current_contents(session, tenant_id))
        return found

    # Shared steps.

    def _keep(
        self,
        session: Session,
        principal: Principal,
        tenant_id: str,
        name: str,
        file_name: str,
        licence: str,
        description: str,
        report: Report,
        stored: Sequence[StoredContent],
    ) -> PatternSet:
        now = time.time()
        record = session.scalar(
            select(PatternSetRecord)
            .where(PatternSetRecord.tenant_id == tenant_id, PatternSetRecord.name == name)
            .with_for_update()
        )
        if record is None:
            record = PatternSetRecord(id=new_id(), tenant_id=tenant_id, name=name, description="", version=1)
            number = 1
        else:
            number = max(version.number for version in versions_of(session, record)) + 1
        record.current_number = number
        record.description = description or record.description
        record.changed_at, record.changed_by = now, principal.actor
        session.add(record)
        session.flush()
        session.add(
            PatternVersionRecord(
                id=new_id(),
                tenant_id=tenant_id,
                set_id=record.id,
                number=number,
                file_name=file_name,
                licence=licence,
                contents=msgspec.json.encode(stored).decode(),
                report=msgspec.json.encode(report).decode(),
                imported_at=now,
                imported_by=principal.actor,
            )
        )
        session.flush()
        self._forget_old(session, record)
        taken = ", ".join(f"{count} {what}" for what, count in report.accepted.items())
        summary = (
            f"Imported version {number} of the pattern set {name} from {file_name}: {taken}; {report.refused_count} refused."
        )
        detail = {"contents": [content.sha256 for content in stored], "licence": licence}
        self._note(session, principal, record, "pattern.import", summary, detail)
        self._touch(session, tenant_id)
        return whole_set(record, versions_of(session, record))

    def _forget_old(self, session: Session, record: PatternSetRecord) -> None:
        rows = session.scalars(
            select(PatternVersionRecord)
            .where(PatternVersionRecord.set_id == record.id)
            .order_by(PatternVersionRecord.number.desc())
            .offset(MAX_VERSIONS)
        )
        for row in rows:
            if row.number != record.current_number:
                session.delete(row)
        session.flush()

    def _tenant_for(self, principal: Principal, *, is_for_all: bool) -> str:
        if not is_for_all:
            tenant_id = principal.home_tenant_id
            principal.require(MANAGE, tenant_id=tenant_id)
            return tenant_id
        if not principal.may(MANAGE, tenant_id=None):
            raise AccessError(
                "not_allowed",
                f"{principal.name} may not share pattern sets with all customers: it needs {MANAGE} for all of them",
                hint="import it for one customer, or ask the provider",
            )
        return SHARED

    def _tenant_of(self, principal: Principal, set_id: str) -> str:
        """Return whose set it is, once the principal may change it."""
        with self._database.session(_with_shared(principal), writes=False) as session:
            tenant_id = _found(session, principal, set_id).tenant_id
        if tenant_id == SHARED:
            return self._tenant_for(principal, is_for_all=True)
        principal.require(MANAGE, tenant_id=tenant_id)
        return tenant_id

    def _uses(self, session: Session, tenant_id: str, record: PatternSetRecord) -> Iterator[PatternUse]:
        if record.tenant_id == SHARED:
            own = select(PatternSetRecord.id).where(PatternSetRecord.tenant_id == tenant_id, PatternSetRecord.name == record.name)
            if session.scalar(own) is not None:
                return  # what they name is their own
        forest = forests.load(session, tenant_id)
        for policy_id, branch in forest.branches.items():
            if record.name in names_in(branch.overrides):
                yield PatternUse("policy", policy_id, forest.path(policy_id))
        for computer_id, overrides in forest.computers.items():
            if record.name in names_in(overrides):
                shown = session.scalar(select(ComputerRecord.display_name).where(ComputerRecord.id == computer_id))
                yield PatternUse("computer", computer_id, shown or computer_id)

    def _note(
        self,
        session: Session,
        principal: Principal,
        record: PatternSetRecord,
        action: str,
        summary: str,
        detail: Mapping[str, object],
    ) -> None:
        tenant_id = record.tenant_id if record.tenant_id != SHARED else principal.home_id or min(principal.tenant_ids)
        self._audit.record(session, principal, action, "pattern_set", record.id, summary, detail, tenant_id=tenant_id)

    def _touch(self, session: Session, tenant_id: str) -> None:
        for each in _all_tenants(session) if tenant_id == SHARED else [tenant_id]:
            touch(session, each)

    def _sweep(self) -> None:
        """Delete contents that no version names any more."""
        with self._database.session(Scope.system("patterns"), writes=False) as session:
            named = {
                content.sha256 for text in session.scalars(select(PatternVersionRecord.contents)) for content in contents_in(text)
            }
        gone = self.store.keep_only(named)
        if gone:
            logger.info("deleted %d contents that no pattern set names any more", gone)


def _with_shared(principal: Principal) -> Scope:
    scope = principal.scope()
    return Scope((scope.tenant_ids or frozenset()) | {SHARED}, scope.actor)


def _writing(principal: Principal, tenant_id: str) -> Scope:
    """Return the scope for a change; one of a shared set touches every tenant's policies, so it is the system's."""
    if tenant_id == SHARED:
        return Scope.system(f"patterns for {principal.actor}")
    return Scope(frozenset({tenant_id}), principal.actor)


def _all_tenants(session: Session) -> Sequence[str]:
    return session.scalars(select(TenantRecord.id).order_by(TenantRecord.id)).all()


def _found(session: Session, principal: Principal, set_id: str) -> PatternSetRecord:
    record = session.scalar(
        select(PatternSetRecord).where(
            PatternSetRecord.id == set_id, PatternSetRecord.tenant_id.in_({*principal.tenants_where(VIEW), SHARED})
        )
    )
    if record is None or not principal.may_somewhere(VIEW):
        raise InputError("pattern_set_not_found", f"there is no pattern set {set_id[:80]!r}")
    return record


def _for_change(session: Session, set_id: str, expected_version: int | None) -> PatternSetRecord:
    record = session.scalar(select(PatternSetRecord).where(PatternSetRecord.id == set_id).with_for_update())
    if record is None:
        raise InputError("pattern_set_not_found", f"there is no pattern set {set_id[:80]!r}")
    if expected_version is not None and record.version != expected_version:
        raise InputError(
            "changed_meanwhile",
            f"{record.name} is at version {record.version} now, not {expected_version}: somebody else changed it meanwhile",
            hint="load it again and repeat what you wanted",
        )
    return record


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            "pattern_name",
            f"{name[:80]!r} is no name of a pattern set",
            where="name",
            hint="1 to 64 lower-case letters, digits, dots, hyphens and underscores, such as `yara-forge`",
        )
    return name


def _name_from(file_name: str) -> str:
    """Return a name that a file's own suggests; "patterns" when it suggests none."""
    stem = _SUFFIXES.sub("", file_name.lower())
    return _NO_NAME.sub("-", stem).strip("-._")[:64] or "patterns"
