"""Keyset pages: each page starts after the last row of the one before, so that deep pages cost no more than the first.

A cursor is opaque to callers: the sort values of the last row, in base64. It grants nothing (the query is narrowed to the
caller's rows all the same), so it is not signed; one that cannot be read is the caller's mistake.
"""

import base64
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import Select, and_, false, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from keibi.errors import InputError

DEFAULT_LIMIT = 50
MAX_LIMIT = 1000
MAX_CURSOR_CHARACTERS = 4096

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list. `next_cursor` is None at the end; `total` is the true count, or None where it was not asked for."""

    items: Sequence[T]
    next_cursor: str | None = None
    total: int | None = None

    def map(self, change: Callable[[T], U]) -> "Page[U]":
        """Return the same page with every item changed."""
        return Page([change(item) for item in self.items], self.next_cursor, self.total)


@dataclass(frozen=True)
class SortKey:
    """One column of an order. The columns of an order together must be unique and never NULL: end with the id."""

    column: Any  # an ORM attribute or SQL expression
    is_descending: bool = False


def encode_cursor(values: Sequence[Any]) -> str:
    """Return the cursor that stands for a row's sort values (JSON types)."""
    return base64.urlsafe_b64encode(msgspec.json.encode(list(values))).decode().rstrip("=")


def decode_cursor(cursor: str, length: int) -> list[Any]:
    """Return the sort values in a cursor.

    Raises:
        InputError: it was not made by `encode_cursor` for an order of that length.
    """
    values: list[Any] = []
    if len(cursor) <= MAX_CURSOR_CHARACTERS:
        with contextlib.suppress(ValueError, msgspec.MsgspecError):
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            values = msgspec.json.decode(raw, type=list[str | int | float | bool])
    if len(values) != length:
        raise not_a_cursor(cursor)
    return values


def not_a_cursor(cursor: str) -> InputError:
    """Return the error for a cursor that does not fit its list."""
    return InputError("cursor_invalid", f"{cursor[:40]!r} is not a cursor of this list", hint="start again at the first page")


def check_limit(limit: int) -> int:
    """Return `limit` if it is from 1 to MAX_LIMIT.

    Raises:
        InputError: it is not.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InputError("limit_invalid", f"a page can have from 1 to {MAX_LIMIT} rows, not {limit}")
    return limit


def page_of(
    session: Session,
    statement: Select[T],
    order: Sequence[SortKey],
    cursor: str | None,
    limit: int,
    *,
    with_total: bool = True,
) -> Page[T]:
    """Run `statement` (a select of one ORM class, without order) and return the page after `cursor`.

    Raises:
        InputError: a bad cursor or limit.
    """
    check_limit(limit)
    total = session.scalar(select(func.count()).select_from(statement.subquery())) if with_total else None
    narrowed = statement
    if cursor:
        narrowed = statement.where(_after(order, _fitting(order, cursor)))
    keys = [key.column for key in order]
    ordering = [key.column.desc() if key.is_descending else key.column.asc() for key in order]
    rows = session.execute(narrowed.order_by(*ordering).limit(limit + 1).add_columns(*keys)).all()
    items = [row[0] for row in rows[:limit]]
    more = encode_cursor(list(rows[limit - 1][1:])) if len(rows) > limit else None
    return Page(items, more, total)


def _fitting(order: Sequence[SortKey], cursor: str) -> list[Any]:
    """Return the values of a cursor, each of its column's type: databases refuse others in words of their own.

    Raises:
        InputError: it is not a cursor of this order.
    """
    values = decode_cursor(cursor, len(order))
    for key, value in zip(order, values, strict=True):
        wanted = key.column.type.python_type
        fits = type(value) in ((int, float) if wanted is float else (wanted,))
        if not fits or (type(value) is int and abs(value) >= 2**63) or (type(value) is str and "\0" in value):
            raise not_a_cursor(cursor)
    return values


def _after(order: Sequence[SortKey], values: list[Any]) -> Any:
    """Return the condition "comes after these values": (a > x) or (a = x and b > y) or …, each column with its own direction."""
    condition: Any = false()
    for position, key in enumerate(order):
        equal = [earlier.column == value for earlier, value in zip(order[:position], values[:position], strict=True)]
        beyond = key.column < values[position] if key.is_descending else key.column > values[position]
        condition = or_(condition, and_(*equal, beyond))
    return condition


def attribute_named(model: type[Any], name: str, allowed: frozenset[str]) -> InstrumentedAttribute[Any]:
    """Return the column of `model` to sort by.

    Raises:
        InputError: the list cannot be sorted by that name.
    """
    if name not in allowed:
        hint = f"use one of: {', '.join(sorted(allowed))}"
        raise InputError("sort_invalid", f"this list cannot be sorted by {name!r}", hint=hint)
    column: InstrumentedAttribute[Any] = getattr(model, name)
    return column
