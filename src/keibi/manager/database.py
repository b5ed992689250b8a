"""The manager's state in SQLite or PostgreSQL, and the walls between tenants.

Theory of operation. Whoever opens a session says for whom: a `Scope`. Four walls then stand between the tenants, each of
which would be enough if the others fell:

1. every ORM select, update and delete on a `TenantRow` gets `tenant_id IN (the scope's)`;
2. a flush refuses rows of other tenants, and rows whose tenant was changed;
3. a statement that is not an ORM statement but names a tenant's table is refused in a scoped session (it would pass wall 1);
4. on PostgreSQL, row-level security compares each row with `keibi.tenants`, set for the transaction at its begin.

Only the system itself (authentication, background tasks) uses `Scope.system(...)`, which sees all.

SQLite runs in WAL mode with synchronous=FULL. A writing session begins with BEGIN IMMEDIATE, so that two writers wait for
each other at the beginning and not fail in the middle; within this process they wait in a fair queue. A reading session
(`writes=False`) never waits for a writer.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Integer, MetaData, String, TextClause, create_engine, event
from sqlalchemy import Table as SqlTable
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    ORMExecuteState,
    Session,
    attributes,
    declared_attr,
    mapped_column,
    sessionmaker,
    with_loader_criteria,
)
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.orm.session import SessionTransaction
from sqlalchemy.sql import visitors

from keibi.errors import InputError, KeibiError, RefusedError, TryLaterError
from keibi.manager.fair_lock import FairLock

ID_LENGTH = 32
SQLITE_BUSY_MILLISECONDS = 10_000
POOL_SIZE = 16
POOL_WAIT_SECONDS = 10
WRITER_WAIT_SECONDS = 20.0
_WRITES = "keibi_writes"
_SCOPE = "keibi_scope"
_CHANGED = "keibi_changed"
_ALL_TENANTS = "*"


@dataclass(frozen=True)
class Scope:
    """For whom a session works: which tenants' rows it may see and write, and who is named in the audit trail."""

    tenant_ids: frozenset[str] | None  # None: the system itself, which sees all
    actor: str  # "user:alice", "api_key:deploy", "agent:0190…", "system:retention"

    @classmethod
    def system(cls, task: str) -> "Scope":
        """Return the scope of a task of the manager itself, which sees every tenant."""
        return cls(None, f"system:{task}")

    def covers(self, tenant_id: str) -> bool:
        """Whether rows of that tenant may be seen and written."""
        return self.tenant_ids is None or tenant_id in self.tenant_ids


