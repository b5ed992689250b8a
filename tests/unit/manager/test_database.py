"""The walls between tenants, on SQLite and on PostgreSQL."""

import ast
import pathlib
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased

import keibi.manager
from keibi.contract.names import new_id
from keibi.errors import InputError, RefusedError, TryLaterError
from keibi.manager.computers.tables import GroupRecord
from keibi.manager.database import Database, Scope, Table, TenantRow, tenant_tables
from keibi.manager.schema import complete_metadata

SYSTEM = Scope.system("test")
ALICE = Scope(frozenset({"a"}), "user:alice")
BOB = Scope(frozenset({"b"}), "user:bob")
BOTH = Scope(frozenset({"a", "b"}), "user:carol")
NOBODY = Scope(frozenset(), "user:nobody")


def group(tenant_id: str, name: str) -> GroupRecord:
    return GroupRecord(id=new_id(), tenant_id=tenant_id, parent_key="", name=name, name_key=name)


@pytest.fixture
def filled(database):
    with database.session(SYSTEM) as session:
        session.add_all([group("a", "one"), group("a", "two"), group("b", "three"), group("b", "four"), group("b", "five")])
    return database


def names(database: Database, scope: Scope) -> set[str]:
    with database.session(scope, writes=False) as session:
        return set(session.scalars(select(GroupRecord.name)))


def test_each_scope_sees_its_tenants_in_every_form_of_select(filled):
    # Twice and in both orders: what is cached for one scope must not serve another.
    for scope, count in [(ALICE, 2), (BOB, 3), (BOTH, 5), (NOBODY, 0), (SYSTEM, 5), (BOB, 3), (ALICE, 2)]:
        with filled.session(scope, writes=False) as session:
            assert len(session.scalars(select(GroupRecord)).all()) == count
            assert len(session.execute(select(GroupRecord.name)).all()) == count
            assert len(session.scalars(select(aliased(GroupRecord))).all()) == count
            assert session.scalar(select(func.count()).select_from(GroupRecord)) == count
            assert session.scalar(select(func.count()).select_from(select(GroupRecord).subquery())) == count
            inner = select(GroupRecord.id)
            assert len(session.scalars(select(GroupRecord).where(GroupRecord.id.in_(inner))).all()) == count
            assert len(session.scalars(select(GroupRecord).union_all(select(GroupRecord))).all()) == 2 * count


def test_a_foreign_row_is_not_found_by_its_id(filled):
    with filled.session(SYSTEM) as session:
        foreign = session.scalars(select(GroupRecord.id).where(GroupRecord.tenant_id == "b")).first()
    with filled.session(ALICE, writes=False) as session:
        assert session.get(GroupRecord, foreign) is None


def test_updates_and_deletes_reach_own_rows_only(filled):
    with filled.session(ALICE) as session:
        session.execute(update(GroupRecord).values(name="mine"))
    assert names(filled, SYSTEM) == {"mine", "three", "four", "five"}
    with filled.session(ALICE) as session:
        session.execute(delete(GroupRecord))
    assert names(filled, SYSTEM) == {"three", "four", "five"}


def flush_foreign(session):
    session.add(group("b", "intruder"))


def move_to_other_tenant(session):
    session.scalars(select(GroupRecord)).first().tenant_id = "b"


def insert_foreign(session):
    session.execute(insert(GroupRecord), [{"id": new_id(), "tenant_id": "b", "parent_key": "", "name": "x", "name_key": "x"}])


def insert_by_values(session):
    session.execute(insert(GroupRecord).values(id=new_id(), tenant_id="b", parent_key="", name="x", name_key="x"))


def move_by_update(session):
    session.execute(update(GroupRecord).values(tenant_id="b"))


def update_by_keys(session):
    session.execute(update(GroupRecord), [{"id": "x", "name": "x", "version": 1}])


def core_select(session):
    session.execute(select(GroupRecord.__table__)).all()


def core_subquery(session):
    session.execute(select(select(GroupRecord.__table__).subquery())).all()


def core_delete(session):
    session.execute(delete(GroupRecord.__table__))


def core_update(session):
    session.execute(update(GroupRecord.__table__).values(name="x"))


def core_insert(session):
    session.execute(insert(GroupRecord.__table__).values(id="x", tenant_id="b"))


def text_select(session):
    session.execute(text("SELECT * FROM computer_groups"))


@pytest.mark.parametrize(
    "attempt",
    [
        flush_foreign,
        move_to_other_tenant,
        insert_foreign,
        insert_by_values,
        move_by_update,
        update_by_keys,
        core_select,
        core_subquery,
        core_delete,
        core_update,
        core_insert,
        text_select,
    ],
    ids=lambda attempt: attempt.__name__,
)
def test_what_would_pass_the_criteria_is_refused(filled, attempt):
    before = names(filled, SYSTEM)
    with pytest.raises(RefusedError), filled.session(ALICE) as session:
        attempt(session)
    assert names(filled, SYSTEM) == before
    assert names(filled, ALICE) == {"one", "two"}


