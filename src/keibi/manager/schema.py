"""The list of all tables: importing this module makes `Table.metadata` complete. A new feature's tables are a line here."""

import importlib

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
    "keibi.manager.patterns.tables",
    "keibi.manager.events.tables",
    "keibi.manager.software.tables",
)


def complete_metadata() -> MetaData:
    """Import every feature's tables and return the schema that they make together."""
    for name in TABLE_MODULES:
        importlib.import_module(name)
    return Table.metadata
