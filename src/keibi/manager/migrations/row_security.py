"""Row-level security on PostgreSQL: the wall that stands when a query forgets the tenant."""

from collections.abc import Iterable

from sqlalchemy import Connection, text

# Read as: the transaction said '*' (the system), or the row's tenant is in its list. A transaction that said nothing
# compares with NULL, and so sees no row.
_CONDITION = (
    "current_setting('keibi.tenants', true) = '*'"
    " OR tenant_id = ANY (string_to_array(current_setting('keibi.tenants', true), ','))"
)


def protect_rows(connection: Connection, tables: Iterable[str]) -> None:
    """Let each of these tables show and take only rows of the transaction's tenants. Does nothing on SQLite.

    FORCE makes it hold for the tables' owner too; only a superuser passes, which the manager must not be.
    """
    if connection.dialect.name != "postgresql":
        return
    for table in tables:
        quoted = connection.dialect.identifier_preparer.quote(table)
        connection.execute(text(f"ALTER TABLE {quoted} ENABLE ROW LEVEL SECURITY"))
        connection.execute(text(f"ALTER TABLE {quoted} FORCE ROW LEVEL SECURITY"))
        connection.execute(text(f"CREATE POLICY tenant_rows ON {quoted} USING ({_CONDITION}) WITH CHECK ({_CONDITION})"))