def test_postgresql_hides_foreign_rows_even_from_sql_by_hand(filled):
    if not filled.is_postgresql:
        pytest.skip("row-level security is PostgreSQL's")
    with filled.session(ALICE) as session:
        connection = session.connection()
        assert connection.exec_driver_sql("SELECT count(*) FROM computer_groups").scalar() == 2
        assert connection.exec_driver_sql("UPDATE computer_groups SET name = 'x'").rowcount == 2
        assert connection.exec_driver_sql("DELETE FROM computer_groups").rowcount == 2
    with filled.engine.begin() as connection:
        # A transaction that names no tenant sees nothing, also after others used the same connection.
        assert connection.exec_driver_sql("SELECT count(*) FROM computer_groups").scalar() == 0
    with filled.session(ALICE) as session, pytest.raises(DBAPIError, match="row-level security"):
        session.connection().exec_driver_sql(
            "INSERT INTO computer_groups (id, tenant_id, parent_key, name, name_key, version) VALUES ('x', 'b', '', 'x', 'x', 1)"
        )


def test_every_table_of_a_tenants_rows_has_forced_row_security_on_postgresql(database):
    if not database.is_postgresql:
        pytest.skip("row-level security is PostgreSQL's")
    complete_metadata()
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity")
        protected = {row[0] for row in rows}
        role = connection.exec_driver_sql("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user").scalar()
    assert protected == {table.name for table in tenant_tables()}
    assert role is False, "as a superuser these tests would prove nothing"


def test_every_table_has_a_tenant_but_what_is_of_nobody():
    metadata = complete_metadata()
    without = {table.name for table in metadata.sorted_tables} - {table.name for table in tenant_tables()}
    assert without == {"tenants", "shipped_rules"}, "shipped rules are the same for everybody"
    assert all(not table.c.tenant_id.nullable for table in tenant_tables())


def test_a_session_that_only_reads_refuses_to_write(database):
    with pytest.raises(RefusedError, match="writes=False"), database.session(ALICE, writes=False) as session:
        session.add(group("a", "x"))


def test_the_second_of_two_who_change_the_same_row_is_told(filled):
    with filled.session(ALICE, writes=False) as session:
        mine = session.scalars(select(GroupRecord).where(GroupRecord.name == "one")).one()
    with filled.session(ALICE) as session:
        session.get(GroupRecord, mine.id).name = "changed"
    with pytest.raises(InputError) as caught, filled.session(ALICE) as session:  # noqa: PT012
        session.add(mine)
        mine.name = "late"
    assert caught.value.code == "changed_meanwhile"
    assert names(filled, ALICE) == {"changed", "two"}


def test_an_error_rolls_everything_back(filled):
    with pytest.raises(ZeroDivisionError), filled.session(ALICE) as session:  # noqa: PT012
        session.add(group("a", "half"))
        session.flush()
        raise ZeroDivisionError
    assert names(filled, ALICE) == {"one", "two"}


def test_writers_wait_for_each_other_and_lose_nothing(filled):
    errors = []

    def write(number):
        try:
            for step in range(5):
                with filled.session(ALICE) as session:
                    count = session.scalar(select(func.count()).select_from(GroupRecord))
                    session.add(group("a", f"{number}-{step}-{count}"))
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(names(filled, ALICE)) == 42


def test_the_migrated_schema_is_the_one_that_the_code_expects(database):
    metadata = complete_metadata()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        difference = compare_metadata(context, metadata)
    assert difference == [], "run python -m keibi.manager.migrations.generate"


def test_migrating_twice_changes_nothing(database):
    database.migrate()
    database.migrate()


def test_two_managers_that_migrate_an_empty_database_at_once_both_succeed(request, tmp_path):
    for url in (f"sqlite:///{tmp_path}/new.sqlite3", request.getfixturevalue("postgresql_server").new_database()):
        errors = []

        def migrate(url=url, errors=errors):
            database = Database(url)
            try:
                database.migrate()
            except Exception as error:  # noqa: BLE001 - shown by the assertion
                errors.append(error)
            finally:
                database.dispose()

        threads = [threading.Thread(target=migrate) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


def test_a_database_of_a_newer_manager_is_left_alone(database):
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InputError, match="9999") as caught:
        database.migrate()
    assert "newer manager" in caught.value.hint


def test_an_unknown_or_absent_database_is_told_plainly(tmp_path):
    with pytest.raises(InputError, match="mysql"):
        Database("mysql://x/y")
    with pytest.raises(InputError, match="not the address"):
        Database("nonsense")
    for url in (f"sqlite:///{tmp_path}/no/such/directory/x.db", f"postgresql://keibi@/x?host={tmp_path}"):
        database = Database(url)
        with pytest.raises(TryLaterError) as caught, database.session(SYSTEM) as session:
            session.scalar(select(func.count()).select_from(GroupRecord))
        assert caught.value.code == "database_away"
        database.dispose()


SOURCES = sorted(pathlib.Path(keibi.manager.__file__).parent.rglob("*.py"))
FREE = {"database.py", "schema.py"}
"""The wall itself, and migrations, work on tables."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_feature_goes_round_the_session(path):
    if path.name in FREE or "migrations" in path.parts:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {
                "__table__",
                "bulk_save_objects",
                "bulk_insert_mappings",
                "bulk_update_mappings",
                "exec_driver_sql",
            }, f"{path.name}:{node.lineno} uses {node.attr}, which passes the tenants' wall"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy"):
            names = {alias.name for alias in node.names}
            assert not names & {"Table", "table", "text", "TextClause", "create_engine"}, (
                f"{path.name}:{node.lineno} imports {names}: select ORM classes in a session"
            )


def test_every_class_with_a_tenant_column_is_a_tenant_row():
    complete_metadata()
    for mapper in Table.registry.mappers:
        assert ("tenant_id" in mapper.columns) == issubclass(mapper.class_, TenantRow), mapper.class_.__name__
