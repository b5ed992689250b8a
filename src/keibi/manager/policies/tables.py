"""The tables of policies, their versions, computers' own overrides, and generations."""

from sqlalchemy import Float, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, TenantRow, VersionedRow


class PolicyRecord(TenantRow, VersionedRow, Table):
    """One policy as it is now."""

    __tablename__ = "policies"
    __table_args__ = (UniqueConstraint("tenant_id", "parent_key", "name_key"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("policies.id"), nullable=True, index=True)
    parent_key: Mapped[str] = mapped_column(String(ID_LENGTH), nullable=False)  # parent_id or "": NULLs are never equal
    name: Mapped[str] = mapped_column(String(100), nullable=False)
    name_key: Mapped[str] = mapped_column(String(100), nullable=False)  # casefolded
    description: Mapped[str] = mapped_column(Text, nullable=False, default="")
    template: Mapped[str] = mapped_column(String(40), nullable=False, default="")  # of a shipped policy: "linux"
    overrides: Mapped[str] = mapped_column(Text, nullable=False, default="{}")  # JSON of overrides.Overrides
    created_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    changed_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    changed_by: Mapped[str] = mapped_column(String(300), nullable=False)


class PolicyVersionRecord(TenantRow, Table):
    """A policy as it was after each of its changes; stays when the policy is deleted."""

    __tablename__ = "policy_versions"
    __table_args__ = (UniqueConstraint("policy_id", "version"),)

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    policy_id: Mapped[str] = mapped_column(String(ID_LENGTH), nullable=False)
    version: Mapped[int] = mapped_column(Integer, nullable=False)
    parent_id: Mapped[str | None] = mapped_column(String(ID_LENGTH), nullable=True)
    name: Mapped[str] = mapped_column(String(100), nullable=False)
    description: Mapped[str] = mapped_column(Text, nullable=False)
    overrides: Mapped[str] = mapped_column(Text, nullable=False)
    changed_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    changed_by: Mapped[str] = mapped_column(String(300), nullable=False)
    summary: Mapped[str] = mapped_column(Text, nullable=False)  # what the change was, in one English sentence


class ComputerOverridesRecord(TenantRow, VersionedRow, Table):
    """What one computer says itself, on top of its policy."""

    __tablename__ = "computer_overrides"

    id: Mapped[str] = mapped_column(ForeignKey("computers.id", ondelete="CASCADE"), primary_key=True)
    overrides: Mapped[str] = mapped_column(Text, nullable=False)
    changed_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    changed_by: Mapped[str] = mapped_column(String(300), nullable=False)


class PolicyRevisionRecord(TenantRow, Table):
    """A word that changes whenever anything changes of which a tenant's policies are made: the key of the compiled ones.

    A random word and not a number, since a number that was rolled back would come again with another meaning. The row is
    also what writers of one tenant wait for, so that two changes are never checked against the same old tree.
    """

    __tablename__ = "policy_revisions"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)  # the tenant's id
    revision: Mapped[str] = mapped_column(String(ID_LENGTH), nullable=False)


class GenerationRecord(TenantRow, Table):
    """The generation of each computer's policy, and the digest of what was compiled under it."""

    __tablename__ = "policy_generations"

    id: Mapped[str] = mapped_column(ForeignKey("computers.id", ondelete="CASCADE"), primary_key=True)
    generation: Mapped[int] = mapped_column(Integer, nullable=False)
    digest: Mapped[str] = mapped_column(String(64), nullable=False)
    changed_at: Mapped[float] = mapped_column(Float(53), nullable=False)
