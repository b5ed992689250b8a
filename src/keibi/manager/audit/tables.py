"""The table of audit records and the heads of their chains."""

from sqlalchemy import Float, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, TenantRow


class AuditRecord(TenantRow, Table):
    """One thing that somebody did. Append-only: triggers refuse the rest."""

    __tablename__ = "audit_records"
    __table_args__ = (UniqueConstraint("tenant_id", "number"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, nullable=False)  # 1, 2, 3 … within the tenant
    at: Mapped[float] = mapped_column(Float(53), nullable=False, index=True)
    actor: Mapped[str] = mapped_column(String(300), nullable=False)
    action: Mapped[str] = mapped_column(String(100), nullable=False)
    target_type: Mapped[str] = mapped_column(String(100), nullable=False)
    target_id: Mapped[str] = mapped_column(String(200), nullable=False)
    summary: Mapped[str] = mapped_column(Text, nullable=False)
    detail: Mapped[str] = mapped_column(Text, nullable=False)  # canonical JSON
    previous_hash: Mapped[bytes] = mapped_column(LargeBinary(32), nullable=False)
    hash: Mapped[bytes] = mapped_column(LargeBinary(32), nullable=False)


class AuditHead(TenantRow, Table):
    """The end of each tenant's chain: the row that writers of one tenant wait for, so that the chain never forks."""

    __tablename__ = "audit_heads"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)  # the tenant's id
    number: Mapped[int] = mapped_column(Integer, nullable=False)
    hash: Mapped[bytes] = mapped_column(LargeBinary(32), nullable=False)
