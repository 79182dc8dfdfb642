"""Some rows of a slot, by their keys as the log of changes has them: a condition for the database that they are in. Pure.

Every value travels as a parameter, in a form that the column's own type gives it: the database compares like with like, and uses
its index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from shardctl.rebalance.rows.shape import Column, SlotTable, quoted
from shardctl.rebalance.rows.values import MYSQL, Kind

KEYS_AT_ONCE = 1_000  # a statement; SQLite takes 32,766 parameters


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one table, each a JSON array of the values of `Named.key`."""

    product: str
    keys: tuple[str, ...]

    def parts(self, at_once: int = KEYS_AT_ONCE) -> Iterator[Keys]:
        for at in range(0, len(self.keys), at_once):
            yield Keys(self.product, self.keys[at : at + at_once])

    def of(self, product: str) -> Keys:
        return Keys(product, self.keys)

    def condition(self, table: SlotTable) -> str:
        """SQL that is true of the table's rows with these keys; takes `values`."""
        columns = _columns(table)
        names = [quoted(self.product, column.name) for column in columns]
        exact = [_bytes(name) if self._is_loose(column) else name for name, column in zip(names, columns, strict=True)]
        return " AND ".join(self._among(listed) for listed in ([names, exact] if exact != names else [names]))

    def _among(self, names: Sequence[str]) -> str:
        mark = "?" if self.product == "sqlite" else "%s"
        key = mark if len(names) == 1 else f"({', '.join(mark for _ in names)})"
        left = names[0] if len(names) == 1 else f"({', '.join(names)})"
        # SQLite compares rows with those of VALUES alone.
        listed = ", ".join(key for _ in self.keys)
        return (
            f"{left} IN (VALUES {listed})" if len(names) > 1 and self.product == "sqlite" else f"{left} IN ({listed})"
        )

    def values(self, table: SlotTable) -> tuple[Any, ...]:
        """Raises ValueError, ArithmeticError or TypeError where a key can't be one of the table's."""
        columns = _columns(table)
        rows = [json.loads(key) for key in self.keys]
        plain = [self._value(table, column, value) for row in rows for column, value in zip(columns, row, strict=True)]
        if not any(map(self._is_loose, columns)):
            return tuple(plain)
        exact = [value.encode() if isinstance(value, str) else value for value in plain]
        return (*plain, *exact)

    def _is_loose(self, column: Column) -> bool:
        """Whether two texts that differ may be equal in the column: its collation may fold case, accents or blanks."""
        return self.product in MYSQL and column.kind is Kind.TEXT

    def _value(self, table: SlotTable, column: Column, value: Any) -> Any:
        if table.named.in_digits:
            return self._read_digits(column, value)
        if column.kind is Kind.BYTES and column.name in table.named.uuids:
            return UUID(value).bytes
        if self.product == "postgresql":
            return str(value)  # of a type that the server infers from the column
        if column.kind is Kind.DECIMAL:
            return str(value) if self.product == "sqlite" else Decimal(str(value))
        return _PLAIN.get(column.kind, str)(value)

    def _read_digits(self, column: Column, digits: str) -> str | bytes:
        """Of a column of bytes, or of a uuid."""
        if column.kind is not Kind.BYTES:
            return digits
        return f"\\x{digits}" if self.product == "postgresql" else bytes.fromhex(digits)


_PLAIN: dict[Kind, Callable[[Any], Any]] = {
    Kind.INTEGER: int,
    Kind.BOOLEAN: int,
    Kind.DOUBLE: float,
    Kind.BYTES: lambda value: str(value).encode(),
}


def _columns(table: SlotTable) -> list[Column]:
    by_name = {column.name: column for column in table.columns}
    return [by_name[name] for name in table.named.key]


def _bytes(name: str) -> str:
    return f"CAST(CONVERT({name} USING utf8mb4) AS BINARY)"