class Table(DeclarativeBase):
    """Base of every table. Moments are float seconds since the epoch (UTC) in columns named `*_at`."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class TenantRow:
    """Mixin of every table whose rows belong to one tenant; the walls of this module stand around these."""

    tenant_id: Mapped[str] = mapped_column(String(ID_LENGTH), index=True, nullable=False)


class VersionedRow:
    """Mixin of tables that people edit: the second of two who changed the same version is told so, and loses nothing unseen."""

    version: Mapped[int] = mapped_column(Integer, nullable=False, default=1)

    @declared_attr.directive
    def __mapper_args__(cls) -> dict[str, Any]:  # noqa: N805 - SQLAlchemy hands the class over
        return {"version_id_col": cls.version}


def tenant_tables() -> frozenset[SqlTable]:
    """Return the tables of all `TenantRow` classes that are imported."""
    return frozenset(
        mapper.local_table
        for mapper in Table.registry.mappers
        if issubclass(mapper.class_, TenantRow) and isinstance(mapper.local_table, SqlTable)
    )


Observer = Callable[[Sequence[Any]], None]
"""Called with rows after they were committed."""


class Database:
    """The one door to the manager's state. Thread-safe; sessions are not, each belongs to the thread that opened it."""

    def __init__(self, url: str) -> None:
        """Prepare for the database at `url` ("sqlite:////path" or "postgresql://…"); connects at the first use.

        Raises:
            InputError: the address is of no database that the manager knows.
        """
        self._engine = _engine_for(url)
        event.listen(self._engine, "begin", self._begin)
        self._make_session = sessionmaker(expire_on_commit=False)
        event.listen(self._make_session, "do_orm_execute", _narrow)
        event.listen(self._make_session, "before_flush", _guard_flush)
        event.listen(self._make_session, "after_begin", self._tell_tenants)
        event.listen(self._make_session, "after_flush", self._note_changed)
        event.listen(self._make_session, "after_commit", self._tell_observers)
        self._writers = FairLock()
        self._observers: list[tuple[type[Table], Observer]] = []
        self._reading = self._engine.execution_options(**{_WRITES: False})
        self._writing = self._engine.execution_options(**{_WRITES: True})

    @property
    def engine(self) -> Engine:
        """The engine, for migrations and for listening to notifications; rows are reached by `session` only."""
        return self._engine

    @property
    def is_postgresql(self) -> bool:
        """Whether several managers may share this database."""
        return self._engine.dialect.name == "postgresql"

    @contextlib.contextmanager
    def session(self, scope: Scope, writes: bool = True) -> Iterator[Session]:
        """Open a session for `scope`; commits at the end of the block, rolls back when it raises.

        Objects stay readable after the end (`expire_on_commit=False`). With `writes=False` a flush is refused.

        Raises:
            TryLaterError: the database is busy, full, read-only or away.
            InputError: `changed_meanwhile`, somebody else changed the same row; `conflict`, a constraint was broken;
            `value_unstorable`, a text with NUL or a number beyond all bounds.
            RefusedError: a row or statement outside the scope.
        """
        turn = self._writers.held(WRITER_WAIT_SECONDS) if writes and not self.is_postgresql else contextlib.nullcontext()
        with turn:
            yield from self._session(scope, writes)

    def _session(self, scope: Scope, writes: bool) -> Iterator[Session]:
        bind = self._writing if writes else self._reading
        session = self._make_session(bind=bind, info={_SCOPE: scope, _WRITES: writes})
        try:
            yield session
            session.commit()
        except BaseException as error:
            _roll_back(session)
            if isinstance(error, SQLAlchemyError):
                raise told(error) from error
            if isinstance(error, UnicodeEncodeError | OverflowError):  # from the driver, unwrapped
                raise _unstorable(error) from error
            raise
        finally:
            session.close()

    def session_of(self, tenant_id: str, actor: str = "system", writes: bool = True) -> AbstractContextManager[Session]:
        """Open a session that sees one tenant, for work that the manager does itself."""
        return self.session(Scope(frozenset({tenant_id}), actor), writes)

    def observe(self, table: type[Table], observer: Observer) -> None:
        """Have `observer` called with changed and new rows of a class after the transaction that wrote them.

        Called in the thread that committed; it must not use the session, and what it raises reaches whoever committed.
        Rows written by statements instead of objects are not seen.
        """
        self._observers.append((table, observer))

    def migrate(self) -> None:
        """Bring the schema to the newest revision; a new database gets all of it.

        Raises:
            TryLaterError: the database cannot be written.
            InputError: its schema is newer than this manager.
        """
        # Imported here: Alembic takes a quarter of a second that no other program needs.
        from keibi.manager.migrations.upgrade import upgrade

        try:
            with self._engine.execution_options(**{_WRITES: True}).begin() as connection:
                upgrade(connection)
        except SQLAlchemyError as error:
            raise told(error) from error

    def has_unbound_role(self) -> bool:
        """Whether row-level security does not bind the role that is used: a superuser's, or one with BYPASSRLS."""
        if not self.is_postgresql:
            return False
        try:
            with self._engine.connect() as connection:
                found = connection.exec_driver_sql(
                    "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
                ).scalar()
        except SQLAlchemyError as error:
            raise told(error) from error
        return bool(found)

    def dispose(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _begin(self, connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            writes = connection.get_execution_options().get(_WRITES, False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def _note_changed(self, session: Session, _context: Any) -> None:
        for table, _ in self._observers:
            changed = [row for row in (*session.new, *session.dirty) if isinstance(row, table) and session.is_modified(row)]
            if changed:
                session.info.setdefault(_CHANGED, {}).setdefault(table, []).extend(changed)

    def _tell_observers(self, session: Session) -> None:
        changed: dict[type[Table], list[Table]] = session.info.pop(_CHANGED, {})
        for table, observer in self._observers:
            if table in changed:
                observer(changed[table])

    def _tell_tenants(self, session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            scope: Scope = session.info[_SCOPE]
            allowed = _ALL_TENANTS if scope.tenant_ids is None else ",".join(sorted(scope.tenant_ids))
            connection.exec_driver_sql("SELECT set_config('keibi.tenants', %s, true)", (allowed,))


def scope_of(session: Session) -> Scope:
    """Return the scope that the session was opened with."""
    scope: Scope = session.info[_SCOPE]
    return scope


def told(error: SQLAlchemyError) -> KeibiError:
    """Return what a database error means to a person, in one of the four families."""
    text = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    lower = text.lower()
    if isinstance(error, StaleDataError):
        return InputError(
            "changed_meanwhile", "somebody else changed this meanwhile", hint="load it again and repeat what you wanted"
        )
    if isinstance(error, DataError):
        return _unstorable(error.orig or error)
    if isinstance(error, IntegrityError):
        return InputError("conflict", f"this conflicts with what is stored: {text.splitlines()[0]}")
    if isinstance(error, PoolTimeoutError) or "locked" in lower or "deadlock" in lower:
        return TryLaterError("database_busy", "the database is busy", hint="try again in a moment")
    if "readonly" in lower or "read-only" in lower:
        return TryLaterError("database_read_only", "the database cannot be written: it is read-only", hint="check the disk")
    if "disk is full" in lower or "no space" in lower or "disk i/o" in lower:
        return TryLaterError("disk_full", f"the database cannot be written: {text}", hint="free space on the manager's disk")
    if "unable to open" in lower or (isinstance(error, DBAPIError) and (error.connection_invalidated or "connect" in lower)):
        return TryLaterError("database_away", f"the database cannot be reached: {text.strip()}", hint="is it running?")
    return TryLaterError("database_failed", f"the database refused: {text}", hint="see the manager's log")


def _unstorable(error: BaseException) -> InputError:
    return InputError(
        "value_unstorable",
        f"a value cannot be stored: {str(error).splitlines()[0][:200]}",
        hint="text may hold neither NUL nor broken Unicode; numbers must be of a sensible size",
    )


def _engine_for(address: str) -> Engine:
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise InputError("database_url", f"{address!r} is not the address of a database", hint=_URL_HINT) from error
    match url.get_backend_name():
        case "sqlite":
            engine = create_engine(
                url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, pool_timeout=POOL_WAIT_SECONDS, query_cache_size=1000
            )
            event.listen(engine, "connect", _prepare_sqlite)
            return engine
        case "postgresql":
            return create_engine(
                url.set(drivername="postgresql+psycopg"),
                pool_size=POOL_SIZE,
                max_overflow=POOL_SIZE,
                pool_timeout=POOL_WAIT_SECONDS,
                pool_pre_ping=True,
                query_cache_size=1000,
            )
        case other:
            raise InputError("database_url", f"the manager does not know the database {other!r}", hint=_URL_HINT)


_URL_HINT = "use sqlite:////path/to/file or postgresql://user@host/name"


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: _begin does, in the right mode.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MILLISECONDS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _roll_back(session: Session) -> None:
    # The connection may be gone; what was wrong in the first place is what the caller must see.
    with contextlib.suppress(SQLAlchemyError):
        session.rollback()


def _narrow(state: ORMExecuteState) -> None:
    """Add the tenant to an ORM statement; refuse what cannot be narrowed."""
    tenant_ids = scope_of(state.session).tenant_ids
    if tenant_ids is None or state.is_column_load or state.is_relationship_load:
        return
    if not state.is_orm_statement:
        _refuse_core(state.statement)
        return
    if state.is_insert:
        _guard_insert(state, tenant_ids)
        return
    if state.is_update:
        _guard_update(state)
    allowed = sorted(tenant_ids)
    state.statement = state.statement.options(
        with_loader_criteria(TenantRow, lambda cls: cls.tenant_id.in_(allowed), include_aliases=True)
    )


def _refuse_core(statement: Any) -> None:
    if isinstance(statement, TextClause):
        raise RefusedError("statement_not_scoped", "text statements are not allowed in a tenant's session")
    guarded = tenant_tables()
    named = [element for element in visitors.iterate(statement) if isinstance(element, SqlTable)]
    for table in (*named, getattr(statement, "table", None)):
        if table in guarded:
            raise RefusedError(
                "statement_not_scoped", f"a Core statement on {table.name!r} would see every tenant", hint="select the class"
            )


def _parameter_rows(state: ORMExecuteState) -> list[dict[str, Any]]:
    parameters: Any = state.parameters or {}
    return [parameters] if isinstance(parameters, dict) else list(parameters)


def _guard_insert(state: ORMExecuteState, tenant_ids: frozenset[str]) -> None:
    mapper = state.bind_mapper
    if mapper is None or not issubclass(mapper.class_, TenantRow):
        return
    for row in _parameter_rows(state):
        if row.get("tenant_id") not in tenant_ids:
            raise _foreign(mapper.class_.__name__, str(row.get("tenant_id")))


def _guard_update(state: ORMExecuteState) -> None:
    # An update that moves rows to another tenant passes the criteria, which look at the rows as they are before; and an
    # update by a list of primary keys has no criteria at all.
    named = {getattr(column, "key", column) for column in getattr(state.statement, "_values", None) or {}}
    if "tenant_id" in named:
        raise RefusedError("row_of_another_tenant", "an update statement may not set tenant_id")
    if isinstance(state.parameters, list | tuple):
        raise RefusedError("statement_not_scoped", "an update by a list of keys cannot be narrowed to a tenant")


def _guard_flush(session: Session, _context: Any, _instances: Any) -> None:
    if not session.info[_WRITES] and (session.new or session.deleted or any(session.is_modified(row) for row in session.dirty)):
        raise RefusedError("session_reads_only", "a session opened with writes=False was asked to write")
    scope = scope_of(session)
    if scope.tenant_ids is None:
        return
    for row in (*session.new, *session.dirty, *session.deleted):
        if isinstance(row, TenantRow):
            history = _history_of(row)
            for tenant_id in history:
                if not scope.covers(tenant_id):
                    raise _foreign(type(row).__name__, tenant_id)


def _history_of(row: TenantRow) -> set[str]:
    history = attributes.get_history(row, "tenant_id")
    return {str(value) for value in (*history.added, *history.unchanged, *history.deleted)} or {str(row.tenant_id)}


def _foreign(kind: str, tenant_id: str) -> RefusedError:
    return RefusedError("row_of_another_tenant", f"a {kind} of tenant {tenant_id!r} is outside this session's scope")
