"""The list of all tables: importing this module makes `Table.metadata` complete. A new feature's tables are a line here."""

import importlib
import importlib.util

from sqlalchemy import MetaData

from keibi.manager.database import Table

TABLE_MODULES = (
    "keibi.manager.tenants.tables",
    "keibi.manager.audit.tables",
    "keibi.manager.access.tables",
    "keibi.manager.computers.tables",
    "keibi.manager.agents.tables",
    "keibi.manager.rules.tables",
    "keibi.manager.policies.tables",
    "keibi.manager.events.tables",
)


def complete_metadata() -> MetaData:
    """Import every feature's tables and return the schema that they make together."""
    for name in TABLE_MODULES:
        if importlib.util.find_spec(name.rpartition(".")[0]) and importlib.util.find_spec(name):
            importlib.import_module(name)
    return Table.metadata
