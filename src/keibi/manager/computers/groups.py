"""The tree of groups in each tenant."""

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from keibi.contract.names import new_id
from keibi.errors import InputError
from keibi.manager.access.model import Principal
from keibi.manager.audit.service import AuditService
from keibi.manager.computers.tables import ComputerRecord, GroupRecord
from keibi.manager.database import Database

MAX_DEPTH = 16
MAX_NAME_CHARACTERS = 200


@dataclass(frozen=True)
class Group:
    """One group; `path` is its name after its parents' ("Tokyo / Web")."""

    group_id: str
    tenant_id: str
    parent_id: str | None
    name: str
    path: str
    depth: int
    computer_count: int  # in this very group, without those below
    version: int


class GroupService:
    """Listing and changing groups. A right over a group reaches all groups below it."""

    def __init__(self, database: Database, audit: AuditService) -> None:
        self._database = database
        self._audit = audit

    def tree(self, principal: Principal) -> list[Group]:
        """Return the groups that the principal may see, each after its parent, siblings by name.

        Raises:
            AccessError: the principal may see no computers at all.
        """
        principal.require("computers.view")
        with self._database.session(principal.scope(), writes=False) as session:
            records = session.scalars(select(GroupRecord)).all()
            counted = session.execute(
                select(ComputerRecord.group_id, func.count())
                .where(ComputerRecord.group_id.is_not(None))
                .group_by(ComputerRecord.group_id)
            )
            counts = {row[0]: row[1] for row in counted}
        children: dict[str | None, list[GroupRecord]] = defaultdict(list)
        for record in records:
            children[record.parent_id].append(record)
        groups: list[Group] = []

        def add(parent_id: str | None, path: str, depth: int) -> None:
            for record in sorted(children[parent_id], key=lambda child: (child.tenant_id, child.name_key)):
                own_path = f"{path} / {record.name}" if path else record.name
                if principal.may("computers.view", tenant_id=record.tenant_id, group_id=record.id):
                    groups.append(_group(record, own_path, depth, counts.get(record.id, 0)))
                add(record.id, own_path, depth + 1)

        add(None, "", 0)
        return groups

    def get(self, principal: Principal, group_id: str) -> Group:
        """Return one group.

        Raises:
            InputError: there is none that the principal may see.
        """
        found = next((group for group in self.tree(principal) if group.group_id == group_id), None)
        if found is None:
            raise _not_found(group_id)
        return found

    def create(self, principal: Principal, name: str, parent_id: str | None = None) -> Group:
        """Make a group below `parent_id`, or at the top.

        Raises:
            AccessError: the principal may not manage computers there. InputError: a bad or taken name, or no such parent.
        """
        with self._database.session(principal.scope()) as session:
            parent = find_group(session, parent_id) if parent_id else None
            tenant_id = parent.tenant_id if parent else principal.home_tenant_id
            principal.require("computers.manage", tenant_id=tenant_id, group_id=parent_id)
            if parent and len(_ancestors(session, parent)) + 1 >= MAX_DEPTH:
                raise InputError("group_too_deep", f"groups go at most {MAX_DEPTH} deep")
            record = GroupRecord(id=new_id(), tenant_id=tenant_id, parent_id=parent_id, parent_key=parent_id or "", version=1)
            _name(session, record, name)
            session.add(record)
            session.flush()
            self._audit.record(
                session, principal, "group.create", "group", record.id, f"Made the group {record.name}.", tenant_id=tenant_id
            )
        return self._as_seen(record)

    def change(
        self,
        principal: Principal,
        group_id: str,
        *,
        name: str | None = None,
        parent_id: str | None = None,
        move: bool = False,
        expected_version: int | None = None,
    ) -> Group:
        """Rename a group; with `move`, put it below `parent_id` (None: at the top).

        Raises:
            AccessError: the principal may not manage computers there and at the new place. InputError: a bad name, a loop.
        """
        with self._database.session(principal.scope()) as session:
            record = find_group(session, group_id)
            principal.require("computers.manage", tenant_id=record.tenant_id, group_id=group_id)
            check_version(record.version, expected_version)
            before = record.name
            if move and parent_id != record.parent_id:
                self._move(session, principal, record, parent_id)
            _name(session, record, record.name if name is None else name)
            session.flush()
            self._audit.record(
                session,
                principal,
                "group.change",
                "group",
                group_id,
                f"Changed the group {before}." if before == record.name else f"Renamed the group {before} to {record.name}.",
                {"name": record.name, "parent_id": record.parent_id},
                tenant_id=record.tenant_id,
            )
        return self._as_seen(record)

    def remove(self, principal: Principal, group_id: str) -> None:
        """Remove an empty group.

        Raises:
            AccessError: the principal may not. InputError: there is none, or something is in it.
        """
        with self._database.session(principal.scope()) as session:
            record = find_group(session, group_id)
            principal.require("computers.manage", tenant_id=record.tenant_id, group_id=group_id)
            computers = session.scalar(
                select(func.count()).select_from(ComputerRecord).where(ComputerRecord.group_id == group_id)
            )
            groups = session.scalar(select(func.count()).select_from(GroupRecord).where(GroupRecord.parent_id == group_id))
            if computers or groups:
                raise InputError(
                    "group_conflict", f"{record.name} holds {computers} computers and {groups} groups", hint="move them first"
                )
            session.delete(record)
            session.flush()
            self._audit.record(
                session,
                principal,
                "group.remove",
                "group",
                group_id,
                f"Removed the group {record.name}.",
                tenant_id=record.tenant_id,
            )

    def _move(self, session: Session, principal: Principal, record: GroupRecord, parent_id: str | None) -> None:
        if parent_id is not None:
            parent = find_group(session, parent_id)
            if parent.tenant_id != record.tenant_id:
                raise _not_found(parent_id)
            if record.id in {parent.id, *_ancestors(session, parent)}:
                raise InputError("group_loop", f"{record.name} cannot be put below itself")
        principal.require("computers.manage", tenant_id=record.tenant_id, group_id=parent_id)
        record.parent_id, record.parent_key = parent_id, parent_id or ""

    def _as_seen(self, record: GroupRecord) -> Group:
        with self._database.session_of(record.tenant_id, writes=False) as session:
            names = [record.name]
            ancestors = _ancestors(session, record)
            for group_id in ancestors:
                parent = session.get(GroupRecord, group_id)
                names.insert(0, parent.name if parent else "")
            count = session.scalar(select(func.count()).select_from(ComputerRecord).where(ComputerRecord.group_id == record.id))
        return _group(record, " / ".join(names), len(ancestors), count or 0)


