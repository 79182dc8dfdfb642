"""Decimals against the table as it is: a column with fewer places than its type allows would round them silently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection

from consumer.database.dialects import Dialect
from consumer.delivery import Delivery
from consumer.errors import DataFaultError
from shardctl.wire.bodies import Rules
from shardctl.wire.jsontext import digits_of
from shardctl.wire.values import MAX_EXPONENT, Room


class Places:
    """Reads each table's columns once, before the first write to it, and again before it refuses a write."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._narrow: dict[str, Mapping[str, Room]] = {}

    def check(self, connection: Connection, rules: Rules, writes: Iterable[Delivery]) -> None:
        """Raise DataFaultError where one of the writes has a decimal that its column would round."""
        if self._dialect.column_places is None or not rules.has_decimals:
            return
        table = rules.kind.table
        narrow = self._narrow.get(table)
        if narrow is None:
            narrow = self._read(connection, rules)
        if narrow and _rounded(writes, narrow):
            column = _rounded(writes, self._read(connection, rules))  # the column may have been altered since
            if column is not None:
                raise DataFaultError(
                    "bad_value", f"{column!r} has more places than its column in {table} holds, which would round it"
                )

    def _read(self, connection: Connection, rules: Rules) -> Mapping[str, Room]:
        """The decimal columns that round what their type takes, with the room that they have."""
        table, types, text = rules.kind.table, rules.kind.types, self._dialect.column_places or ""
        name = self._dialect.quote(table) if text.count("%s") == 1 else table
        column_places: dict[str, int | None] = dict(
            map(tuple, connection.exec_driver_sql(text, (name,) * text.count("%s")))
        )
        narrow = {
            column: Room(MAX_EXPONENT, places)
            for column, places in column_places.items()
            if places is not None and types.get(column) == "decimal" and places < rules.room(column).places
        }
        if column_places:  # otherwise the statement's error says what is wrong
            self._narrow[table] = narrow
        return narrow


def _rounded(writes: Iterable[Delivery], narrow: Mapping[str, Room]) -> str | None:
    for write in writes:
        for column, room in narrow.items():
            if write.body.get(column) is not None and not room.takes(digits_of(column, write.body, write.message.data)):
                return column
    return None
