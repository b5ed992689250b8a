"""The tables of computers, their reports, groups and identity alarms."""

from sqlalchemy import Boolean, Float, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, TenantRow, VersionedRow


class GroupRecord(TenantRow, VersionedRow, Table):
    """A group of computers; grants and enrolment tokens may name it."""

    __tablename__ = "computer_groups"
    __table_args__ = (UniqueConstraint("tenant_id", "parent_key", "name_key"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("computer_groups.id"), nullable=True)
    parent_key: Mapped[str] = mapped_column(String(ID_LENGTH), nullable=False)  # parent_id or "": NULLs are never equal
    name: Mapped[str] = mapped_column(String(200), nullable=False)
    name_key: Mapped[str] = mapped_column(String(200), nullable=False)  # casefolded


class ComputerRecord(TenantRow, VersionedRow, Table):
    """What people decide about a computer, and its key."""

    __tablename__ = "computers"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    display_name: Mapped[str] = mapped_column(String(255), nullable=False)
    group_id: Mapped[str | None] = mapped_column(ForeignKey("computer_groups.id"), nullable=True, index=True)
    policy_id: Mapped[str | None] = mapped_column(String(ID_LENGTH), nullable=True, index=True)  # None: the tenant's default
    importance: Mapped[str] = mapped_column(String(10), nullable=False, default="normal")
    tags: Mapped[str] = mapped_column(Text, nullable=False, default="")  # "|web|db|": LIKE '%|web|%' finds one
    note: Mapped[str] = mapped_column(Text, nullable=False, default="")
    is_enabled: Mapped[bool] = mapped_column(Boolean, nullable=False, default=True)
    public_key: Mapped[bytes] = mapped_column(LargeBinary(32), nullable=False, unique=True)
    machine_id: Mapped[str] = mapped_column(String(64), nullable=False, index=True)
    enrolled_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    enrolment_token_id: Mapped[str] = mapped_column(String(ID_LENGTH), nullable=False, default="")


class ReportRecord(TenantRow, Table):
    """What a computer's agent says, written with every heartbeat; apart from ComputerRecord so that nobody's edit conflicts."""

    __tablename__ = "computer_reports"
    __table_args__ = (Index("ix_computer_reports_heartbeat", "tenant_id", "last_heartbeat_at"),)

    id: Mapped[str] = mapped_column(ForeignKey("computers.id", ondelete="CASCADE"), primary_key=True)
    last_heartbeat_at: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    heartbeat_seconds: Mapped[int] = mapped_column(Integer, nullable=False, default=60)
    hostname: Mapped[str] = mapped_column(String(255), nullable=False, index=True)
    os_name: Mapped[str] = mapped_column(String(64), nullable=False, default="")
    os_version: Mapped[str] = mapped_column(String(64), nullable=False, default="")
    os_pretty_name: Mapped[str] = mapped_column(String(200), nullable=False, default="")
    addresses: Mapped[str] = mapped_column(Text, nullable=False, default="")  # joined by spaces, for searching
    agent_version: Mapped[str] = mapped_column(String(64), nullable=False, default="")
    facts: Mapped[str] = mapped_column(Text, nullable=False, default="")  # JSON of contract.enrolment.ComputerFacts
    facts_digest: Mapped[str] = mapped_column(String(128), nullable=False, default="")
    status: Mapped[str] = mapped_column(Text, nullable=False, default="")  # JSON of contract.status.AgentStatus
    status_digest: Mapped[str] = mapped_column(String(128), nullable=False, default="")
    status_at: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    problems: Mapped[str] = mapped_column(Text, nullable=False, default="[]")  # JSON of computers.model.Problem
    problem_count: Mapped[int] = mapped_column(Integer, nullable=False, default=0)
    drift_count: Mapped[int] = mapped_column(Integer, nullable=False, default=0)
    generation_wanted: Mapped[int] = mapped_column(Integer, nullable=False, default=0)
    generation_wanted_at: Mapped[float] = mapped_column(Float(53), nullable=False, default=0.0)
    generation_received: Mapped[int] = mapped_column(Integer, nullable=False, default=0)
    generation_in_force: Mapped[int] = mapped_column(Integer, nullable=False, default=0)


class IdentityAlarmRecord(TenantRow, Table):
    """An identity that was seen twice: a copied disk, a stolen key, or a computer that was set up anew."""

    __tablename__ = "identity_alarms"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    computer_id: Mapped[str] = mapped_column(ForeignKey("computers.id", ondelete="CASCADE"), nullable=False, index=True)
    kind: Mapped[str] = mapped_column(String(40), nullable=False)
    detail: Mapped[str] = mapped_column(Text, nullable=False)
    first_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    last_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    count: Mapped[int] = mapped_column(Integer, nullable=False, default=1)
    resolved_at: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    resolved_by: Mapped[str] = mapped_column(String(300), nullable=False, default="")
