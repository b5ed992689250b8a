"""Decisions about software."""

import sqlalchemy as sa
from alembic import op

from keibi.manager.migrations.row_security import protect_rows

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "software_decisions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.Column("entries", sa.Text(), nullable=False),
        sa.Column("removed", sa.Text(), nullable=False),
        sa.Column("rule_ids", sa.Text(), nullable=False),
        sa.Column("policies", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("computer_count", sa.Integer(), nullable=False),
        sa.Column("decided_at", sa.Float(precision=53), nullable=False),
        sa.Column("decided_by", sa.String(length=300), nullable=False),
        sa.Column("undone_at", sa.Float(precision=53), nullable=True),
        sa.Column("undone_by", sa.String(length=300), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_software_decisions")),
    )
    op.create_index(op.f("ix_software_decisions_decided_at"), "software_decisions", ["decided_at"], unique=False)
    op.create_index(op.f("ix_software_decisions_tenant_id"), "software_decisions", ["tenant_id"], unique=False)
    protect_rows(op.get_bind(), ("software_decisions",))
