"""The table of decisions about software."""

from sqlalchemy import Float, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, TenantRow, VersionedRow


class DecisionRecord(TenantRow, VersionedRow, Table):
    """A decision as it was made. What holds now stands in the rulesets; this is for looking back, and for undoing."""

    __tablename__ = "software_decisions"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    action: Mapped[str] = mapped_column(String(20), nullable=False)
    entries: Mapped[str] = mapped_column(Text, nullable=False)  # JSON of rules.Entry, those that were added
    removed: Mapped[str] = mapped_column(Text, nullable=False)  # JSON: ruleset -> entries taken out, which said the opposite
    rule_ids: Mapped[str] = mapped_column(Text, nullable=False)  # joined by spaces
    policies: Mapped[str] = mapped_column(Text, nullable=False)  # JSON: paths of the policies that were chosen
    note: Mapped[str] = mapped_column(Text, nullable=False, default="")
    computer_count: Mapped[int] = mapped_column(Integer, nullable=False)
    decided_at: Mapped[float] = mapped_column(Float(53), nullable=False, index=True)
    decided_by: Mapped[str] = mapped_column(String(300), nullable=False)
    undone_at: Mapped[float | None] = mapped_column(Float(53), nullable=True)
    undone_by: Mapped[str] = mapped_column(String(300), nullable=False, default="")
