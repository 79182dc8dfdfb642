"""One order over the rows of several databases. Pure.

Each database sorts its own rows, and they are merged here. So both must sort alike: text, by its characters' numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Any

from sqlalchemy import ColumnElement, Select
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import asc_op, desc_op

from shardctl.errors import UsageError
from shardctl.reader.errors import ReadError


@dataclass(frozen=True, slots=True)
class Part:
    """What one database returned: rows in its order, and for each of them the values that it was ordered by."""

    shard: str
    rows: Sequence[Any]
    keys: Sequence[Sequence[Any]]
    nulls_are_largest: bool


class Order:
    """`columns`, each a column or its `.desc()`. Without any, rows come shard by shard."""

    def __init__(self, columns: Sequence[Any], limit: int | None) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise UsageError(f"limit is a whole number from 0, not {limit!r}.")
        self._limit = limit
        self._columns = [_expression(column) for column in columns]

    def of(self, statement: Select[Any]) -> Select[Any]:
        """The statement, sorted and cut for one database; the values of its order stand behind its own columns."""
        for number, (column, descending) in enumerate(self._columns):
            statement = statement.order_by(column.desc() if descending else column.asc())
            statement = statement.add_columns(column.label(f"shardctl_order_{number}"))
        return statement if self._limit is None else statement.limit(self._limit)

    @property
    def width(self) -> int:
        return len(self._columns)

    def merge(self, parts: Iterable[Part]) -> list[Any]:
        """Raises ReadError where a database sorts otherwise than Python."""
        if not self._columns:
            return list(islice((row for part in parts for row in part.rows), self._limit))
        keyed = [
            [(self._key(values, part), row) for values, row in zip(part.keys, part.rows, strict=True)] for part in parts
        ]
        for part, rows in zip(parts, keyed, strict=True):
            if any(later < earlier for (earlier, _), (later, _) in pairwise(rows)):
                raise ReadError(
                    f"shard {part.shard} sorts otherwise than Python: order by a column whose collation compares bytes, such "
                    'as COLLATE "C" on PostgreSQL or utf8mb4_bin on MariaDB, or by numbers or times.'
                )
        merged = heapq.merge(*keyed, key=lambda entry: entry[0])
        return [row for _, row in islice(merged, self._limit)]

    def _key(self, values: Sequence[Any], part: Part) -> tuple[Any, ...]:
        return tuple(
            _Descending(_comparable(value, part)) if descending else _comparable(value, part)
            for value, (_, descending) in zip(values, self._columns, strict=True)
        )


def _comparable(value: Any, part: Part) -> tuple[int, Any]:
    """NULLs stand at the end that their database puts them at; all other values are alike, whatever database they are from."""
    if value is None:
        return (2 if part.nulls_are_largest else 0), ""
    if isinstance(value, datetime) and value.tzinfo is None:  # MariaDB and SQLite keep UTC without saying so
        value = value.replace(tzinfo=UTC)
    return 1, value


class _Descending:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]


def _expression(column: Any) -> tuple[ColumnElement[Any], bool]:
    if isinstance(column, UnaryExpression) and column.modifier in {asc_op, desc_op}:
        return column.element, column.modifier is desc_op
    expression = column.__clause_element__() if hasattr(column, "__clause_element__") else column
    if not isinstance(expression, ColumnElement) or isinstance(expression, UnaryExpression):
        raise UsageError(f"order_by takes columns, each with .desc() or not, not {type(column).__name__}.")
    return expression, False
