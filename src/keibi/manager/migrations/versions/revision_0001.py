"""The first schema: every feature's tables, row-level security, and an append-only audit trail."""

from alembic import op

from keibi.manager.database import tenant_tables
from keibi.manager.migrations.append_only import forbid_changes
from keibi.manager.migrations.row_security import protect_rows
from keibi.manager.schema import complete_metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all of it."""
    connection = op.get_bind()
    complete_metadata().create_all(connection)
    protect_rows(connection, sorted(table.name for table in tenant_tables()))
    forbid_changes(connection, "audit_records")
