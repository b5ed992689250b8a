"""The first schema: every feature's tables, row-level security, and an append-only audit trail.

Written by `python -m keibi.manager.migrations.generate`.
"""

import sqlalchemy as sa
from alembic import op

from keibi.manager.migrations.append_only import forbid_changes
from keibi.manager.migrations.row_security import protect_rows

revision = "0001"
down_revision = None

TENANT_TABLES = (
    "api_keys",
    "audit_heads",
    "audit_records",
    "commands",
    "computer_groups",
    "computer_overrides",
    "computer_reports",
    "computers",
    "enrolment_tokens",
    "event_retention",
    "grants",
    "identity_alarms",
    "own_rule_versions",
    "own_rules",
    "policies",
    "policy_generations",
    "policy_revisions",
    "policy_versions",
    "revocations",
    "roles",
    "sessions",
    "user_sign_ins",
    "users",
)
"""Tables whose rows belong to one tenant."""


def upgrade() -> None:
    """Make all of it."""
    op.create_table(
        "audit_heads",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_heads")),
    )
    op.create_index(op.f("ix_audit_heads_tenant_id"), "audit_heads", ["tenant_id"], unique=False)
    op.create_table(
        "audit_records",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("actor", sa.String(length=300), nullable=False),
        sa.Column("action", sa.String(length=100), nullable=False),
        sa.Column("target_type", sa.String(length=100), nullable=False),
        sa.Column("target_id", sa.String(length=200), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_records")),
        sa.UniqueConstraint("tenant_id", "number", name=op.f("uq_audit_records_tenant_id_number")),
    )
    op.create_index(op.f("ix_audit_records_at"), "audit_records", ["at"], unique=False)
    op.create_index(op.f("ix_audit_records_tenant_id"), "audit_records", ["tenant_id"], unique=False)
    op.create_table(
        "commands",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("computer_id", sa.String(length=32), nullable=False),
        sa.Column("computer_name", sa.String(length=255), nullable=False),
        sa.Column("group_id", sa.String(length=32), nullable=True),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("module", sa.String(length=40), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("created_by", sa.String(length=300), nullable=False),
        sa.Column("expires_at", sa.Float(precision=53), nullable=False),
        sa.Column("sent_at", sa.Float(precision=53), nullable=True),
        sa.Column("updated_at", sa.Float(precision=53), nullable=False),
        sa.Column("finished_at", sa.Float(precision=53), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("progress", sa.Float(precision=53), nullable=True),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commands")),
    )
    op.create_index("ix_commands_newest", "commands", ["tenant_id", "created_at"], unique=False)
    op.create_index(op.f("ix_commands_tenant_id"), "commands", ["tenant_id"], unique=False)
    op.create_index("ix_commands_waiting", "commands", ["computer_id", "state"], unique=False)
    op.create_table(
        "computer_groups",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("parent_id", sa.String(length=32), nullable=True),
        sa.Column("parent_key", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("name_key", sa.String(length=200), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["computer_groups.id"], name=op.f("fk_computer_groups_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_computer_groups")),
        sa.UniqueConstraint("tenant_id", "parent_key", "name_key", name=op.f("uq_computer_groups_tenant_id_parent_key_name_key")),
    )
    op.create_index(op.f("ix_computer_groups_tenant_id"), "computer_groups", ["tenant_id"], unique=False)
    op.create_table(
        "event_retention",
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("module", sa.String(length=40), nullable=False),
        sa.Column("days", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_by", sa.String(length=300), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "module", name=op.f("pk_event_retention")),
    )
    op.create_table(
        "own_rule_versions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("rule_id", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("module", sa.String(length=40), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_by", sa.String(length=300), nullable=False),
        sa.Column("what", sa.String(length=20), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_own_rule_versions")),
        sa.UniqueConstraint("tenant_id", "rule_id", "version", name=op.f("uq_own_rule_versions_tenant_id_rule_id_version")),
    )
    op.create_index(op.f("ix_own_rule_versions_tenant_id"), "own_rule_versions", ["tenant_id"], unique=False)
    op.create_table(
        "own_rules",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("rule_id", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("module", sa.String(length=40), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_by", sa.String(length=300), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_own_rules")),
        sa.UniqueConstraint("tenant_id", "rule_id", name=op.f("uq_own_rules_tenant_id_rule_id")),
    )
    op.create_index(op.f("ix_own_rules_tenant_id"), "own_rules", ["tenant_id"], unique=False)
    op.create_table(
        "policies",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("parent_id", sa.String(length=32), nullable=True),
        sa.Column("parent_key", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("name_key", sa.String(length=100), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("template", sa.String(length=40), nullable=False),
        sa.Column("overrides", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_by", sa.String(length=300), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["policies.id"], name=op.f("fk_policies_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policies")),
        sa.UniqueConstraint("tenant_id", "parent_key", "name_key", name=op.f("uq_policies_tenant_id_parent_key_name_key")),
    )
    op.create_index(op.f("ix_policies_parent_id"), "policies", ["parent_id"], unique=False)
    op.create_index(op.f("ix_policies_tenant_id"), "policies", ["tenant_id"], unique=False)
    op.create_table(
        "policy_revisions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy_revisions")),
    )
    op.create_index(op.f("ix_policy_revisions_tenant_id"), "policy_revisions", ["tenant_id"], unique=False)
    op.create_table(
        "policy_versions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("policy_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=32), nullable=True),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("overrides", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_by", sa.String(length=300), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy_versions")),
        sa.UniqueConstraint("policy_id", "version", name=op.f("uq_policy_versions_policy_id_version")),
    )
    op.create_index(op.f("ix_policy_versions_tenant_id"), "policy_versions", ["tenant_id"], unique=False)
    op.create_table(
        "revocations",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revocations")),
    )
    op.create_index(op.f("ix_revocations_at"), "revocations", ["at"], unique=False)
    op.create_index(op.f("ix_revocations_tenant_id"), "revocations", ["tenant_id"], unique=False)
    op.create_table(
        "roles",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("name_key", sa.String(length=100), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("permissions", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_roles")),
        sa.UniqueConstraint("tenant_id", "name_key", name=op.f("uq_roles_tenant_id_name_key")),
    )
    op.create_index(op.f("ix_roles_tenant_id"), "roles", ["tenant_id"], unique=False)
    op.create_table(
        "shipped_rules",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("rule_id", sa.String(length=100), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("module", sa.String(length=40), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shipped_rules")),
        sa.UniqueConstraint("rule_id", "version", "digest", name=op.f("uq_shipped_rules_rule_id_version_digest")),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("name_key", sa.String(length=200), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name_key", name=op.f("uq_tenants_name_key")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("name_key", sa.String(length=100), nullable=False),
        sa.Column("full_name", sa.String(length=200), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("password_hash", sa.String(length=300), nullable=False),
        sa.Column("password_changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("must_change_password", sa.Boolean(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("language", sa.String(length=8), nullable=False),
        sa.Column("theme", sa.String(length=16), nullable=False),
        sa.Column("time_zone", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name_key", name=op.f("uq_users_name_key")),
    )
    op.create_index(op.f("ix_users_tenant_id"), "users", ["tenant_id"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("role_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("created_by", sa.String(length=300), nullable=False),
        sa.Column("expires_at", sa.Float(precision=53), nullable=True),
        sa.Column("last_used_at", sa.Float(precision=53), nullable=True),
        sa.Column("is_revoked", sa.Boolean(), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("hash", name=op.f("uq_api_keys_hash")),
    )
    op.create_index(op.f("ix_api_keys_tenant_id"), "api_keys", ["tenant_id"], unique=False)
    op.create_index(op.f("ix_api_keys_user_id"), "api_keys", ["user_id"], unique=False)
    op.create_table(
        "computers",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("display_name", sa.String(length=255), nullable=False),
        sa.Column("group_id", sa.String(length=32), nullable=True),
        sa.Column("policy_id", sa.String(length=32), nullable=True),
        sa.Column("importance", sa.String(length=10), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("machine_id", sa.String(length=64), nullable=False),
        sa.Column("enrolled_at", sa.Float(precision=53), nullable=False),
        sa.Column("enrolment_token_id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["computer_groups.id"], name=op.f("fk_computers_group_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_computers")),
        sa.UniqueConstraint("public_key", name=op.f("uq_computers_public_key")),
    )
    op.create_index(op.f("ix_computers_group_id"), "computers", ["group_id"], unique=False)
    op.create_index(op.f("ix_computers_machine_id"), "computers", ["machine_id"], unique=False)
    op.create_index(op.f("ix_computers_policy_id"), "computers", ["policy_id"], unique=False)
    op.create_index(op.f("ix_computers_tenant_id"), "computers", ["tenant_id"], unique=False)
    op.create_table(
        "enrolment_tokens",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("group_id", sa.String(length=32), nullable=True),
        sa.Column("policy_id", sa.String(length=32), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("created_by", sa.String(length=300), nullable=False),
        sa.Column("expires_at", sa.Float(precision=53), nullable=False),
        sa.Column("max_uses", sa.Integer(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("is_revoked", sa.Boolean(), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["computer_groups.id"], name=op.f("fk_enrolment_tokens_group_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrolment_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_enrolment_tokens_hash")),
    )
    op.create_index(op.f("ix_enrolment_tokens_tenant_id"), "enrolment_tokens", ["tenant_id"], unique=False)
    op.create_table(
        "grants",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("role_id", sa.String(length=32), nullable=False),
        sa.Column("on_tenant_id", sa.String(length=32), nullable=True),
        sa.Column("on_group_id", sa.String(length=32), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("created_by", sa.String(length=300), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["on_group_id"], ["computer_groups.id"], name=op.f("fk_grants_on_group_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["on_tenant_id"], ["tenants.id"], name=op.f("fk_grants_on_tenant_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_grants_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
    )
    op.create_index(op.f("ix_grants_on_group_id"), "grants", ["on_group_id"], unique=False)
    op.create_index(op.f("ix_grants_tenant_id"), "grants", ["tenant_id"], unique=False)
    op.create_index(op.f("ix_grants_user_id"), "grants", ["user_id"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("last_used_at", sa.Float(precision=53), nullable=False),
        sa.Column("expires_at", sa.Float(precision=53), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("user_agent", sa.String(length=300), nullable=False),
        sa.Column("chosen_tenant_id", sa.String(length=32), nullable=True),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_last_used_at"), "sessions", ["last_used_at"], unique=False)
    op.create_index(op.f("ix_sessions_tenant_id"), "sessions", ["tenant_id"], unique=False)
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"], unique=False)
    op.create_table(
        "user_sign_ins",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("locked_until_at", sa.Float(precision=53), nullable=False),
        sa.Column("last_sign_in_at", sa.Float(precision=53), nullable=True),
        sa.Column("last_address", sa.String(length=64), nullable=False),
        sa.Column("totp_secret", sa.LargeBinary(), nullable=True),
        sa.Column("totp_is_confirmed", sa.Boolean(), nullable=False),
        sa.Column("totp_last_step", sa.Integer(), nullable=False),
        sa.Column("recovery_hashes", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["users.id"], name=op.f("fk_user_sign_ins_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_sign_ins")),
    )
    op.create_index(op.f("ix_user_sign_ins_tenant_id"), "user_sign_ins", ["tenant_id"], unique=False)
    op.create_table(
        "computer_overrides",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("overrides", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_by", sa.String(length=300), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["computers.id"], name=op.f("fk_computer_overrides_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_computer_overrides")),
    )
    op.create_index(op.f("ix_computer_overrides_tenant_id"), "computer_overrides", ["tenant_id"], unique=False)
    op.create_table(
        "computer_reports",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("last_heartbeat_at", sa.Float(precision=53), nullable=True),
        sa.Column("heartbeat_seconds", sa.Integer(), nullable=False),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("os_name", sa.String(length=64), nullable=False),
        sa.Column("os_version", sa.String(length=64), nullable=False),
        sa.Column("os_pretty_name", sa.String(length=200), nullable=False),
        sa.Column("addresses", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("facts_digest", sa.String(length=128), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("status_digest", sa.String(length=128), nullable=False),
        sa.Column("status_at", sa.Float(precision=53), nullable=True),
        sa.Column("problems", sa.Text(), nullable=False),
        sa.Column("problem_count", sa.Integer(), nullable=False),
        sa.Column("drift_count", sa.Integer(), nullable=False),
        sa.Column("generation_wanted", sa.Integer(), nullable=False),
        sa.Column("generation_wanted_at", sa.Float(precision=53), nullable=False),
        sa.Column("generation_received", sa.Integer(), nullable=False),
        sa.Column("generation_in_force", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["computers.id"], name=op.f("fk_computer_reports_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_computer_reports")),
    )
    op.create_index("ix_computer_reports_heartbeat", "computer_reports", ["tenant_id", "last_heartbeat_at"], unique=False)
    op.create_index(op.f("ix_computer_reports_hostname"), "computer_reports", ["hostname"], unique=False)
    op.create_index(op.f("ix_computer_reports_tenant_id"), "computer_reports", ["tenant_id"], unique=False)
    op.create_table(
        "identity_alarms",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("computer_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("first_at", sa.Float(precision=53), nullable=False),
        sa.Column("last_at", sa.Float(precision=53), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("resolved_at", sa.Float(precision=53), nullable=True),
        sa.Column("resolved_by", sa.String(length=300), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["computer_id"], ["computers.id"], name=op.f("fk_identity_alarms_computer_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity_alarms")),
    )
    op.create_index(op.f("ix_identity_alarms_computer_id"), "identity_alarms", ["computer_id"], unique=False)
    op.create_index(op.f("ix_identity_alarms_tenant_id"), "identity_alarms", ["tenant_id"], unique=False)
    op.create_table(
        "policy_generations",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["computers.id"], name=op.f("fk_policy_generations_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy_generations")),
    )
    op.create_index(op.f("ix_policy_generations_tenant_id"), "policy_generations", ["tenant_id"], unique=False)
    protect_rows(op.get_bind(), TENANT_TABLES)
    forbid_changes(op.get_bind(), "audit_records")
