"""Writes the first revision anew from the tables: `python -m keibi.manager.migrations.generate`.

For the time before the first release, when no database needs to be brought from one schema to the next. Afterwards every
change of a table is a revision of its own.
"""

import os
import re

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from keibi.manager.database import tenant_tables
from keibi.manager.schema import complete_metadata

PATH = os.path.join(os.path.dirname(__file__), "versions", "revision_0001.py")

_HEAD = '''"""The first schema: every feature's tables, row-level security, and an append-only audit trail.

Written by `python -m keibi.manager.migrations.generate`.
"""

import sqlalchemy as sa
from alembic import op

from keibi.manager.migrations.append_only import forbid_changes
from keibi.manager.migrations.row_security import protect_rows

revision = "0001"
down_revision = None

TENANT_TABLES = (
{tables})
"""Tables whose rows belong to one tenant."""


def upgrade() -> None:
    """Make all of it."""
{body}
    protect_rows(op.get_bind(), TENANT_TABLES)
    forbid_changes(op.get_bind(), "audit_records")
'''


def source_of_first_revision() -> str:
    """Return the first revision as Python source, not yet formatted."""
    metadata = complete_metadata()
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": metadata})
        script = produce_migrations(context, metadata)
        operations = script.upgrade_ops
        if operations is None:
            raise ValueError("Alembic found nothing to make")
        body = render_python_code(operations, migration_context=context)
    engine.dispose()
    body = "\n".join(line for line in body.splitlines() if not line.strip().startswith("#"))
    tables = "".join(f'    "{name}",\n' for name in sorted(table.name for table in tenant_tables()))
    return _HEAD.format(tables=tables, body=_indented(body))


def _indented(body: str) -> str:
    lines = body.splitlines()
    return "\n".join(line if line.startswith("    ") or not line else f"    {line}" for line in lines)


def main() -> None:
    """Write the file."""
    with open(PATH, "w") as file:
        file.write(re.sub(r"[ \t]+\n", "\n", source_of_first_revision()))


if __name__ == "__main__":
    main()
