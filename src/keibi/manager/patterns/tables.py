"""The tables of pattern sets and their versions. The provider's, shared with all customers, belong to `SHARED`."""

from sqlalchemy import Float, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, TenantRow, VersionedRow

SHARED = "shared"
"""Stands where a tenant's id does, for sets that every customer may use. No tenant has it: ids have 32 hexadecimal digits."""


class PatternSetRecord(TenantRow, VersionedRow, Table):
    """One set as it is now."""

    __tablename__ = "pattern_sets"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), nullable=False)
    description: Mapped[str] = mapped_column(Text, nullable=False, default="")
    current_number: Mapped[int] = mapped_column(Integer, nullable=False)
    changed_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    changed_by: Mapped[str] = mapped_column(String(300), nullable=False)


class PatternVersionRecord(TenantRow, Table):
    """What one import brought."""

    __tablename__ = "pattern_versions"
    __table_args__ = (UniqueConstraint("set_id", "number"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    set_id: Mapped[str] = mapped_column(ForeignKey("pattern_sets.id", ondelete="CASCADE"), nullable=False, index=True)
    number: Mapped[int] = mapped_column(Integer, nullable=False)
    file_name: Mapped[str] = mapped_column(String(300), nullable=False)
    licence: Mapped[str] = mapped_column(Text, nullable=False, default="")  # as the importing person names it
    contents: Mapped[str] = mapped_column(Text, nullable=False)  # JSON of list[StoredContent]
    report: Mapped[str] = mapped_column(Text, nullable=False)  # JSON of importers.model.Report
    imported_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    imported_by: Mapped[str] = mapped_column(String(300), nullable=False)
