"""The tables of rules: versions of shipped rules, and own rules with their versions."""

from sqlalchemy import Float, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, TenantRow

RULE_ID_LENGTH = 100


class ShippedRuleRecord(Table):
    """One version of a shipped rule as this manager once had it. No TenantRow: it is the same for all."""

    __tablename__ = "shipped_rules"
    __table_args__ = (UniqueConstraint("rule_id", "version", "digest"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    rule_id: Mapped[str] = mapped_column(String(RULE_ID_LENGTH), nullable=False)
    version: Mapped[int] = mapped_column(Integer, nullable=False)
    digest: Mapped[str] = mapped_column(String(64), nullable=False)  # SHA-256 of the text
    module: Mapped[str] = mapped_column(String(40), nullable=False)
    text: Mapped[str] = mapped_column(Text, nullable=False)
    seen_at: Mapped[float] = mapped_column(Float(53), nullable=False)


class OwnRuleRecord(TenantRow, Table):
    """A tenant's own rule as it is now. Its version goes on counting when a rule of that id was deleted before."""

    __tablename__ = "own_rules"
    __table_args__ = (UniqueConstraint("tenant_id", "rule_id"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    rule_id: Mapped[str] = mapped_column(String(RULE_ID_LENGTH), nullable=False)
    version: Mapped[int] = mapped_column(Integer, nullable=False)
    module: Mapped[str] = mapped_column(String(40), nullable=False)
    text: Mapped[str] = mapped_column(Text, nullable=False)
    created_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    changed_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    changed_by: Mapped[str] = mapped_column(String(300), nullable=False)


class OwnRuleVersionRecord(TenantRow, Table):
    """One version of an own rule; stays when the rule is deleted, since events name it."""

    __tablename__ = "own_rule_versions"
    __table_args__ = (UniqueConstraint("tenant_id", "rule_id", "version"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    rule_id: Mapped[str] = mapped_column(String(RULE_ID_LENGTH), nullable=False)
    version: Mapped[int] = mapped_column(Integer, nullable=False)
    module: Mapped[str] = mapped_column(String(40), nullable=False)
    text: Mapped[str] = mapped_column(Text, nullable=False)
    changed_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    changed_by: Mapped[str] = mapped_column(String(300), nullable=False)
    what: Mapped[str] = mapped_column(String(20), nullable=False)  # "created", "changed", "deleted"
