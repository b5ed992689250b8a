"""The events API's values as OpenAPI shows them; answers are written from the msgspec structs of the same shape."""

from typing import Any

from pydantic import BaseModel, Field

from keibi.contract.events import EventAction
from keibi.contract.names import ModuleId, Severity


class ActorOut(BaseModel):
    """Who did it, as far as the kernel could tell. Fields that are not known are left out."""

    process: str = Field("", description="Path of the executable")
    pid: int = 0
    parent: str = Field("", description="Path of the parent's executable")
    user: str = ""
    uid: int | None = None
    login_user: str = Field("", description="Who signed in, before sudo or su")
    container: str = ""
    source: str = Field("", description="How it is known: bpf, proc, fanotify")


class EventOut(BaseModel):
    """One event in a list. Times are UTC seconds since the epoch."""

    event_id: str
    tenant_id: str
    computer_id: str
    module: ModuleId
    kind: str = Field(description="What happened, such as file.updated")
    severity: Severity
    action: EventAction
    detected_at: float
    changed_at: float | None = Field(description="When the thing itself changed, where that is known")
    received_at: float
    rule_id: str
    rule_version: int
    subject: str = Field(description="The path, port, user or package that it is about")
    entity_type: str
    reason: str
    message: str = Field(description="One plain English sentence")
    actor: ActorOut
    policy_generation: int
    note: str = Field(description="What the manager had to say, such as that the computer's clock was wrong")
    tags: list[str]


class EventDetailOut(EventOut):
    """One event with everything about it."""

    details: dict[str, Any] = Field(description="The module's own record: before and after, difference, package and so on")


class EventPageOut(BaseModel):
    """One page. Give `next_cursor` as `cursor` for the next one; it is null at the end."""

    items: list[EventOut]
    next_cursor: str | None
    total: int | None = Field(description="The exact number of matching events, when it was asked for with with_total=true")


class CountOut(BaseModel):
    """The exact number of matching events."""

    count: int


class SurroundingsOut(BaseModel):
    """The events of the same computer within an hour, the nearest first."""

    before: list[EventOut]
    after: list[EventOut]


class SeriesLineOut(BaseModel):
    """One line of a chart."""

    key: str
    counts: list[int] = Field(description="One count for each time in starts_at")


class SeriesOut(BaseModel):
    """Counts over time."""

    step_seconds: int
    starts_at: list[float]
    lines: list[SeriesLineOut]
    total: int


class TopRowOut(BaseModel):
    """One value of a field, and how many events and computers have it."""

    value: str
    count: int
    computer_count: int


class TagIn(BaseModel):
    """Which events to put a tag on, or take it off."""

    event_ids: list[str] = Field(min_length=1, max_length=10_000)
    tag: str = Field(min_length=1, max_length=60)


class TaggedOut(BaseModel):
    """How many of the events were found."""

    event_count: int


class TagCountOut(BaseModel):
    """A tag in use."""

    tag: str
    event_count: int


class RetentionOut(BaseModel):
    """For how many days a tenant's events of one module are kept; module null is for all modules without a rule."""

    tenant_id: str
    module: ModuleId | None
    days: int
    is_default: bool


class RetentionIn(BaseModel):
    """The new rule; days null removes it."""

    module: ModuleId | None = None
    days: int | None = Field(ge=1, le=3660)
