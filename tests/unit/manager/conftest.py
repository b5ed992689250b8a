"""Databases for every test of the manager."""

from tests.manager_fixtures import database, database_url, postgresql_server, sqlite_template

__all__ = ["database", "database_url", "postgresql_server", "sqlite_template"]
