"""Pattern sets and their versions."""

import sqlalchemy as sa
from alembic import op

from keibi.manager.migrations.row_security import protect_rows

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "pattern_sets",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("current_number", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_by", sa.String(length=300), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pattern_sets")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_pattern_sets_tenant_id_name")),
    )
    op.create_index(op.f("ix_pattern_sets_tenant_id"), "pattern_sets", ["tenant_id"], unique=False)
    op.create_table(
        "pattern_versions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("set_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("file_name", sa.String(length=300), nullable=False),
        sa.Column("licence", sa.Text(), nullable=False),
        sa.Column("contents", sa.Text(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("imported_at", sa.Float(precision=53), nullable=False),
        sa.Column("imported_by", sa.String(length=300), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["set_id"], ["pattern_sets.id"], name=op.f("fk_pattern_versions_set_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pattern_versions")),
        sa.UniqueConstraint("set_id", "number", name=op.f("uq_pattern_versions_set_id_number")),
    )
    op.create_index(op.f("ix_pattern_versions_set_id"), "pattern_versions", ["set_id"], unique=False)
    op.create_index(op.f("ix_pattern_versions_tenant_id"), "pattern_versions", ["tenant_id"], unique=False)
    protect_rows(op.get_bind(), ("pattern_sets", "pattern_versions"))
