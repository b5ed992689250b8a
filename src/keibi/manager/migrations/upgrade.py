"""Runs Alembic from the program, on a connection that it is given; no alembic.ini and no shell command."""

import os

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from keibi.errors import InputError

# One number for every manager that shares the database; nobody else takes advisory locks there.
_ADVISORY_LOCK = 0x6B656962


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for this package's revisions on `connection`."""
    config = Config()
    config.set_main_option("script_location", os.path.dirname(__file__).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Apply the revisions that the database does not have yet, in the transaction of `connection`.

    Raises:
        InputError: the database was made by a newer manager.
    """
    config = alembic_config(connection)
    if connection.dialect.name == "postgresql":
        # Two managers that start at the same moment: the second waits and then finds nothing to do.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        # The revisions may move rows, of every tenant.
        connection.execute(text("SELECT set_config('keibi.tenants', '*', true)"))
    current = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(config)
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise InputError(
            "schema_newer",
            f"the database has the schema {current!r}, which this manager does not know",
            hint="a newer manager has used it: run that one, or restore a backup from before",
        )
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise InputError("schema_unknown", f"the database's schema cannot be brought up to date: {error}") from error
