"""The table of retention rules; events themselves are in the event store."""

from sqlalchemy import Float, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from keibi.manager.database import ID_LENGTH, Table, TenantRow


class RetentionRecord(TenantRow, Table):
    """For how many days a tenant's events of one module ("" for all others) are kept."""

    __tablename__ = "event_retention"

    tenant_id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    module: Mapped[str] = mapped_column(String(40), primary_key=True)
    days: Mapped[int] = mapped_column(Integer, nullable=False)
    changed_at: Mapped[float] = mapped_column(Float(53), nullable=False)
    changed_by: Mapped[str] = mapped_column(String(300), nullable=False)