def find_group(session: Session, group_id: str) -> GroupRecord:
    """Return a group in the session's scope.

    Raises:
        InputError: there is none.
    """
    record = session.get(GroupRecord, group_id)
    if record is None:
        raise _not_found(group_id)
    return record


def subtree_ids(session: Session, tenant_id: str, group_id: str) -> frozenset[str]:
    """Return a group and all groups below it."""
    children: dict[str | None, list[str]] = defaultdict(list)
    for own_id, parent_id in session.execute(
        select(GroupRecord.id, GroupRecord.parent_id).where(GroupRecord.tenant_id == tenant_id)
    ):
        children[parent_id].append(own_id)
    found: set[str] = set()
    waiting = [group_id]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += children[current]
    return frozenset(found)


def check_version(version: int, expected: int | None) -> None:
    """Do nothing if the caller saw the present version.

    Raises:
        InputError: somebody changed it meanwhile.
    """
    if expected is not None and expected != version:
        raise InputError("changed_meanwhile", "somebody else changed this meanwhile", hint="load it again and repeat your change")


def _ancestors(session: Session, record: GroupRecord) -> list[str]:
    found: list[str] = []
    parent_id = record.parent_id
    while parent_id is not None and parent_id not in found:
        found.append(parent_id)
        parent_id = session.scalar(select(GroupRecord.parent_id).where(GroupRecord.id == parent_id))
    return found


def _name(session: Session, record: GroupRecord, name: str) -> None:
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InputError("group_name", f"a group's name has 1 to {MAX_NAME_CHARACTERS} printable characters")
    with session.no_autoflush:
        taken = session.scalar(
            select(GroupRecord.id).where(
                GroupRecord.tenant_id == record.tenant_id,
                GroupRecord.parent_key == record.parent_key,
                GroupRecord.name_key == name.casefold(),
                GroupRecord.id != record.id,
            )
        )
    if taken:
        raise InputError("group_exists", f"there is a group {name!r} at this place already")
    record.name, record.name_key = name, name.casefold()


def _not_found(group_id: str) -> InputError:
    return InputError("group_not_found", f"there is no group {group_id!r}")


def _group(record: GroupRecord, path: str, depth: int, count: int) -> Group:
    return Group(record.id, record.tenant_id, record.parent_id, record.name, path, depth, count, record.version)
