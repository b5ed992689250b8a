"""What Alembic runs: it gets the connection from `upgrade` and never opens one."""

from alembic import context

from keibi.manager.schema import complete_metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=complete_metadata(),
    # SQLite cannot alter a column: Alembic then copies the table.
    render_as_batch=True,
    compare_type=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
