"""The schema's history, as Alembic revisions in `versions/`. `keibi.manager.database.Database.migrate` applies them."""
