"""The table of tenants."""

from sqlalchemy import Boolean, Float, String
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, VersionedRow


class TenantRecord(VersionedRow, Table):
    """One customer. Not a TenantRow: the list of tenants is the system's own, and its service shows each caller theirs."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), nullable=False)
    name_key: Mapped[str] = mapped_column(String(200), nullable=False, unique=True)  # casefolded
    is_enabled: Mapped[bool] = mapped_column(Boolean, nullable=False, default=True)
    created_at: Mapped[float] = mapped_column(Float(53), nullable=False)
