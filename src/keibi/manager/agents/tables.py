"""The tables of enrolment tokens, revocations and commands."""

from sqlalchemy import Boolean, Float, ForeignKey, Index, Integer, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, TenantRow


class EnrolmentTokenRecord(TenantRow, Table):
    """One enrolment token; the token itself is shown once and only its hash is kept."""

    __tablename__ = "enrolment_tokens"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), nullable=False)
    prefix: Mapped[str] = mapped_column(String(16), nullable=False)
    hash: Mapped[bytes] = mapped_column(LargeBinary(32), nullable=False, unique=True)
    group_id: Mapped[str | None] = mapped_column(ForeignKey("computer_groups.id"), nullable=True)
    policy_id: Mapped[str | None] = mapped_column(String(ID_LENGTH), nullable=True)
    created_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    created_by: Mapped[str] = mapped_column(String(300), nullable=False)
    expires_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    max_uses: Mapped[int] = mapped_column(Integer, nullable=False)
    uses: Mapped[int] = mapped_column(Integer, nullable=False, default=0)
    is_revoked: Mapped[bool] = mapped_column(Boolean, nullable=False, default=False)


class RevocationRecord(TenantRow, Table):
    """Access tokens of this subject issued at or before `at` are worthless. Kept as long as such a token could last."""

    __tablename__ = "revocations"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)  # a computer's or a tenant's id
    at: Mapped[float] = mapped_column(Float(53), nullable=False, index=True)


class CommandRecord(TenantRow, Table):
    """One command to one agent and what came of it. The computer's id is no foreign key: history outlives the computer."""

    __tablename__ = "commands"
    __table_args__ = (
        Index("ix_commands_waiting", "computer_id", "state"),
        Index("ix_commands_newest", "tenant_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    computer_id: Mapped[str] = mapped_column(String(ID_LENGTH), nullable=False)
    computer_name: Mapped[str] = mapped_column(String(255), nullable=False)
    group_id: Mapped[str | None] = mapped_column(String(ID_LENGTH), nullable=True)
    kind: Mapped[str] = mapped_column(String(40), nullable=False)
    module: Mapped[str] = mapped_column(String(40), nullable=False, default="")
    arguments: Mapped[str] = mapped_column(Text, nullable=False, default="{}")  # JSON
    state: Mapped[str] = mapped_column(String(12), nullable=False)
    created_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    created_by: Mapped[str] = mapped_column(String(300), nullable=False)
    expires_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    sent_at: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    updated_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    finished_at: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    message: Mapped[str] = mapped_column(Text, nullable=False, default="")
    progress: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    result: Mapped[str] = mapped_column(Text, nullable=False, default="{}")  # JSON
