"""The tables of users, roles, grants, sessions and API keys."""

from sqlalchemy import Boolean, Float, ForeignKey, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, TenantRow, VersionedRow


class UserRecord(TenantRow, VersionedRow, Table):
    """A person. `tenant_id` is the tenant whose administrators keep the account; grants say what it reaches."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), nullable=False)
    name_key: Mapped[str] = mapped_column(String(100), nullable=False, unique=True)  # casefolded; unique over all tenants
    full_name: Mapped[str] = mapped_column(String(200), nullable=False, default="")
    email: Mapped[str] = mapped_column(String(254), nullable=False, default="")
    password_hash: Mapped[str] = mapped_column(String(300), nullable=False)
    password_changed_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    must_change_password: Mapped[bool] = mapped_column(Boolean, nullable=False, default=False)
    is_enabled: Mapped[bool] = mapped_column(Boolean, nullable=False, default=True)
    language: Mapped[str] = mapped_column(String(8), nullable=False, default="en")
    theme: Mapped[str] = mapped_column(String(16), nullable=False, default="system")
    time_zone: Mapped[str] = mapped_column(String(64), nullable=False, default="UTC")
    created_at: Mapped[float] = mapped_column(Float(53), nullable=False)


class SignInRecord(TenantRow, Table):
    """What changes with every sign-in, apart from UserRecord so that nobody's edit conflicts with it."""

    __tablename__ = "user_sign_ins"

    id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer, nullable=False, default=0)
    locked_until_at: Mapped[float] = mapped_column(Float(53), nullable=False, default=0.0)
    last_sign_in_at: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    last_address: Mapped[str] = mapped_column(String(64), nullable=False, default="")
    totp_secret: Mapped[bytes | None] = mapped_column(LargeBinary, nullable=True)  # encrypted with the key file
    totp_is_confirmed: Mapped[bool] = mapped_column(Boolean, nullable=False, default=False)
    totp_last_step: Mapped[int] = mapped_column(Integer, nullable=False, default=0)  # a code counts once
    recovery_hashes: Mapped[str] = mapped_column(Text, nullable=False, default="[]")  # JSON of SHA-256 hex


class RoleRecord(TenantRow, VersionedRow, Table):
    """A tenant's own role; the built-in ones are in `access.model`."""

    __tablename__ = "roles"
    __table_args__ = (UniqueConstraint("tenant_id", "name_key"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), nullable=False)
    name_key: Mapped[str] = mapped_column(String(100), nullable=False)
    description: Mapped[str] = mapped_column(Text, nullable=False, default="")
    permissions: Mapped[str] = mapped_column(Text, nullable=False)  # joined by spaces


class GrantRecord(TenantRow, Table):
    """A role given to a user. `tenant_id` is the user's own; `on_tenant_id` where the role counts (None: everywhere)."""

    __tablename__ = "grants"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True)
    role_id: Mapped[str] = mapped_column(String(ID_LENGTH), nullable=False)
    on_tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenants.id"), nullable=True)
    on_group_id: Mapped[str | None] = mapped_column(
        ForeignKey("computer_groups.id", ondelete="CASCADE"), nullable=True, index=True
    )
    created_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    created_by: Mapped[str] = mapped_column(String(300), nullable=False)


class SessionRecord(TenantRow, Table):
    """A signed-in browser. The cookie's value is not kept, only its hash."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of the cookie's value, hex
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True)
    created_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    last_used_at: Mapped[float] = mapped_column(Float(53), nullable=False, index=True)
    expires_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    address: Mapped[str] = mapped_column(String(64), nullable=False)
    user_agent: Mapped[str] = mapped_column(String(300), nullable=False, default="")
    chosen_tenant_id: Mapped[str | None] = mapped_column(String(ID_LENGTH), nullable=True)


class ApiKeyRecord(TenantRow, Table):
    """A program's key. It can do what its role allows in its tenant, and never more than its owner can at that moment."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), nullable=False)
    prefix: Mapped[str] = mapped_column(String(16), nullable=False)
    hash: Mapped[bytes] = mapped_column(LargeBinary(32), nullable=False, unique=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True)
    role_id: Mapped[str] = mapped_column(String(ID_LENGTH), nullable=False)
    created_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    created_by: Mapped[str] = mapped_column(String(300), nullable=False)
    expires_at: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    last_used_at: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    is_revoked: Mapped[bool] = mapped_column(Boolean, nullable=False, default=False)
